"""The end of a comparison in the terminal: means, paired differences, and what they allow to be said."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from mooring.compare.metrics import Metric
from mooring.compare.results import Results
from mooring.compare.tables import Cell, Row, Table, build_table, headline_metrics, shift_metrics
from mooring.compare.verdict import judge

_TONES = {"better": "green", "worse": "red", "different": "bold", "": ""}
_ARROWS = {"+": "▲", "−": "▼"}


def print_results(console: Console, results: Results) -> None:
    """Print the table of means, the table of differences, the verdict and its warnings."""
    columns = headline_metrics(results)
    if not columns:
        console.print("No trial has finished.")
    else:
        shifts = shift_metrics(results)
        _print_means(console, results, build_table(results, [*columns[:2], *shifts, *columns[2:]]), set(shifts))
        if len(results.labels) > 1:
            _print_differences(console, results, build_table(results, [m for m in columns if m.unit != "seconds"]))
    verdict = judge(results)
    console.print()
    console.print(Text(verdict.sentence, style="bold"))
    for point in verdict.points:
        console.print(Padding(Text(point), (0, 0, 0, 2)))
    for warning in verdict.warnings:
        console.print(Text(f"! {warning}", style="yellow"))


def _print_means(console: Console, results: Results, table: Table, shifts: set[Metric]) -> None:
    seeds = len(results.config.seeds)
    grid = Grid(
        title=f"{results.config.task.name}: accuracy in %, means over {seeds} seed{'s' if seeds > 1 else ''}",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        pad_edge=False,
        header_style="dim",
    )
    grid.add_column("method", no_wrap=True)
    grid.add_column("seeds", justify="right")
    for metric in table.metrics:
        grid.add_column(metric.short, justify="right", style="dim" if metric in shifts else "")
    for row in table.rows:
        cells = [_mean(cell) for cell in row.cells]
        grid.add_row(Text(row.label, style=_row_style(row)), _count(row), *cells)
    console.print(grid)


def _row_style(row: Row) -> str:
    return {"reference": "italic dim", "baseline": "", "method": ""}[row.role]


def _count(row: Row) -> Text:
    if row.role == "reference":
        return Text("")
    text = Text(str(row.finished) if row.finished == row.planned else f"{row.finished}/{row.planned}")
    if row.failed:
        text.append(f" ✗{row.failed}", style="bold red")
    return text


def _mean(cell: Cell) -> Text:
    text = Text(cell.mean, style="bold" if cell.best else "")
    if cell.ratio:
        text.append(f" {cell.ratio}", style="dim")
    return text


def _print_differences(console: Console, results: Results, table: Table) -> None:
    grid = Grid(
        title=f"Paired differences to {escape(results.baseline)}, 95 % intervals; ▲▼ resolved",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        pad_edge=False,
        header_style="dim",
    )
    grid.add_column("method", no_wrap=True)
    for metric in table.metrics:
        grid.add_column(metric.short, justify="right", no_wrap=True)
    for row in table.rows:
        if row.role == "method":
            grid.add_row(row.label, *(_difference(cell) for cell in row.cells))
    console.print()
    console.print(grid)


def _difference(cell: Cell) -> Text:
    if not cell.difference:
        return Text("–", style="dim")
    arrow = _ARROWS.get(cell.difference[0], "") if cell.resolved else ""
    text = Text(f"{arrow}{cell.difference}", style=_TONES[cell.tone])
    text.append(f" {cell.interval}", style="dim")
    return text
