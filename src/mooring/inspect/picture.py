"""One picture of a checkpoint: drift, curvature, spectrum, slices, noise and calibration; 1200 pixels wide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mooring.compare.plots.style import BLUE, GREEN, GREY, INK, MUTED, PAPER, VERMILLION, style
from mooring.finetune.files import write_atomic
from mooring.inspect.results import Results
from mooring.measure.slices import Slice

_WIDTH, _DPI = 8.0, 150
_PATCH: Any = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}  # under text that a line would cross
_BARS = 18  # more layers than that are drawn by the modules that hold them


@dataclass(frozen=True)
class Bar:
    """A layer, or several under the name of what holds them."""

    name: str
    relative: float
    angle: float
    trace: float
    error: float


def save(results: Results, path: Path) -> None:
    """Draw what was measured and write it as PNG; a panel whose measure was not taken is left out."""
    panels: list[Callable[[Axes, Results], None]] = []
    bars = layer_bars(results)
    if results.drift is not None:
        panels.append(lambda axes, found: _drift(axes, found, bars))
    if results.blocks is not None:
        panels.append(lambda axes, found: _curvature(axes, found, bars))
    if results.density is not None:
        panels.append(_density)
    if results.slices:
        panels.append(_slices)
    if results.noise is not None:
        panels.append(_noise)
    if results.calibration is not None:
        panels.append(_reliability)
    with style():
        rows = max(1, -(-len(panels) // 2))
        layered = 1 if results.drift is not None or results.blocks is not None else 0
        tall = max(2.5, 0.19 * len(bars) + 0.75)
        heights = [tall if row < layered else 2.6 for row in range(rows)]
        layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.08)
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.45), facecolor=PAPER, layout=layout)
        figure.suptitle(_headline(results), x=0.012, ha="left", fontsize=9, color=MUTED)
        grid = figure.add_gridspec(rows, 2, height_ratios=heights)
        for i, panel in enumerate(panels):
            panel(figure.add_subplot(grid[i // 2, i % 2]), results)
        FigureCanvasAgg(figure)
        write_atomic(path, lambda target: figure.savefig(target, dpi=_DPI, metadata={"Software": None}))


def _headline(results: Results) -> str:
    data: Any = results.about["data"]
    parts = [str(results.about["name"]), f"{results.size:,} weights".replace(",", " ")]
    parts.append(f"loss {results.loss:.4g} on {data['name']} ({data['examples']} examples)")
    return "   ·   ".join(parts)


def layer_bars(results: Results) -> list[Bar]:
    """One bar per layer; where there are too many, one per module, as deep as there is room for."""
    rows = results.rows()
    names = [str(row["name"]) for row in rows]
    depth = max(name.count(".") for name in names) + 1
    while depth > 1 and len({_cut(name, depth) for name in names}) > _BARS:
        depth -= 1
    grouped: dict[str, list[dict[str, Any]]] = {}
    for name, row in zip(names, rows):
        grouped.setdefault(_cut(name, depth), []).append(row)
    if len(grouped) > _BARS:  # too many even at the top: the largest
        kept = sorted(grouped, key=lambda name: -sum(row["size"] for row in grouped[name]))[:_BARS]
        grouped = {name: grouped[name] for name in grouped if name in kept}
    return [_bar(name, members) for name, members in grouped.items()]


def _cut(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _bar(name: str, rows: list[dict[str, Any]]) -> Bar:
    moved = math.hypot(*(row["distance"] or 0.0 for row in rows))
    before = math.hypot(*(row["anchor_norm"] or 0.0 for row in rows))
    known = [row for row in rows if row["trace"] is not None]
    return Bar(
        name,
        moved / before if before else math.nan,
        rows[0]["angle"] if len(rows) == 1 and rows[0]["angle"] is not None else math.nan,
        math.fsum(row["trace"] for row in known) if known else math.nan,
        math.hypot(*(row["trace_error"] or 0.0 for row in known)),
    )


def _name_rows(axes: Axes, bars: list[Bar]) -> range:
    places = range(len(bars))
    names = [bar.name if len(bar.name) <= 26 else "…" + bar.name[-25:] for bar in bars]
    axes.set_yticks(list(places), names, fontsize=7.5)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return places


def _drift(axes: Axes, results: Results, bars: list[Bar]) -> None:
    axes.set_title("Drift from the anchor, % of its norm")
    places = _name_rows(axes, bars)
    values = [100 * bar.relative if math.isfinite(bar.relative) else 0.0 for bar in bars]
    axes.barh(places, values, height=0.62, color=BLUE)
    longest = max(values, default=0) or 1.0
    for place, bar, value in zip(places, bars, values):
        text = "anchor is 0" if math.isnan(bar.relative) else f"{math.degrees(bar.angle):.1f}°"
        if math.isnan(bar.relative) or not math.isnan(bar.angle):
            axes.text(value + 0.015 * longest, place, text, va="center", fontsize=7, color=MUTED, bbox=_PATCH)
    axes.set_xlim(0, 1.16 * longest)
    assert results.drift is not None
    total = results.drift.total
    axes.axvline(100 * total.relative, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0.5)
    axes.set_xlabel(f"dashed: all weights, {100 * total.relative:.1f} %, {math.degrees(total.angle):.1f}°", fontsize=8)


def _curvature(axes: Axes, results: Results, bars: list[Bar]) -> None:
    axes.set_title("Curvature: trace per layer")
    places = _name_rows(axes, bars)
    axes.barh(
        places, [bar.trace for bar in bars], height=0.62, color=VERMILLION, xerr=[bar.error for bar in bars],
        error_kw={"elinewidth": 0.9, "ecolor": INK},
    )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=0.7)
    if results.trace is not None:
        top = f",  λ₁ {results.top[0]:.4g}" if results.top else ""
        axes.set_xlabel(f"sum: {results.trace.value:.4g} ± {results.trace.error:.2g}{top}", fontsize=8)


def _density(axes: Axes, results: Results) -> None:
    density = results.density
    assert density is not None
    axes.set_title("Spectral density of the Hessian")
    grid, curve, error = density.grid.tolist(), density.density.tolist(), density.error.tolist()
    floor = 0.1 / density.size / (density.width * (2 * math.pi) ** 0.5)  # a tenth of one eigenvalue's peak
    low = [max(a - (e if math.isfinite(e) else 0), floor) for a, e in zip(curve, error)]
    high = [max(a + (e if math.isfinite(e) else 0), floor) for a, e in zip(curve, error)]
    axes.fill_between(grid, low, high, color=BLUE, alpha=0.22, linewidth=0)
    axes.fill_between(grid, floor, [max(a, floor) for a in curve], color=BLUE, alpha=0.13, linewidth=0)
    axes.plot(grid, [a if a > floor else math.nan for a in curve], color=BLUE, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_ylim(floor, 3 * max(curve))
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for i, value in enumerate(results.top or ()):
        label = f"{len(results.top or ())} largest, by Lanczos" if i == 0 else None
        axes.plot([value], [1.6 * floor], marker="v", color=VERMILLION, markersize=4, linestyle="none", label=label)
    if results.top:
        axes.legend(frameon=False, fontsize=7.5, loc="upper right", handletextpad=0.2)
    axes.set_xlabel("eigenvalue", fontsize=8)


_LINES = {"filter": (BLUE, "-"), "random": (GREY, "--"), "gradient": (VERMILLION, "-")}
_MEANING = {"filter": "random, filter-normalised", "random": "random", "gradient": "along the gradient"}


def _slices(axes: Axes, results: Results) -> None:
    axes.set_title("Loss along straight lines")
    named = set()
    for one in results.slices or ():
        colour, dash = _LINES[one.direction]
        label = None if one.direction in named else _MEANING[one.direction]
        named.add(one.direction)
        values = [y if math.isfinite(y) else math.nan for y in one.losses]
        axes.plot(one.steps, values, color=colour, linestyle=dash, linewidth=1.4, label=label)
    axes.plot([0], [results.loss], marker="o", color=INK, markersize=4, linestyle="none")
    cut = _slice_heights(axes, results.slices or [])
    axes.set_xlabel("step, in units of the weights' norm", fontsize=8)
    axes.legend(
        frameon=True,
        facecolor=PAPER,
        edgecolor="none",
        framealpha=0.85,
        fontsize=7.5,
        loc="lower right" if cut else "best",
    )


def _slice_heights(axes: Axes, slices: list[Slice]) -> bool:
    """Logarithmic where the loss spans a factor of 30; whether something far above the random lines was cut off."""
    finite = [(one.direction, y) for one in slices for y in one.losses if math.isfinite(y)]
    random = [y for direction, y in finite if direction != "gradient"]
    highest = 10 * max(random) if random else math.inf
    shown = [y for _, y in finite if y <= highest]
    cut = len(shown) < len(finite)
    if shown and 0 < 30 * min(shown) < max(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(shown) / 1.6, highest if cut else 1.6 * max(shown))
    elif cut:
        axes.set_ylim(top=highest)
    return cut


def _noise(axes: Axes, results: Results) -> None:
    axes.set_title("Rise of the loss under noise σ")
    rows = results.noise or []
    shown = [row for row in rows if row.rise.value > 0]
    if not shown:
        axes.text(0.5, 0.5, "no rise at any σ", transform=axes.transAxes, ha="center", color=MUTED)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(rows[0].sigma / 1.3, 1.3 * rows[-1].sigma)
    if results.trace is not None and results.trace.value > 0:
        ends = [rows[0].sigma / 1.3, 1.3 * rows[-1].sigma]
        line = [s * s / 2 * results.trace.value for s in ends]
        axes.plot(ends, line, color=GREY, linewidth=1.1, linestyle="--", label="σ²/2 · trace of the Hessian")
    lower = [min(_known(row.rise.error), 0.95 * row.rise.value) for row in shown]
    axes.errorbar(
        [row.sigma for row in shown], [row.rise.value for row in shown],
        yerr=[lower, [_known(row.rise.error) for row in shown]], color=VERMILLION, marker="o", markersize=4,
        linewidth=1.3, elinewidth=1, label="measured, ± standard error",
    )  # fmt: skip
    axes.set_xticks([row.sigma for row in rows], [f"{row.sigma:g}" for row in rows])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("σ of every weight", fontsize=8)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left")


def _reliability(axes: Axes, results: Results) -> None:
    found = results.calibration
    assert found is not None
    axes.set_title(f"Reliability on {results.calibrated_on}")
    most = max(one.count for one in found.bins)
    for one in found.bins:
        if one.count:
            strength = 0.25 + 0.75 * math.sqrt(one.count / most)
            middle, width = (one.low + one.high) / 2, 0.92 * (one.high - one.low)
            axes.bar(middle, one.accuracy, width=width, color=GREEN, alpha=strength)
            axes.plot([one.confidence], [one.accuracy], marker="o", color=INK, markersize=2.5, linestyle="none")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("confidence (darker: more examples)", fontsize=8)
    axes.set_ylabel("accuracy", fontsize=8)
    text = f"accuracy {100 * found.accuracy:.1f} %\nECE {100 * found.ece:.1f} %\nNLL {found.nll:.3f}"
    axes.text(0.03, 0.96, text, transform=axes.transAxes, va="top", fontsize=7.5)


def _known(error: float) -> float:
    return error if math.isfinite(error) else 0.0


def _plain(value: float, _: object) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else _power(value, _)


def _power(value: float, _: object) -> str:
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(round(math.log10(value))).translate(digits) if value > 0 else ""
