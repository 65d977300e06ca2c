"""What is shown while trials run."""

from __future__ import annotations

import io

from rich.console import Console

from mooring.compare.progress import Activity, LineProgress, LiveProgress


def console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_line_for_each_trial_that_ended() -> None:
    screen = console()
    progress = LineProgress(["adamw", "torch[x]"], [0, 10], 2, screen)
    progress.message("Pretraining start 0 [once].")
    progress.trial_ended(("torch[x]", 10), "done", "ID  97.9  OOD  85.0", 2.04)
    progress.trial_ended(("adamw", 0), "failed", "failed: it diverged", 0.5)
    assert text_of(screen).splitlines() == [
        "Pretraining start 0 [once].",
        "[1/4] torch[x] seed 10  ID  97.9  OOD  85.0  2.0 s",
        "[2/4] adamw seed 0      failed: it diverged  0.5 s",
    ]


def live(width: int, seeds: int = 3) -> tuple[LiveProgress, Console]:
    screen = console(width)
    progress = LiveProgress(["adamw", "sgd"], list(range(seeds)), 2, screen)
    progress.state.update({("adamw", 0): "done", ("sgd", 0): "failed", ("adamw", 1): "running"})
    progress.activities["adamw seed 1"] = Activity("adamw seed 1", step=150, steps=300, note="ID  97.1  OOD  80.0")
    return progress, screen


def test_the_grid_the_bars_and_the_time_left() -> None:
    progress, screen = live(80)
    progress._seconds.append(4.0)
    screen.print(progress.render())
    lines = text_of(screen).splitlines()
    assert lines[1].split() == ["adamw", "✓", "●", "·"]
    assert lines[2].split() == ["sgd", "✗", "·", "·"]
    assert "adamw seed 1" in lines[4] and "150/300" in lines[4] and "OOD  80.0" in lines[4]
    # Three trials wait and half of one runs, on two processes, four seconds each.
    assert progress.remaining_seconds == 4.0 * 3.5 / 2
    assert "2 of 6 trials" in lines[5] and "about 0:07 to go" in lines[5]


def test_many_seeds_are_counted_where_they_do_not_fit() -> None:
    progress, screen = live(60, seeds=50)
    screen.print(progress.render())
    assert "1 of 50 done, 1 running" in text_of(screen)
    assert "0 of 50 done, 1 failed" in text_of(screen)


def test_no_estimate_before_the_first_trial_has_ended() -> None:
    progress, _ = live(80)
    assert progress.remaining_seconds is None
