"""Jobs in processes of their own: a few at a time, their events to one listener, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, process
from pathlib import Path
from typing import Any

from mooring.compare.worker import child_main

_GRACE = 2.0  # seconds a terminated child is given before it is killed


@dataclass(frozen=True)
class Job:
    """A function to run in its own process.

    Attributes:
        name: What messages call it.
        function: Importable; called with ``arguments`` and a function that takes events.
        arguments: Picklable.
        output: The file for what the process prints; removed if it stays empty.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    output: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended; ``error`` is None if it did what it should.

    Attributes:
        error: One line, or None.
        details: The traceback, or what the process printed before it died.
        bad_request: The user's request was wrong, not the run.
        seconds: Wall-clock time of the process.
    """

    error: str | None
    details: str
    bad_request: bool
    seconds: float


@dataclass
class _Running:
    job: Job
    process: process.BaseProcess
    events: connection.Connection
    started: float
    last: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None


class Listener:
    """What a runner tells; override what is of interest."""

    def starting(self, job: Job) -> None:
        """A job's process is about to be started."""

    def started(self, job: Job) -> None:
        """A job's process was started."""

    def event(self, job: Job, event: dict[str, Any]) -> None:
        """A job reported something."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job ended, well or not."""


class Runner:
    """Runs jobs, at most ``limit`` at a time.

    Args:
        limit: how many processes work at once.
        preload: modules that every job needs and that are slow to import.
    """

    def __init__(self, limit: int, preload: Sequence[str] = ()) -> None:
        self.limit = limit
        # Several processes share the cores: each must not start as many threads as there are cores. Only read when
        # torch is loaded, which happens in the children.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if "forkserver" in multiprocessing.get_all_start_methods():
            # One process imports them once; every job is forked from it and starts in milliseconds.
            self._context: multiprocessing.context.BaseContext = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(preload))
        else:
            self._context = multiprocessing.get_context("spawn")

    def run(self, jobs: Sequence[Job], listener: Listener) -> dict[str, Outcome]:
        """Run all jobs; a job that fails or dies is an outcome, not an exception.

        If this call is interrupted, it ends every child before the exception leaves it.
        """
        waiting = deque(jobs)
        running: list[_Running] = []
        outcomes: dict[str, Outcome] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.limit:
                    listener.starting(waiting[0])
                    running.append(self._start(waiting.popleft()))
                    listener.started(running[-1].job)
                sources: list[Any] = [item.events for item in running if item.end is None]
                sources += [item.process.sentinel for item in running]
                connection.wait(sources)
                for item in list(running):
                    # First whether it has ended, then what it sent: in the other order its last words could be missed.
                    gone = not item.process.is_alive()
                    _receive(item, listener)
                    if gone:
                        running.remove(item)
                        outcome = _outcome(item)
                        outcomes[item.job.name] = outcome
                        listener.ended(item.job, outcome)
        finally:
            _end_all(running)
        return outcomes

    def _start(self, job: Job) -> _Running:
        receive, send = self._context.Pipe(duplex=False)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        child = self._context.Process(  # type: ignore[attr-defined]
            target=child_main, args=(send, job.output, job.function, job.arguments), daemon=True, name=job.name
        )
        child.start()
        send.close()
        return _Running(job, child, receive, time.monotonic())


def _receive(item: _Running, listener: Listener) -> None:
    try:
        while item.end is None and item.events.poll():
            event = item.events.recv()
            if event["event"] in ("done", "failed"):
                item.end = event
            else:
                item.last = event
                listener.event(item.job, event)
    except (EOFError, OSError):
        pass  # the child is gone; its exit code says how


def _outcome(item: _Running) -> Outcome:
    item.process.join()
    item.events.close()
    seconds = time.monotonic() - item.started
    printed = _collect_output(item.job.output)
    if item.end is None:
        error = _cause_of_death(item.process.exitcode)
        step = f" at step {item.last['step']}" if "step" in item.last else ""
        return Outcome(f"{error}{step}", printed, False, seconds)
    if item.end["event"] == "failed":
        return Outcome(item.end["summary"], item.end["traceback"] + printed, item.end["bad_request"], seconds)
    return Outcome(None, printed, False, seconds)


def _collect_output(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        if not text:
            path.unlink()
    except FileNotFoundError:
        return ""
    return text


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the trial's process was ended by {name}{hint}"
    return f"the trial's process ended without a result, exit code {code}"


def _end_all(running: list[_Running]) -> None:
    for item in running:
        item.process.terminate()
    deadline = time.monotonic() + _GRACE
    for item in running:
        item.process.join(max(0.0, deadline - time.monotonic()))
        if item.process.is_alive():
            item.process.kill()
            item.process.join()
        _collect_output(item.job.output)
