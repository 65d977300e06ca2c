"""``mooring reproduce``: list the experiments, run some, show published figures beside ours."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mooring.compare.config import ConfigError
from mooring.compare.environment import usable_cores
from mooring.reproduce.registry import EXPERIMENTS, ExperimentInfo, experiment_info

if TYPE_CHECKING:
    from mooring.reproduce.driver import Result

OK, MISSED, INTERRUPTED = 0, 1, 130
_LINE_EVERY = 10.0  # seconds, where there is no terminal to draw on


def run_reproduce(
    names: tuple[str, ...], *, quick: bool, output: Path, jobs: int | None, overwrite: bool, quiet: bool, as_json: bool
) -> int:
    """Run the experiments and say what was met; without names, list them."""
    if not names:
        return _list(output, as_json=as_json)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    chosen = _chosen(names)
    errors = Console(stderr=True)
    for info in _lacking(chosen):
        message = f"{info.id} needs {', '.join(info.needs)}, which are not all there"
        if info.id in names:
            raise ConfigError(message)
        errors.print(f"Left out: {message}.", highlight=False)
        chosen.remove(info)
    from mooring.reproduce.driver import run_many
    from mooring.reproduce.page import write_page

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output-dir {str(output)!r} cannot be written: {error.strerror or error}") from None
    if overwrite:
        for info in chosen:
            for path in (output / info.id / "jobs").glob("*.json"):
                path.unlink()
    out = Console(stderr=as_json or quiet, width=None if Console().is_terminal else 150)
    with _Shown(chosen, errors, quiet) as shown:

        def ended(result: Result, seconds: float) -> None:
            with shown.aside():
                shown.ended(result, seconds)
                if not quiet:
                    _print_result(out, result)

        try:
            results = run_many(
                [info.id for info in chosen], quick=quick, output=output, jobs=jobs or usable_cores(),
                tell=shown.tell, ended=ended,
            )  # fmt: skip
        except KeyboardInterrupt:
            shown.stop()
            errors.print("Interrupted. Finished jobs are kept; the same command goes on.", highlight=False)
            return INTERRUPTED
    page = write_page(output)
    missed = [result for result in results if not result.ok]
    if as_json:
        print(json.dumps([{**asdict(result), "ok": result.ok} for result in results], indent=1, ensure_ascii=False))
    else:
        if missed and not quiet:
            out.print(f"[bold red]Missed:[/] {', '.join(result.id for result in missed)}", highlight=False)
        print(page)
    return MISSED if missed else OK


def _chosen(names: tuple[str, ...]) -> list[ExperimentInfo]:
    if "all" in names:
        return list(EXPERIMENTS.values())
    return [experiment_info(name) for name in dict.fromkeys(names)]


def _lacking(chosen: list[ExperimentInfo]) -> list[ExperimentInfo]:
    return [info for info in chosen if not all(_there(name) for name in info.needs)]


def _there(name: str) -> bool:
    return Path(name).is_dir() if "/" in name else importlib.util.find_spec(name) is not None


class _Shown:
    """A bar per experiment in a terminal, lines elsewhere."""

    def __init__(self, chosen: list[ExperimentInfo], console: Console, quiet: bool) -> None:
        self.console, self.quiet, self.count = console, quiet, len(chosen)
        self.done, self.tasks, self.said = 0, dict[str, TaskID](), dict[str, float]()
        columns = (SpinnerColumn(), TextColumn("{task.fields[id]:<22}"), BarColumn(24), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("{task.description}"), console=console, transient=True)
        self.live = console.is_terminal and not quiet

    def __enter__(self) -> _Shown:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.live:
            self.bars.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bars away while something is printed, perhaps on another stream of the same terminal."""
        self.stop()
        yield
        if self.live:
            self.bars.start()

    def tell(self, name: str, share: float, what: str) -> None:
        if self.live:
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(what, total=1.0, id=name)
            self.bars.update(self.tasks[name], completed=share, description=what)
        elif not self.quiet and time.monotonic() - self.said.get(name, -_LINE_EVERY) >= _LINE_EVERY:
            self.said[name] = time.monotonic()
            self.console.print(f"{name}: {what}, {share:.0%}", highlight=False)

    def ended(self, result: Result, seconds: float) -> None:
        self.done += 1
        if self.live and result.id in self.tasks:
            self.bars.remove_task(self.tasks.pop(result.id))
        if not self.quiet:
            word = "met" if result.ok else "failed" if result.error else "missed"
            self.console.print(f"[{self.done}/{self.count}] {result.id}: {word} in {seconds:.0f} s", markup=False,
                               highlight=False)  # fmt: skip


def _print_result(console: Console, result: Result) -> None:
    from mooring.reproduce.page import allowed, mark, measured, number

    table = Table(box=None, pad_edge=False, header_style="dim", title=result.id, title_justify="left")
    for head in ("", "figure", "published", "ours", "confirmed by", "because"):
        table.add_column(head, overflow="fold")
    styles = {"✓": "green", "✗": "bold red", "·": "dim"}
    for check in result.checks:
        sign = mark(check)
        cells = (check.figure, number(check.published), measured(check), allowed(check), check.why)
        table.add_row(Text(sign, style=styles[sign]), *(Text(cell) for cell in cells))
    console.print(table)
    for note in result.notes:
        console.print(note, markup=False, highlight=False)
    if result.error:
        console.print(f"{result.id} failed: {result.error}", style="bold red", markup=False, highlight=False)
    console.print()


def _list(output: Path, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(info) for info in EXPERIMENTS.values()], indent=1, ensure_ascii=False))
        return OK
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("experiment", "what it shows", "source", "minutes", "quick"):
        table.add_column(
            head, no_wrap=head == "experiment", justify="right" if head in ("minutes", "quick") else "left"
        )
    for info in EXPERIMENTS.values():
        needs = f" Needs {', '.join(info.needs)}." if info.needs else ""
        full, quick = info.minutes
        table.add_row(info.id, info.claim + needs, info.source, f"{full:.3g}", f"{quick:.3g}")
    console.print(table)
    usual = [info for info in EXPERIMENTS.values() if not info.needs]
    full, quick = (sum(info.minutes[i] for info in usual) for i in (0, 1))
    console.print(
        f"\nMinutes are of one core. mooring reproduce ID writes a picture, data and figures to {output}/ID; "
        f"mooring reproduce all takes about {full:.0f} minutes of one core, {quick:.0f} with --quick, and leaves out "
        "what needs more than is installed.",
        highlight=False,
    )
    return OK
