"""What an experiment is given: how long it may take, progress, and a pool for what can run side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mooring.finetune.files import write_text
from mooring.reproduce.pool import process_pool

T = TypeVar("T")
Tell = Callable[[float, str], None]
"""Receives the share that is done, from 0 to 1, and what is being done."""

# What decides the numbers of a job. The pictures, the comparison and the command line do not.
_ROOMS = ("kernels", "anchors", "step", "moments", "rules", "optim", "perturb", "measure", "finetune")


def silent(share: float, what: str) -> None:
    """Progress that nobody looks at."""


@dataclass
class Run:
    """One run of one experiment.

    Attributes:
        quick: Whether this is the short form: fewer seeds, dimensions or steps, the same claims.
        folder: Where finished jobs are kept.
        jobs: How many processes `map` may use.
        tell: Receives progress.
    """

    quick: bool
    folder: Path
    jobs: int = 1
    tell: Tell = silent

    def pick(self, quick: T, full: T) -> T:
        """``quick`` in the short form, ``full`` otherwise."""
        return quick if self.quick else full

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Iterate and report the share that is done.

        Args:
            items: What to go through.
            what: What is being done.
            total: How many there are, where ``len(items)`` does not say.
        """
        count = len(items) if total is None else total  # type: ignore[arg-type]
        self.tell(0.0, what)
        for done, item in enumerate(items, start=1):
            yield item
            self.tell(done / max(1, count), what)

    def map(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], what: str) -> list[T]:
        """``[function(*a) for a in arguments]``, side by side, with one torch thread each.

        A job that finished is kept on disk and not run again when the experiment is: an interruption loses only what
        was running. Kept results are used as long as the library, torch, the experiment's own file and what the
        experiments share are the same.

        Args:
            function: A function at the top level of a module. It seeds its own random numbers; what it returns is
                written as JSON (numbers, strings, lists, dictionaries with string keys).
            arguments: The arguments of every job, plain numbers, strings and booleans.
            what: What is being done, for the progress.
        """
        kept = [self.folder / "jobs" / f"{_key(function, a)}.json" for a in arguments]
        missing = [i for i, path in enumerate(kept) if not path.is_file()]
        done = len(arguments) - len(missing)
        self.tell(done / max(1, len(arguments)), what)
        if self.jobs == 1 or len(missing) < 2:
            for i in missing:
                _keep(kept[i], _alone(function, arguments[i]))
                done += 1
                self.tell(done / len(arguments), what)
        else:
            with process_pool(min(self.jobs, len(missing))) as pool:
                futures = {pool.submit(_alone, function, arguments[i]): i for i in missing}
                for future in as_completed(futures):
                    _keep(kept[futures[future]], future.result())
                    done += 1
                    self.tell(done / len(arguments), what)
        # Read back, so that a first run and a continued one see the same bits and the same types.
        return [json.loads(path.read_text(encoding="utf-8")) for path in kept]


def _keep(path: Path, result: Any) -> None:
    # A run that diverged returns not-a-number, which Python's JSON writes and reads.
    write_text(path, json.dumps(result) + "\n")


def _alone(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    from mooring.finetune.seeds import threads

    with threads(1):
        return function(*arguments)


def _key(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    content = [function.__module__, function.__qualname__, list(arguments), _fingerprint(function.__code__.co_filename)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


@cache
def _fingerprint(file: str) -> str:
    import torch

    import mooring

    package = Path(mooring.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(path for room in _ROOMS for path in (package / room).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    for path in (Path(file), *sorted(Path(__file__).parent.glob("*.py"))):  # what experiments share lies beside this
        digest.update(path.read_bytes())
    return digest.hexdigest()
