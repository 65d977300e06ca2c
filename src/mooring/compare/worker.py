"""What runs inside a trial's own process. Imports torch only when it works."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

Report = Callable[[dict[str, Any]], None]
_STEP_EVENTS_APART = 0.1  # seconds; a display needs no more


def child_main(
    events: connection.Connection, output: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Run ``function(*arguments, report)`` and send what it reports, then how it ended, to the parent.

    Args:
        events: where reports go; each is a mapping with the key ``event``.
        output: the file that collects what is printed here, a crash of the interpreter included.
        function: what to run; importable, because it travels by name.
        arguments: its arguments.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_the_parent()
    with output.open("ab", buffering=0) as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", buffering=1) for number in (1, 2))
    faulthandler.enable(sys.stderr)
    report = _throttled(events)
    try:
        function(*arguments, report)
    except Exception as error:
        from mooring.finetune.errors import SpecError, TrialError

        ours = isinstance(error, (SpecError, TrialError))  # their messages are sentences
        report(
            {
                "event": "failed",
                "summary": str(error) if ours else f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
                "bad_request": isinstance(error, SpecError),
            }
        )
    else:
        report({"event": "done"})


def _end_with_the_parent() -> None:
    """End this process when the parent is gone, however it went: nobody would collect the result."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _throttled(events: connection.Connection) -> Report:
    last = 0.0

    def report(event: dict[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if event.get("event") == "step" and now - last < _STEP_EVENTS_APART:
            return
        last = now
        with contextlib.suppress(BrokenPipeError):  # the parent went; the watching thread ends this process
            events.send(event)

    return report


def check_methods(methods: list[Any], report: Report) -> None:
    """Build every optimizer once over a tiny model; a wrong class, option or recipe is an error that names it."""
    from mooring.finetune.optimizers import check_method

    for method in methods:
        for warning in check_method(method):
            report({"event": "message", "text": warning})


def start(task: Any, index: int, seeds: dict[int, Path], device: str, threads: int, report: Report) -> None:
    """Make one pretrained start if the cache lacks it, and evaluate it untouched on its seeds' splits.

    Args:
        task: the task's specification.
        index: which start.
        seeds: the seeds that begin from it, each with the file that its zero-shot metrics go to.
        device: where it is evaluated.
        threads: torch's threads.
        report: takes events.
    """
    from mooring.finetune import tasks
    from mooring.finetune.files import write_json
    from mooring.finetune.task_spec import OwnTaskSpec
    from mooring.finetune.tasks.starts import load_start

    if not isinstance(task, OwnTaskSpec):
        load_start(task, index, report)
    for seed, path in seeds.items():
        write_json(path, tasks.zero_shot(task, seed, device, threads))


def trial(spec: Any, folder: Path, report: Report) -> None:
    """Run one trial."""
    from mooring.finetune.trial import run_trial

    run_trial(spec, folder, report)
