"""What is shown while trials run: a live grid in a terminal, a line per finished trial elsewhere, or nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Pair = tuple[str, int]
_MARKS = {"done": ("✓", "green"), "running": ("●", "cyan"), "failed": ("✗", "bold red"), "waiting": ("·", "dim")}


@dataclass
class Activity:
    """One process at work: what it is called, how far it is, what it measured last."""

    name: str
    started: float = field(default_factory=time.monotonic)
    step: int = 0
    steps: int = 0
    note: str = ""

    @property
    def share(self) -> float:
        """The share of its steps that are done."""
        return self.step / self.steps if self.steps else 0.0


class Progress:
    """Says nothing (``--quiet``); the base of the other two."""

    def __init__(self, methods: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
        self.methods, self.seeds, self.jobs = list(methods), list(seeds), jobs
        self.state: dict[Pair, str] = {(method, seed): "waiting" for method in methods for seed in seeds}
        self.activities: dict[str, Activity] = {}
        self._began = time.monotonic()
        self._seconds: list[float] = []

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""

    def message(self, text: str) -> None:
        """Say one sentence."""

    def trial_ended(self, pair: Pair, state: str, text: str, seconds: float) -> None:
        """A trial is done or failed."""
        self.state[pair] = state
        self._seconds.append(seconds)

    @property
    def finished(self) -> int:
        """Trials that are done or failed."""
        return sum(state in ("done", "failed") for state in self.state.values())

    @property
    def remaining_seconds(self) -> float | None:
        """An estimate from the trials of this start; None before the first has ended."""
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        running = [pair for pair, state in self.state.items() if state == "running"]
        waiting = sum(state == "waiting" for state in self.state.values())
        ahead = sum(1.0 - activity.share for activity in self.activities.values()) if running else 0.0
        return mean * (waiting + ahead) / max(1, min(self.jobs, waiting + len(running)))


class LineProgress(Progress):
    """A line for everything that ends; for logs and pipes."""

    def __init__(self, methods: Sequence[str], seeds: Sequence[int], jobs: int, console: Console) -> None:
        super().__init__(methods, seeds, jobs)
        self.console = console

    def message(self, text: str) -> None:
        """Print one sentence."""
        self._print(text)

    def trial_ended(self, pair: Pair, state: str, text: str, seconds: float) -> None:
        """Print the trial's line."""
        super().trial_ended(pair, state, text, seconds)
        width = len(str(len(self.state)))
        name = f"{pair[0]} seed {pair[1]}"
        name_width = max(len(f"{method} seed {seed}") for method, seed in self.state)
        self._print(f"[{self.finished:>{width}}/{len(self.state)}] {name:<{name_width}}  {text}  {seconds:.1f} s")

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveProgress(Progress):
    """A grid of methods and seeds, a bar for every process at work, the time left."""

    def __init__(self, methods: Sequence[str], seeds: Sequence[int], jobs: int, console: Console) -> None:
        super().__init__(methods, seeds, jobs)
        self.console = console
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self.render)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.activities.clear()
        self._live.stop()

    def message(self, text: str) -> None:
        """Print one sentence above the grid."""
        self.console.print(Text(text))

    def trial_ended(self, pair: Pair, state: str, text: str, seconds: float) -> None:
        """Mark the trial in the grid; a failure also gets a line of its own."""
        super().trial_ended(pair, state, text, seconds)
        if state == "failed":
            self.console.print(Text(f"✗ {pair[0]} seed {pair[1]}: {text}", style="red"))

    def render(self) -> RenderableType:
        """The present state; called by rich several times a second."""
        parts: list[RenderableType] = [self._grid(), ""]
        if self.activities:
            parts.append(self._bars())
        parts.append(self._summary())
        return Group(*parts)

    def _grid(self) -> RenderableType:
        name_width = max(map(len, self.methods))
        fits = name_width + sum(2 + len(str(seed)) for seed in self.seeds) <= self.console.width - 2
        table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=fits)
        table.add_column("seed" if fits else "", no_wrap=True, header_style="dim")
        if fits:
            for seed in self.seeds:
                table.add_column(str(seed), justify="center", header_style="dim")
        for method in self.methods:
            states = [self.state[method, seed] for seed in self.seeds]
            if fits:
                table.add_row(method, *(Text(*_MARKS[state]) for state in states))
            else:
                table.add_row(method, self._count(states))
        return table

    def _count(self, states: list[str]) -> Text:
        text = Text(f"{states.count('done')} of {len(states)} done")
        if states.count("failed"):
            text.append(f", {states.count('failed')} failed", style="bold red")
        if states.count("running"):
            text.append(f", {states.count('running')} running", style="cyan")
        return text

    def _bars(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(width=20)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim", overflow="ellipsis", no_wrap=True)
        for activity in list(self.activities.values()):  # drawn from another thread
            bar = ProgressBar(
                total=max(1, activity.steps), completed=activity.step, width=20, complete_style="cyan",
                finished_style="green",
            )  # fmt: skip
            steps = f"{activity.step}/{activity.steps}" if activity.steps else ""
            table.add_row(activity.name, bar, steps, activity.note)
        return table

    def _summary(self) -> Text:
        text = Text(f"{self.finished} of {len(self.state)} trials, {_clock(time.monotonic() - self._began)} so far")
        remaining = self.remaining_seconds
        if remaining is not None and self.finished < len(self.state):
            text.append(f", about {_clock(remaining)} to go")
        return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
