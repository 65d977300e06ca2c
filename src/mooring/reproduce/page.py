"""The page of an output folder: every experiment with its picture and its figures, as Markdown."""

from __future__ import annotations

import html
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path

from mooring.finetune.files import write_text
from mooring.reproduce.driver import PICTURE, Result, load_result
from mooring.reproduce.outcome import Check
from mooring.reproduce.registry import EXPERIMENTS

PAGE = "index.md"


def write_page(output: Path) -> Path:
    """Write ``index.md`` about every experiment that has a result in the folder; its path."""
    results = [found for name in EXPERIMENTS if (found := load_result(output / name)) is not None]
    write_text(
        output / PAGE, "\n\n".join([_summary(results), *(_section(output, result) for result in results)]) + "\n"
    )
    return output / PAGE


def number(value: float | str | None) -> str:
    """A figure with four significant digits; words stay as they are."""
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) else f"{value:.4g}"


def allowed(check: Check) -> str:
    """The interval that confirms a figure."""
    if not check.asserted:
        return "—"
    if check.low is None:
        return f"≤ {number(check.high)}"
    if check.high is None:
        return f"≥ {number(check.low)}"
    return f"{number(check.low)} … {number(check.high)}"


def measured(check: Check) -> str:
    """Our value with its standard error."""
    return number(check.ours) + ("" if check.error is None else f" ± {check.error:.2g}")


def mark(check: Check) -> str:
    """Met, missed, or not asked."""
    return "·" if not check.asserted else "✓" if check.ok else "✗"


def _summary(results: Sequence[Result]) -> str:
    lines = ["# Reproduced", "", "Written by `mooring reproduce`; `mooring reproduce ID` repeats one.", ""]
    lines += ["| experiment | what it shows | source | figures met |", "|---|---|---|---|"]
    for result in results:
        asked = [check for check in result.checks if check.asserted]
        met = "failed" if result.error else f"{sum(check.ok for check in asked)} of {len(asked)}"
        form = " (quick)" if result.quick else ""
        lines.append(f"| [{result.id}](#{result.id}){form} | {result.info.claim} | {result.info.source} | {met} |")
    return "\n".join(lines)


def _section(output: Path, result: Result) -> str:
    parts = [f"## {result.id}", _docstring(result)]
    if result.error:
        parts.append(f"**Failed:** {result.error}")
    if (output / result.id / PICTURE).is_file():
        claim = html.escape(result.info.claim, quote=True)
        parts.append(f'<img src="{result.id}/{PICTURE}" width="860" alt="{claim}">')
    if result.checks:
        lines = ["| | figure | published | ours | confirmed by | because |", "|---|---|---|---|---|---|"]
        for check in result.checks:
            cells = (mark(check), check.figure, number(check.published), measured(check), allowed(check), check.why)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines))
    parts += result.notes
    data = ", ".join(f"[{name}.csv]({result.id}/{name}.csv)" for name in result.data)
    parts.append(f"`mooring reproduce {result.id}{' --quick' if result.quick else ''}`; data: {data}")
    return "\n\n".join(part for part in parts if part)


def _docstring(result: Result) -> str:
    return inspect.cleandoc(importlib.import_module(result.info.module).__doc__ or "")
