"""The ratios of a run beside their targets, and how they grow, as PNG and SVG on opaque paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mooring.bench.results import CURVES, Results, Row
from mooring.compare.plots.style import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PAPER, VERMILLION, style
from mooring.finetune.files import write_atomic
from mooring.reproduce.picture import COLOURS, panels

BENCH, GROWTH = "bench", "growth"
_LOOKS = {"yes": (GREEN, "o"), "no": (VERMILLION, "X"), "undecided": (ORANGE, "D"), None: (GREY, "s")}
_MEANS = {"yes": "target met", "no": "target missed", "undecided": "undecided", None: "other implementations"}
_MARKERS = ("o", "^", "D", "v", "P", "s", "X", "p")
_LINE = 0.215  # inches


def save(results: Results, folder: Path) -> list[str]:
    """Draw what there is; the names of the pictures that were written.

    Raises:
        OSError: where the folder cannot be written.
    """
    written = []
    with style(), mpl.rc_context({"svg.hashsalt": "mooring bench"}):
        if any(row.ratio for row in results.rows):
            _write(_ratios(results), folder, BENCH)
            written.append(BENCH)
        if results.points:
            _write(_growth(results), folder, GROWTH)
            written.append(GROWTH)
    return written


def _write(figure: Figure, folder: Path, name: str) -> None:
    FigureCanvasAgg(figure)
    png: Any = {"metadata": {"Software": None}, "dpi": 150}
    svg: Any = {"metadata": {"Date": None, "Creator": None}}
    write_atomic(folder / f"{name}.png", lambda path: figure.savefig(path, **png))
    write_atomic(folder / f"{name}.svg", lambda path: figure.savefig(path, **svg))


def _ratios(results: Results) -> Figure:
    models = [name for name in results.models if any(row.shapes == name and row.ratio for row in results.rows)]
    keys = list(dict.fromkeys((row.method, row.backend) for row in results.rows if row.ratio))
    several = len({backend for _, backend in keys if backend}) > 1
    names = [f"{method} ({backend})" if several and backend else method for method, backend in keys]
    left, each, top, bottom = 0.25 + 0.075 * max(map(len, names)), 2.3, 0.75, 0.5
    width, height = left + each * len(models) + 0.15, top + bottom + _LINE * len(keys)
    figure = Figure(figsize=(max(width, 5.4), height), facecolor=PAPER)
    for i, model in enumerate(models):
        box = ((left + i * each) / max(width, 5.4), bottom / height, (each - 0.15) / max(width, 5.4),
               _LINE * len(keys) / height)  # fmt: skip
        axes = figure.add_axes(box, facecolor="none")
        rows = {(row.method, row.backend): row for row in results.rows if row.shapes == model and row.ratio}
        _panel(axes, [rows.get(key) for key in keys])
        axes.set_title(results.models[model].title, x=0, fontsize=9)
        axes.set_yticks(range(len(keys)), names if i == 0 else [""] * len(keys), fontsize=7.5)
        axes.set_xlabel("× fused AdamW", fontsize=8)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5, label=_MEANS[verdict])
        for verdict, (colour, marker) in _LOOKS.items()
    ]
    handles.append(Line2D([], [], color=INK, marker="|", linestyle="none", markersize=9, markeredgewidth=1.6,
                          label="target"))  # fmt: skip
    figure.legend(handles=handles, loc="upper left", ncols=5, frameon=False, fontsize=7.5, borderaxespad=0.3,
                  handletextpad=0.1, columnspacing=1.0)  # fmt: skip
    return figure


def _panel(axes: Axes, rows: Sequence[Row | None]) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color=MUTED, linewidth=1)
    for y, row in enumerate(rows):
        if row is None or row.ratio is None:
            continue
        colour, marker = _LOOKS[row.met]
        if row.target is not None:
            axes.plot([row.target], [y], marker="|", markersize=9, markeredgewidth=1.6, color=INK, linestyle="none")
        if row.ratio.low is not None and row.ratio.high is not None:
            axes.plot([row.ratio.low, row.ratio.high], [y, y], color=colour, linewidth=1.6)
        axes.plot([row.ratio.median], [y], marker=marker, markersize=4.5, color=colour)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.06)
    _plain(axes)


def _plain(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of every decade, as plain numbers, thinned where they would touch."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _count(x: int) -> str:
    """A number, in units of 1024 where it is a multiple of them."""
    for power, unit in ((20, " Mi"), (10, " Ki")):
        if x >= 1 << power and x % (1 << power) == 0:
            return f"{x >> power}{unit}"
    return str(x)


def _growth(results: Results) -> Figure:
    curves = [curve for curve in CURVES if any(point.curve == curve for point in results.points)]
    series = list(dict.fromkeys((point.method, point.backend) for point in results.points))
    several = len({backend for _, backend in series}) > 1
    figure, axes = panels(len(curves), columns=2, width=3.6, height=2.7)
    labels = {"size": "elements", "rows": "rows", "tensors": "tensors", "threads": "threads"}
    for at, curve in zip(axes, curves, strict=True):
        for i, (method, backend) in enumerate(series):
            found = sorted(
                (p for p in results.points if (p.curve, p.method, p.backend) == (curve, method, backend)),
                key=lambda point: point.x,
            )
            colour = (BLUE, *COLOURS[:1], *COLOURS[2:])[i % len(COLOURS)]
            label = f"{method} ({backend})" if several and backend else method
            at.plot([p.x for p in found], [p.ratio.median for p in found], color=colour, label=label,
                    marker=_MARKERS[i % len(_MARKERS)], markersize=4)  # fmt: skip
            if all(p.ratio.low is not None and p.ratio.high is not None for p in found):
                at.fill_between([p.x for p in found], [p.ratio.low or 0 for p in found],
                                [p.ratio.high or 0 for p in found], color=colour, alpha=0.15, linewidth=0)  # fmt: skip
        at.axhline(1, color=MUTED, linewidth=1)
        places = sorted({p.x for p in results.points if p.curve == curve})
        at.set_xscale("log")
        at.set_xticks(places[:: max(1, -(-len(places) // 6))], minor=False)
        at.set_xticks([], minor=True)
        at.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(round(value))))
        at.set_yscale("log")
        at.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        at.yaxis.set_minor_locator(NullLocator())
        at.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        at.set_title(f"× fused AdamW, by {labels[curve]}")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=8)
    return figure
