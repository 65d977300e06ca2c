"""Paired differences to the baseline with their intervals: what a comparison is about."""

from __future__ import annotations

from mooring.compare.metrics import Metric
from mooring.compare.plots.style import INK, MUTED, PAPER, WIDTH, looks, new_axes, short
from mooring.compare.plots.svg import Panel
from mooring.compare.results import Results
from mooring.compare.statistics import compare_paired
from mooring.compare.tables import show_interval

_ROW = 0.29  # inches


def difference_intervals(results: Results, metric: Metric, name: str) -> Panel | None:
    """A dot and an interval per method; filled where the difference is resolved. None without a pair."""
    found = compare_paired(results.values(metric), results.baseline)
    if not found:
        return None
    look = looks(results.labels)
    unit = ", points" if metric.unit == "percent" else ""
    scale = 100 if metric.unit == "percent" else 1
    left = 0.2 + 0.085 * max(len(short(label)) for label in found)
    right = 1.55
    title = f"{metric.name}: difference to {short(results.baseline)}{unit}"
    figure, axes = new_axes(0.82 + _ROW * len(found), title, left=left, right=right, bottom=0.4, top=0.36)
    axes.axvline(0, color=MUTED, linewidth=1)
    for row, (label, comparison) in enumerate(found.items()):
        colour, marker = look[label].colour, look[label].marker
        difference = comparison.difference
        if difference.low is not None and difference.high is not None:
            axes.plot([scale * difference.low, scale * difference.high], [row, row], color=colour, linewidth=2)
        axes.plot(
            [scale * difference.mean], [row], marker=marker, markersize=7, color=colour, markeredgewidth=1.5,
            markeredgecolor=colour, markerfacecolor=colour if comparison.resolved else PAPER,
        )  # fmt: skip
        text = f"{metric.show_difference(difference.mean)} {show_interval(metric, difference, signed=True)}"
        axes.text(
            1.04, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=INK,
            fontweight="bold" if comparison.resolved else "normal",
        )  # fmt: skip
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks(range(len(found)), [short(label) for label in found])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=max(3, round(2.2 * (WIDTH - left - right))))
    texts = [
        f"{label} {metric.show_difference(c.difference.mean)} {show_interval(metric, c.difference, signed=True)}"
        f" ({'resolved' if c.resolved else 'not resolved'}, n={len(c.seeds)})"
        for label, c in found.items()
    ]
    return Panel(name, figure, f"{title}, with 95 % intervals. {'; '.join(texts)}.")
