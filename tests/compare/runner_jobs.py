"""What the runner's tests run in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def report_twice(value: int, report: Any) -> None:
    report({"event": "eval", "value": value})
    report({"event": "eval", "value": value + 1})


def fail(report: Any) -> None:
    report({"event": "eval", "step": 3})
    print("printed before the failure")
    raise ValueError("this broke")


def refuse(report: Any) -> None:
    from mooring.finetune.errors import SpecError

    raise SpecError("option 'x' is wrong")


def die(report: Any) -> None:
    report({"event": "eval", "step": 7})
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def leave(report: Any) -> None:
    os._exit(3)


def note_times(folder: Path, name: str, report: Any) -> None:
    began = time.monotonic()
    time.sleep(0.3)
    (folder / name).write_text(f"{began} {time.monotonic()}")


def write_pid_and_wait(path: Path, report: Any) -> None:
    path.write_text(str(os.getpid()))
    report({"event": "eval", "step": 1})
    time.sleep(60)


def many_steps(report: Any) -> None:
    for step in range(5000):
        report({"event": "step", "step": step})
    report({"event": "eval", "step": 5000})
