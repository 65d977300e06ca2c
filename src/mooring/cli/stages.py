"""Progress of a command that works through named stages: a bar in a terminal, a line per stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Tell = Callable[[str, int | None, int | None], None]
"""Takes the stage, how much of it is done, and of how much; None where that is not known."""


@contextmanager
def stages(console: Console, quiet: bool) -> Iterator[Tell]:
    """Show what is being done inside the block."""
    if quiet:
        yield lambda stage, done, total: None
    elif console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            current, shown = bars.add_task("", total=None), ""

            def show(stage: str, done: int | None, total: int | None) -> None:
                nonlocal current, shown
                if stage != shown:  # a new bar: the old one's total would stay where none is known
                    bars.remove_task(current)
                    current, shown = bars.add_task(stage, total=total), stage
                bars.update(current, completed=done or 0, total=total)

            yield show
    else:
        began, said = time.monotonic(), ""

        def line(stage: str, done: int | None, total: int | None) -> None:
            nonlocal said
            if stage != said:
                said = stage
                console.print(f"{time.monotonic() - began:6.1f} s  {stage}", markup=False, highlight=False)

        yield line
