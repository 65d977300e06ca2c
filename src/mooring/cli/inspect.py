"""``mooring inspect``: load, measure with progress, print a table, write the folder."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mooring.cli.stages import stages
from mooring.finetune.errors import SpecError, TrialError
from mooring.inspect.request import Request

if TYPE_CHECKING:
    from mooring.inspect.results import Results

OK, FAILED = 0, 1


def run_inspect(request: Request, *, quiet: bool, as_json: bool) -> int:
    """Measure a checkpoint, write what was found, and print it; the exit code says whether there was anything."""
    from mooring.inspect.run import inspect
    from mooring.inspect.subject import find_subject

    errors = Console(stderr=True)
    folder = request.output_dir or _new_folder(request.checkpoint)
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{str(folder)!r} is a file; --output-dir must name a folder")
    try:
        with stages(errors, quiet) as stage:
            stage("loading", None, None)
            results = inspect(request, find_subject(request), stage)
            stage("writing", None, None)
            results.write(folder)
    except TrialError as error:
        errors.print(f"mooring: {error}", markup=False, highlight=False)
        return FAILED
    except OSError as error:
        raise SpecError(f"cannot write in {str(folder)!r}: {error.strerror or error}") from None
    if as_json:
        print(json.dumps(results.as_dict(), indent=2, ensure_ascii=False))
    elif quiet:
        print(folder)
    else:
        console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
        _print(console, results)
        console.print(
            f"\nPicture, layers and everything measured: {folder}", markup=False, highlight=False, soft_wrap=True
        )
    return OK


def _new_folder(checkpoint: Path) -> Path:
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H%M%S")
    stem = checkpoint.resolve().name.removesuffix(".safetensors") or "checkpoint"
    folder = Path("runs") / f"{stamp}-inspect-{stem}"
    count = 1
    while folder.exists():
        count += 1
        folder = folder.with_name(f"{stamp}-inspect-{stem}-{count}")
    return folder


def _print(console: Console, results: Results) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for name, value, meaning in _summary(results):
        table.add_row(Text(name), Text(value, style="bold"), Text(meaning, style="dim"))
    console.print(table)
    rows = results.rows()
    if results.drift is not None or results.blocks is not None:
        console.print()
        console.print(_layers(rows, drift=results.drift is not None, curvature=results.blocks is not None))
    for note in results.notes:
        console.print(Text(f"! {note}", style="yellow"))


def _summary(results: Results) -> Iterator[tuple[str, str, str]]:
    """What was measured, its value, what it means."""
    data = results.about["data"]
    yield "loss", f"{results.loss:.5g}", f"on {data['name']}, {data['examples']} of {data['available']} examples"
    if results.drift is not None:
        total = results.drift.total
        moved = f"{total.distance:.4g}  ({100 * total.relative:.2f} %, {math.degrees(total.angle):.2f}°)"
        yield "drift", moved, f"from {results.about['anchor']}: distance, relative to its norm, angle"
    yield from _curvature(results)
    for row in results.noise or ():
        implied = f"rise of the loss; implies a trace of {row.trace.value:.4g} ± {row.trace.error:.2g}"
        yield f"noise, σ = {row.sigma:g}", f"{row.rise.value:.3g} ± {row.rise.error:.1g}", implied
    if results.calibration is not None:
        one = results.calibration
        score = f"ECE {100 * one.ece:.2f} %  Brier {one.brier:.4f}  NLL {one.nll:.4f}"
        mass = f"equal mass: {100 * one.adaptive_ece:.2f} %"
        yield "calibration", score, f"on {results.calibrated_on}, accuracy {100 * one.accuracy:.2f} %; {mass}"
    if results.gap is not None:
        gap = results.gap
        share = f"{100 * gap.accuracy:.2f} ± {100 * gap.accuracy_error:.2g} %"
        yield "generalisation gap", f"{gap.loss:.4f} ± {gap.loss_error:.2g}  {share}", "in loss and in accuracy"
    if results.bound is not None:
        yield "flatness term", f"{results.bound:.4g}", "sqrt(trace · drift² / examples), after Ju et al. 2022"


def _curvature(results: Results) -> Iterator[tuple[str, str, str]]:
    if results.trace is not None:
        found = f"{results.trace.value:.4g} ± {results.trace.error:.2g}"
        yield "trace of the Hessian", found, f"{results.trace.probes} probes, {str(results.method).replace('_', ' ')}"
    if results.top:
        yield "largest eigenvalues", "  ".join(f"{value:.4g}" for value in results.top), "by Lanczos iteration"
    if results.density is not None and results.positive_trace is not None:
        low = min(float(nodes[0]) for nodes in results.density.nodes)
        high = max(float(nodes[-1]) for nodes in results.density.nodes)
        negative = results.density.trace_of(lambda x: x.clamp(max=0)).value
        parts = f"positive eigenvalues add up to {results.positive_trace.value:.4g}, negative ones to {negative:.3g}"
        yield "spectrum", f"{low:.3g} to {high:.4g}", parts


def _layers(rows: list[dict[str, float | str | None]], *, drift: bool, curvature: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer")
    for head in (
        "weights",
        *(("drift", "relative", "angle") if drift else ()),
        *(("trace", "±", "λ₁") if curvature else ()),
    ):
        table.add_column(head, justify="right")
    for row in rows:
        cells = [str(row["name"]), str(row["size"])]
        if drift:
            cells += [
                _cell(row["distance"]),
                _cell(row["relative"], 100, " %"),
                _cell(row["angle"], 180 / math.pi, "°"),
            ]
        if curvature:
            cells += [_cell(row["trace"]), _cell(row["trace_error"]), _cell(row["top"])]
        table.add_row(*cells)
    return table


def _cell(value: float | str | None, factor: float = 1.0, unit: str = "") -> str:
    return "–" if value is None else f"{factor * float(value):.3g}{unit}"
