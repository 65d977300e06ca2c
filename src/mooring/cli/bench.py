"""``mooring bench``: measure with progress, print the tables, write the folder."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mooring.bench.request import Request
from mooring.cli.stages import stages
from mooring.finetune.errors import SpecError

if TYPE_CHECKING:
    from mooring.bench.results import Results

OK, FAILED, INTERRUPTED = 0, 1, 130


def run_bench(request: Request, *, quiet: bool, as_json: bool) -> int:
    """Measure, write and print; the exit code is 1 where a step of ours was not the right one."""
    # Read when torch is loaded and when its profiler starts: both speak of themselves on standard error.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from mooring.bench import page
    from mooring.bench.run import bench

    errors = Console(stderr=True)
    folder = request.output_dir or _new_folder()
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{str(folder)!r} is a file; --output-dir must name a folder")
    if request.page is not None:
        page.check(request.page)
    with stages(errors, quiet) as tell:
        results = bench(request, tell)
    try:
        _write(results, folder, request.page)
    except OSError as error:
        raise SpecError(f"cannot write in {str(folder)!r}: {error.strerror or error}") from None
    if as_json:
        print(json.dumps(results.as_dict(), indent=1, allow_nan=False, ensure_ascii=False))
    elif quiet:
        print(folder)
    else:
        console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 150)
        _print(console, results)
        console.print(f"\nEverything measured, tables and pictures: {folder}", markup=False, highlight=False,
                      soft_wrap=True)  # fmt: skip
    if results.interrupted:
        return INTERRUPTED
    return FAILED if results.wrong else OK


def _new_folder() -> Path:
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H%M%S")
    return Path("runs") / f"{stamp}-bench"


def _write(results: Results, folder: Path, target: Path | None) -> None:
    from mooring.bench import page, picture
    from mooring.finetune.files import write_text

    results.write(folder)
    names = picture.save(results, folder)
    write_text(folder / "bench.md", page.section(results, {name: f"{name}.svg" for name in names}) + "\n")
    if target is not None:
        picture.save(results, target.parent / "images")
        page.fill(target, page.section(results, {name: f"images/{name}.svg" for name in names}))


def _print(console: Console, results: Results) -> None:
    from mooring.bench.tables import about, summary, tables

    for line in about(results):
        console.print(line, markup=False, highlight=False)
    styles = {"✓": "green", "✗": "bold red", "?": "yellow"}
    for found in tables(results):
        table = Table(box=None, pad_edge=False, header_style="dim")
        for i, head in enumerate(found.heads):
            table.add_column(head, justify="left" if i < found.words else "right", overflow="fold")
        for row in found.rows:
            table.add_row(*(Text(cell, style=styles.get(cell, "red" if "failed:" in cell else "")) for cell in row))
        console.print(f"\n{found.title}", markup=False, highlight=False, style="bold")
        console.print(table)
    console.print(f"\n{summary(results.rows)}.", markup=False, highlight=False)
