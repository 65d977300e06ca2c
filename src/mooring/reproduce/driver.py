"""Run experiments and write down what they found: a picture, its data, the figures and their verdicts."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mooring.finetune.files import csv_text, write_atomic, write_text
from mooring.reproduce.outcome import Check, Row
from mooring.reproduce.pool import process_pool
from mooring.reproduce.registry import ExperimentInfo, experiment_info
from mooring.reproduce.run import Run, Tell, silent

RESULT = "result.json"
PICTURE = "figure.png"


@dataclass(frozen=True)
class Result:
    """What is known of an experiment after it ran.

    Attributes:
        id: The experiment.
        quick: Whether it was the short form.
        checks: Its figures; empty where it raised.
        notes: Its sentences.
        error: The exception that ended it; empty where none did.
        data: The names of its CSV files.
        versions: Of Python's packages that decide the numbers.
    """

    id: str
    quick: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    error: str
    data: tuple[str, ...]
    versions: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether it ran and every figure was met."""
        return not self.error and all(check.ok for check in self.checks)

    @property
    def info(self) -> ExperimentInfo:
        """Its row of the registry."""
        return experiment_info(self.id)


def run_experiment(name: str, *, quick: bool, output: Path, jobs: int = 1, tell: Tell = silent) -> Result:
    """Run one experiment in this process and write its folder ``output/name``.

    The folder holds ``figure.png``, a CSV file for each set of data, ``checks.csv`` and ``result.json``. An experiment
    that raises is a result too: its traceback is in ``error.txt``.
    """
    import matplotlib as mpl

    from mooring.compare.plots.style import style
    from mooring.finetune.seeds import threads

    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (RESULT, PICTURE, "error.txt", *(path.name for path in folder.glob("*.csv"))):
        (folder / stale).unlink(missing_ok=True)
    module = importlib.import_module(experiment_info(name).module)
    try:
        # The words here are ours, not a user's: powers of ten on an axis may be set as such.
        with threads(1), style(), mpl.rc_context({"text.parse_math": True}):
            outcome = module.run(Run(quick, folder, jobs, tell))
            picture = outcome.picture
            write_atomic(folder / PICTURE, lambda path: picture.savefig(path, dpi=130))
    except Exception as error:
        write_text(folder / "error.txt", traceback.format_exc())
        result = Result(name, quick, (), (), f"{type(error).__name__}: {error}", (), _versions())
    else:
        for data, rows in outcome.data.items():
            write_text(folder / f"{data}.csv", to_csv(rows))
        write_text(folder / "checks.csv", to_csv([_check_row(check) for check in outcome.checks]))
        result = Result(name, quick, tuple(outcome.checks), tuple(outcome.notes), "", tuple(outcome.data), _versions())
    content = {**asdict(result), "ok": result.ok, "checks": [_check_row(check) for check in result.checks]}
    write_text(folder / RESULT, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return result


def load_result(folder: Path) -> Result | None:
    """What an experiment wrote in its folder; None where it has not finished."""
    try:
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        checks = tuple(_check(row) for row in content.pop("checks"))
        del content["ok"]
        notes, data = tuple(content.pop("notes")), tuple(content.pop("data"))
        return Result(checks=checks, notes=notes, data=data, **content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


Ended = Callable[[Result, float], None]


def run_many(
    names: Sequence[str], *, quick: bool, output: Path, jobs: int, tell: Callable[[str, float, str], None], ended: Ended
) -> list[Result]:
    """Run several experiments, each in a process of its own, ``jobs`` at a time, the longest first.

    Args:
        names: Which.
        quick: Whether in their short form.
        output: The folder of their folders.
        jobs: How many run at the same time.
        tell: Receives the experiment, the share of it that is done, and what it is doing.
        ended: Receives every result when it is there, and its seconds.

    Returns:
        The results in the order of ``names``.
    """
    results: dict[str, Result] = {}
    if len(names) == 1 or jobs == 1:
        for name in names:
            began = time.monotonic()
            results[name] = run_experiment(name, quick=quick, output=output, jobs=jobs, tell=partial(tell, name))
            ended(results[name], time.monotonic() - began)
        return [results[name] for name in names]
    started: dict[str, float] = {}
    with multiprocessing.get_context("spawn").Manager() as manager:
        events: Any = manager.Queue()
        listening = threading.Event()

        def listen() -> None:
            while not listening.is_set():
                try:
                    name, share, what = events.get(timeout=0.2)
                except (queue.Empty, EOFError, OSError):
                    continue
                started.setdefault(name, time.monotonic())
                tell(name, share, what)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        longest_first = sorted(names, key=lambda name: -experiment_info(name).minutes[1 if quick else 0])
        try:
            with process_pool(min(jobs, len(names)), fresh=True) as pool:
                futures = {pool.submit(_in_process, name, quick, output, events): name for name in longest_first}
                for future in as_completed(futures):
                    name = futures[future]
                    try:
                        results[name] = future.result()
                    except Exception as error:  # the process died: out of memory, killed
                        results[name] = Result(name, quick, (), (), f"its process ended: {error}", (), {})
                    ended(results[name], time.monotonic() - started.get(name, time.monotonic()))
        finally:
            listening.set()
            listener.join()
    return [results[name] for name in names]


def _in_process(name: str, quick: bool, output: Path, events: Any) -> Result:
    told = 0.0

    def tell(share: float, what: str) -> None:
        nonlocal told
        if share in (0.0, 1.0) or time.monotonic() - told > 0.2:
            told = time.monotonic()
            events.put((name, share, what))

    tell(0.0, "starting")
    return run_experiment(name, quick=quick, output=output, jobs=1, tell=tell)


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV; the columns are those of all rows, numbers with six significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return csv_text(
        columns,
        ({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows),
    )


def _check_row(check: Check) -> dict[str, Any]:
    # JSON has no not-a-number. A bound that is none comes from a run that diverged, and confirms nothing.
    row = {**asdict(check), "ok": check.ok}
    numbers = {name: row[name] for name in ("ours", "low", "high", "error") if row[name] is not None}
    if any(math.isnan(numbers.get(name, 0.0)) for name in ("low", "high")):
        row["ours"] = None
    return {**row, **{name: None for name, value in numbers.items() if not math.isfinite(value)}}


def _check(row: dict[str, Any]) -> Check:
    del row["ok"]
    return Check(**{**row, "ours": math.nan if row["ours"] is None else row["ours"]})


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("mooring", "torch", "numpy", "scipy", "scikit-learn")}
