"""The folder of one comparison: who may write in it, what it was started with, which trials are finished.

A trial is finished when its ``final.json`` is there and it was started with the key that is asked for now. Everything
else in the folder can be rebuilt from the trials.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout

from mooring.compare.config import ConfigError, RunConfig, build_config, read_yaml, slug_of
from mooring.finetune.files import write_json, write_text
from mooring.finetune.spec import TrialSpec

CONFIG = "config.resolved.yaml"
ENVIRONMENT = "env.json"
LOCK = ".lock"
_MADE_BY_US = (
    "trials", "zero_shot", "plots", CONFIG, ENVIRONMENT, "report.html", "report.md",
    "results.csv", "results_long.csv", "curves.csv", "layers.csv",
)  # fmt: skip

Status = Literal["done", "failed", "missing"]


@dataclass(frozen=True)
class Opened:
    """What opening a folder found.

    Attributes:
        config: The comparison the folder now holds: what was asked for, plus methods and seeds it had before.
        notes: Sentences for the user about what differs from the last start.
    """

    config: RunConfig
    notes: tuple[str, ...]


def new_folder(task: str, parent: Path = Path("runs")) -> Path:
    """A folder name from the time and the task."""
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H%M%S")
    folder = parent / f"{stamp}-{task}"
    count = 1
    while folder.exists():
        count += 1
        folder = parent / f"{stamp}-{task}-{count}"
    return folder


class RunFolder:
    """One comparison on disk. As a context manager it holds the folder's lock: one writer at a time.

    The lock belongs to the process and ends with it, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK, timeout=0)

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{str(self.path)!r} is a file; --output-dir must name a folder")
        if self.path.is_dir() and not self.holds_a_run() and any(p.name != LOCK for p in self.path.iterdir()):
            raise ConfigError(
                f"the folder {str(self.path)!r} is not empty and was not made by mooring compare; "
                "name a new folder or one to continue"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"another mooring compare is working in {str(self.path)!r}; wait for it, or name another --output-dir"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot write in {str(self.path)!r}: {error.strerror or error}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def holds_a_run(self) -> bool:
        """Whether a comparison was started here."""
        return (self.path / CONFIG).is_file()

    def stored_config(self) -> RunConfig:
        """The configuration of the comparison in the folder.

        Raises:
            ConfigError: There is none, or it cannot be read.
        """
        if not self.holds_a_run():
            raise ConfigError(f"there is no comparison in {str(self.path)!r} (no {CONFIG}); name a folder it made")
        return build_config(read_yaml(self.path / CONFIG), source=str(self.path / CONFIG))

    def open(self, asked: RunConfig, environment: dict[str, Any], *, overwrite: bool = False) -> Opened:
        """Start a comparison here, or continue the one that is here.

        A folder's methods and seeds only grow: those it had before stay, and whatever is missing is to be run.

        Raises:
            ConfigError: The folder holds a comparison with another task, training or option.
        """
        if overwrite:
            self._clear()
        notes: list[str] = []
        config = asked
        if self.holds_a_run():
            stored = self.stored_config()
            different = differences(stored, asked)
            if different:
                raise ConfigError(
                    f"{str(self.path)!r} holds another comparison: {'; '.join(different)}. Name another --output-dir, "
                    "or give --overwrite to delete what is there"
                )
            config = _union(stored, asked)
            notes = self._notes(stored, asked, config, environment)
        write_text(self.path / CONFIG, config.to_yaml())
        self._write_environment(environment)
        return Opened(config, tuple(notes))

    def _clear(self) -> None:
        for name in _MADE_BY_US:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _notes(self, stored: RunConfig, asked: RunConfig, config: RunConfig, environment: dict[str, Any]) -> list[str]:
        notes = []
        kept = [label for label in config.labels if slug_of(label) not in set(map(slug_of, asked.labels))]
        if kept:
            notes.append(f"The folder also holds {', '.join(kept)}; what they miss is run as well.")
        if set(config.seeds) > set(asked.seeds):
            notes.append(f"The folder's {len(config.seeds)} seeds are kept; what they miss is run as well.")
        if stored.baseline != config.baseline:
            notes.append(f"The baseline was {stored.baseline} and is now {config.baseline}; no trial depends on it.")
        changed = environment_changes(self.environment(), environment)
        if changed:
            notes.append(f"The trials already here ran with {'; '.join(changed)}.")
        return notes

    def environment(self) -> dict[str, Any]:
        """What the folder's trials ran on, last start first; an empty mapping if it is not known."""
        path = self.path / ENVIRONMENT
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    def _write_environment(self, environment: dict[str, Any]) -> None:
        before = self.environment()
        earlier = before.pop("earlier", [])
        if before and environment_changes(before, environment):
            earlier = [before, *earlier]
        write_json(self.path / ENVIRONMENT, {**environment, **({"earlier": earlier} if earlier else {})})

    def trial_folder(self, label: str, seed: int) -> Path:
        """Where the trial of one method and seed lies."""
        return self.path / "trials" / slug_of(label) / f"seed_{seed}"

    def zero_shot_file(self, seed: int) -> Path:
        """Where the metrics of the untouched start lie, on one seed's splits."""
        return self.path / "zero_shot" / f"seed_{seed}.json"

    def status(self, spec: TrialSpec) -> Status:
        """Whether a trial is done, failed, or neither."""
        folder = self.trial_folder(spec.method.label, spec.seed)
        if (folder / "final.json").is_file() and _read(folder / "key") == spec.key():
            return "done"
        return "failed" if (folder / "error.txt").is_file() else "missing"

    def clear_trial(self, spec: TrialSpec) -> Path:
        """A fresh folder for a trial that is about to run: nothing of an earlier attempt is left in it."""
        folder = self.trial_folder(spec.method.label, spec.seed)
        if folder.exists():
            shutil.rmtree(folder)
        # The key, not the specification alone: it also changes when the code changes what a trial means.
        write_text(folder / "key", spec.key())
        return folder


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def differences(stored: RunConfig, asked: RunConfig) -> list[str]:
    """What keeps two configurations from sharing a folder, as ``key: there … , asked …``."""
    found = []
    # Data and model by what is in them: a folder that was moved is no difference.
    both = {"task": (stored.task.identity(), asked.task.identity())}
    both["train"] = (stored.train.model_dump(), asked.train.model_dump())
    held = {"budget", "device", "threads"}
    both["compare"] = (stored.compare.model_dump(include=held), asked.compare.model_dump(include=held))
    for section, (there, here) in both.items():
        found += [
            f"{section}.{key} is {there.get(key)!r} there, {here.get(key)!r} asked"
            for key in dict.fromkeys([*there, *here])
            if there.get(key) != here.get(key)
        ]
    known = {slug_of(method.label): method for method in stored.compare.methods}
    for method in asked.compare.methods:
        other = known.get(slug_of(method.label))
        if other and other.model_copy(update={"label": method.label}) != method:
            found.append(f"method {method.label!r} is {other} there, {method} asked (give it a new label)")
    return found


def _union(stored: RunConfig, asked: RunConfig) -> RunConfig:
    methods = {slug_of(method.label): method for method in (*asked.compare.methods, *stored.compare.methods)}
    first = [slug_of(label) for label in stored.labels]
    ordered = sorted(methods, key=lambda slug: first.index(slug) if slug in first else len(first))
    named = "baseline" in asked.compare.model_fields_set
    compare = {
        "methods": [methods[slug] for slug in ordered],
        "seeds": sorted({*stored.seeds, *asked.seeds}),
        "baseline": methods[slug_of(asked.baseline)].label if named else stored.baseline,
        "budget": stored.compare.budget,
        "device": stored.compare.device,
        "threads": stored.compare.threads,
    }
    # The task as asked: its data may have been moved.
    return stored.model_copy(update={"task": asked.task, "compare": type(stored.compare).model_validate(compare)})


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The versions that differ between two environments, as ``torch 2.13 (now 2.14)``."""
    then, today = ({**env, **env.get("packages", {})} for env in (before, now))
    names = ("mooring", "python", "processor", "torch", "numpy", "scikit-learn", "kornia", "transformers", "peft")
    return [
        f"{name} {then[name]} (now {today.get(name)})"
        for name in names
        if name in then and then[name] != today.get(name)
    ]
