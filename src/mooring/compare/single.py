"""One training of ``mooring finetune``: from the command line's words to its specification, and its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from mooring.compare.config import ConfigError, RunConfig, build_config, read_yaml, split_methods
from mooring.finetune.files import write_json, write_text
from mooring.finetune.methods import METHODS
from mooring.finetune.spec import MethodSpec, TrialSpec

SPEC, KEY, FINAL, ENVIRONMENT, LOCK = "spec.json", "key", "final.json", "env.json", ".lock"
_MADE_BY_US = (
    SPEC, KEY, FINAL, ENVIRONMENT, "provenance.json", "metrics.jsonl", "layers.csv", "model.safetensors",
    "predictions.npz",
)  # fmt: skip


@dataclass(frozen=True)
class SingleRequest:
    """What one start of ``mooring finetune`` was asked to do; None means: not said."""

    config_file: Path | None = None
    method: str | None = None
    seed: int | None = None
    steps: int | None = None
    task: str | None = None
    data: str | None = None
    model: str | None = None
    device: str | None = None
    threads: int | None = None
    output_dir: Path | None = None
    overwrite: bool = False


def resolve_single(request: SingleRequest) -> TrialSpec:
    """The training that is asked for: the file's or the folder's to be continued, and the options over it.

    Raises:
        ConfigError: Something cannot be read or does not fit together.
        SpecError: Data or model are not there, or not laid out as the task expects.
    """
    stored = None
    if request.config_file is not None:
        base, source = read_yaml(request.config_file), str(request.config_file)
    else:
        stored = None if request.output_dir is None or request.overwrite else stored_spec(request.output_dir)
        base, source = {} if stored is None else _as_config(stored), ""
    options: dict[str, dict[str, Any]] = {
        "task": {
            "name": request.task,
            "data": request.data,
            "model": None if request.model is None else {"pretrained": request.model},
        },
        "train": {"steps": request.steps, "epochs": None if request.steps is None else 0},
        "compare": {"device": request.device, "threads": request.threads},
    }
    given = {
        section: {key: value for key, value in content.items() if value is not None}
        for section, content in options.items()
    }
    config = build_config(base, given, source=source)
    compare = base.get("compare")
    named = compare if isinstance(compare, dict) else {}
    method = _method(config, request.method, "methods" in named)
    seed = request.seed
    if seed is None:
        seed = config.seeds[0] if "seeds" in named and len(config.seeds) == 1 else 0
    if seed < 0:
        raise ConfigError(f"--seed must be 0 or more, got {seed}")
    return config.identified().trial(method, seed)


def _method(config: RunConfig, name: str | None, in_file: bool) -> MethodSpec:
    there = {method.label: method for method in config.compare.methods} if in_file else {}
    if name is None:
        if len(there) == 1:
            return next(iter(there.values()))
        if there:
            raise ConfigError(f"--method is missing: one training has one method, out of {', '.join(there)}")
        raise ConfigError(f"--method is missing: name one, for example adamspd; there are {', '.join(METHODS)}")
    if name in there:
        return there[name]
    try:
        found = build_config({"compare": {"methods": split_methods(name)}}).compare.methods
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if len(found) != 1:
        raise ConfigError(f"--method takes one method, got {len(found)} in {name!r}; mooring compare takes several")
    return found[0]


def _as_config(spec: TrialSpec) -> dict[str, Any]:
    compare = {
        "methods": [spec.method.model_dump(mode="json")],
        "seeds": [spec.seed],
        "device": spec.device,
        "threads": spec.threads,
    }
    return {"task": spec.task.model_dump(mode="json"), "train": spec.train.model_dump(mode="json"), "compare": compare}


def stored_spec(folder: Path) -> TrialSpec | None:
    """What the training in a folder is; None where there is none.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        text = (folder / SPEC).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {str(folder / SPEC)!r}: {error.strerror or error}") from None
    try:
        return TrialSpec.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f"{str(folder / SPEC)!r} is of another version ({error.errors()[0]['msg']}): name another --output-dir, or "
            "give --overwrite to delete what is there"
        ) from None


def changes(stored: TrialSpec, asked: TrialSpec) -> list[str]:
    """What makes two trainings different ones, as ``key is … there, … asked``."""
    found = []
    if stored.method.model_copy(update={"label": asked.method.label}) != asked.method:
        found.append(f"method is {stored.method} there, {asked.method} asked")
    plain = ("seed", "device", "threads")
    pairs = [("", stored.model_dump(include=set(plain)), asked.model_dump(include=set(plain)))]
    # Data and model by what is in them: a folder that was moved is no difference.
    pairs.append(("task.", stored.task.identity(), asked.task.identity()))
    pairs.append(("train.", stored.train.model_dump(), asked.train.model_dump()))
    for section, there, here in pairs:
        found += [
            f"{section}{key} is {there.get(key)!r} there, {here.get(key)!r} asked"
            for key in dict.fromkeys([*there, *here])
            if there.get(key) != here.get(key)
        ]
    return found


class SingleFolder:
    """The folder of one training."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder's lock, which ends with the process however it ends: one training writes in a folder.

        Raises:
            ConfigError: Another one does, or nothing can be written there.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{str(path)!r} is a file; --output-dir must name a folder")
        if path.is_dir() and not (path / SPEC).is_file() and any(p.name != LOCK for p in path.iterdir()):
            raise ConfigError(
                f"the folder {str(path)!r} is not empty and was not made by mooring finetune; name a new folder or one "
                "to continue"
            )
        lock = FileLock(path / LOCK, timeout=0)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"another mooring finetune is working in {str(path)!r}; wait for it, or name another --output-dir"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot write in {str(path)!r}: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()

    def open(self, asked: TrialSpec, environment: dict[str, Any], *, overwrite: bool, resume: bool) -> bool:
        """Begin the training here, or see that the one here is the same.

        Returns:
            Whether it has finished already.

        Raises:
            ConfigError: The folder holds another training, or ``resume`` finds nothing to continue.
        """
        if overwrite:
            self._clear()
        stored = stored_spec(self.path)
        if stored is not None:
            different = changes(stored, asked)
            key = self.path / KEY
            if not different and key.is_file() and key.read_text(encoding="utf-8") != asked.key():
                different = ["it was started by a version of mooring that computes something else"]
            if different:
                raise ConfigError(
                    f"{str(self.path)!r} holds another training: {'; '.join(different)}. Name another --output-dir, or "
                    "give --overwrite to delete what is there"
                )
            if self.final() is not None:
                return True
        if resume and not any((path / "state.json").is_file() for path in self.path.glob("checkpoint-*")):
            raise ConfigError(f"--resume: there is no checkpoint in {str(self.path)!r} to continue from")
        for left in self.path.glob(".checkpoint-*"):  # by a process that was ended while it wrote
            shutil.rmtree(left, ignore_errors=True)
        write_text(self.path / SPEC, asked.model_dump_json(indent=1) + "\n")
        write_text(self.path / KEY, asked.key())
        write_json(self.path / ENVIRONMENT, environment)
        return False

    def final(self) -> dict[str, float] | None:
        """The metrics of the finished training; None where it has not finished."""
        path = self.path / FINAL
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _clear(self) -> None:
        for name in _MADE_BY_US:
            (self.path / name).unlink(missing_ok=True)
        for pattern in ("checkpoint-*", ".checkpoint-*"):
            for path in self.path.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
