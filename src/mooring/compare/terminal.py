"""The end of a comparison in the terminal: means, paired differences, and what they allow to be said."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from mooring.compare.equal_cost import views
from mooring.compare.metrics import Metric
from mooring.compare.results import Results
from mooring.compare.tables import Cell, Row, Table, build_table, headline_metrics, shift_metrics
from mooring.compare.verdict import judge

_TONES = {"better": "green", "worse": "red", "different": "bold", "": ""}


def print_results(console: Console, results: Results) -> None:
    """Print the means, the differences, the verdict and its warnings; in a narrow terminal the tables are split."""
    columns = headline_metrics(results)
    if not columns:
        console.print("No trial has finished.")
    else:
        shifts = shift_metrics(results)
        everything = _means(results, build_table(results, [*columns[:2], *shifts, *columns[2:]]), shifts)
        if _fits(console, everything):
            console.print(everything)
        else:
            console.print(_means(results, build_table(results, columns), ()))
            if shifts:
                console.print()
                console.print(_means(results, build_table(results, shifts), (), title="Each shift, accuracy in %"))
        if len(results.labels) > 1:
            console.print()
            table = build_table(results, [metric for metric in columns if not metric.is_cost])
            grid = _differences(results, table, " ")
            console.print(grid if _fits(console, grid) else _differences(results, table, "\n"))
        for view in views(results):
            if view.cost == "gradients":
                console.print()
                console.print(_means(results, view.table, (), title=f"{view.title}, schedules cut off"))
    verdict = judge(results)
    console.print()
    console.print(Text(verdict.sentence, style="bold"))
    for point in verdict.points:
        console.print(Padding(Text.assemble((f"{point.topic}: ", "bold"), point.text), (0, 0, 0, 2)))
    for warning in verdict.warnings:
        console.print(Text(f"! {warning}", style="yellow"))


def _fits(console: Console, grid: Grid) -> bool:
    return console.measure(grid, options=console.options.update(width=1000)).maximum <= console.width


def _grid(title: str) -> Grid:
    return Grid(
        title=escape(title), title_justify="left", title_style="bold", box=None, padding=(0, 1), pad_edge=False,
        header_style="dim",
    )  # fmt: skip


def _means(results: Results, table: Table, quiet: Sequence[Metric], title: str = "") -> Grid:
    seeds = len(results.config.seeds)
    over = f"means over {seeds} seed{'s' if seeds > 1 else ''}"
    grid = _grid(title or f"{results.config.task.name}: accuracy in %, {over}")
    grid.add_column("method", no_wrap=True)
    grid.add_column("seeds", justify="right", no_wrap=True)
    for metric in table.metrics:
        grid.add_column(metric.short, justify="right", no_wrap=True, style="dim" if metric in quiet else "")
    for row in table.rows:
        cells = [_mean(cell) for cell in row.cells]
        grid.add_row(Text(row.label, style=_row_style(row)), _count(row), *cells)
    return grid


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


def _differences(results: Results, table: Table, joint: str) -> Grid:
    grid = _grid(f"Differences to {results.baseline}, paired by seed, 95 % intervals; ▲▼ resolved")
    grid.add_column("method", no_wrap=True)
    for metric in table.metrics:
        grid.add_column(metric.short, justify="right", no_wrap=True)
    for row in table.rows:
        if row.role == "method":
            grid.add_row(row.label, *(_difference(cell, joint) for cell in row.cells))
    return grid


def _difference(cell: Cell, joint: str) -> Text:
    if not cell.difference:
        return Text("–", style="dim")
    return Text.assemble((f"{cell.arrow}{cell.difference}", _TONES[cell.tone]), (f"{joint}{cell.interval}", "dim"))
