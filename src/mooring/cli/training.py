"""What ``mooring finetune`` shows while it trains: a bar in a terminal, a line per evaluation elsewhere, or nothing."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SILENCE = 10.0  # seconds without a line, in a log
_SCORES = (("ID", "id/accuracy", 100, ".1f"), ("OOD", "ood/accuracy", 100, ".1f"), ("NLL", "id/nll", 1, ".4f"))


def scores(metrics: dict[str, Any]) -> str:
    """Accuracies in percent and the likelihood, those that there are."""
    return "  ".join(f"{name} {scale * metrics[key]:{form}}" for name, key, scale, form in _SCORES if key in metrics)


class Quiet:
    """Says nothing; the base of the other two. A context manager that takes a trial's events."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""

    def say(self, text: str) -> None:
        """One sentence."""

    def __call__(self, event: dict[str, Any]) -> None:
        """One event of the trial."""


class Lines(Quiet):
    """For logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = self.last = time.monotonic()

    def say(self, text: str) -> None:
        """Print one sentence."""
        self.last = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, event: dict[str, Any]) -> None:
        """A line for every evaluation and checkpoint, and one where there was none for a while."""
        kind, quiet = event["event"], time.monotonic() - self.last >= _SILENCE
        seconds = f"{time.monotonic() - self.began:.0f} s"
        if kind == "message":
            self.say(str(event["text"]))
        elif kind == "pretrain" and (quiet or event["step"] == 1):
            self.say(f"pretraining start {event['start']}: step {event['step']} of {event['steps']}  {seconds}")
        elif kind == "eval":
            self.say(f"step {event['step']} of {event['steps']}  {scores(event)}  {seconds}")
        elif kind == "step" and quiet:
            self.say(f"step {event['step']} of {event['steps']}  loss {event['loss']:.4f}  {seconds}")
        elif kind == "checkpoint":
            self.say(f"step {event['step']} of {event['steps']}  checkpoint written  {seconds}")


class Bar(Quiet):
    """For a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, TextColumn("{task.fields[note]}", style="dim"), console=console)
        self.task: TaskID | None = None
        self.kind = ""

    def __enter__(self) -> Bar:
        self.progress.start()
        self._begin("preparing", None)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """Print one sentence above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def __call__(self, event: dict[str, Any]) -> None:
        """Move the bar."""
        if event["event"] == "message":
            self.say(str(event["text"]))
        if "steps" not in event:
            return
        kind = "pretraining" if event["event"] == "pretrain" else "training"
        if kind != self.kind:
            self._begin(kind, event["steps"])
        assert self.task is not None
        self.progress.update(self.task, completed=event["step"])
        if event["event"] == "eval":
            self.progress.update(self.task, note=scores(event))

    def _begin(self, kind: str, steps: int | None) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.kind, self.task = kind, self.progress.add_task(kind, total=steps, note="")
