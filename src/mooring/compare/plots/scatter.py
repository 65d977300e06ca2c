"""Accuracy against accuracy, every seed a dot: out of distribution over in distribution, retention over both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from mooring.compare.metrics import Metric
from mooring.compare.plots.style import GRID, MUTED, PAPER, STAR, label_margin, looks, margin_labels, new_axes
from mooring.compare.plots.svg import Panel
from mooring.compare.results import Results
from mooring.compare.statistics import Summary, summarise

_TICKS: tuple[tuple[float, ...], ...] = (
    (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5),
    tuple(range(2, 100, 2)),
    tuple(range(1, 100)),
    tuple(tick / 5 for tick in range(1, 500)),
)
"""Percentages to mark, coarse to fine; the first that gives three readable ticks is used."""
_EDGE = 0.001  # an accuracy of 0 or 1 has no logit; it is drawn at the edge


def logit(accuracy: float) -> float:
    """log(a / (1 - a)), with 0 and 1 moved to the edge of the scale."""
    inside = min(max(accuracy, _EDGE), 1 - _EDGE)
    return math.log(inside / (1 - inside))


def accuracy_scatter(results: Results, x: Metric, y: Metric, name: str, *, with_start: bool = True) -> Panel:
    """Seeds as dots, means with 95 % intervals, the untouched start as a star, on logit axes."""
    look = looks(results.labels)
    title = f"{y.name} over {x.title}{'' if with_start else ', methods only'}"
    figure, axes = new_axes(3.5, title, right=label_margin(results.labels))
    dots: list[tuple[float, float]] = []
    means: dict[str, tuple[float, float]] = {}
    for label in results.labels:
        own_x, own_y = results.values(x)[label], results.values(y)[label]
        seeds = sorted(set(own_x) & set(own_y))
        if not seeds:
            continue
        points = [(logit(own_x[seed]), logit(own_y[seed])) for seed in seeds]
        dots += points
        colour, marker = look[label].colour, look[label].marker
        axes.scatter(
            [p[0] for p in points],
            [p[1] for p in points],
            s=13,
            marker=marker,
            color=colour,
            alpha=0.32,
            linewidths=0,
            zorder=2,
        )
        across, up = (summarise([own[seed] for seed in seeds]) for own in (own_x, own_y))
        means[label] = (logit(across.mean), logit(up.mean))
        _cross(axes, across, up, colour)
        axes.plot(*means[label], marker=marker, color=colour, markersize=7, markeredgecolor=PAPER, zorder=5)
    if with_start:
        dots += _star(axes, results, x, y)
    _limits_and_ticks(axes, dots)
    low, high = max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high and y.key.startswith("ood"):
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlabel(f"{x.name}, %")
    axes.set_ylabel(f"{y.name}, %")
    margin_labels(axes, means, look)
    return Panel(name, figure, _describe(results, x, y, with_start))


def _cross(axes: Axes, across: Summary, up: Summary, colour: str) -> None:
    centre = logit(across.mean), logit(up.mean)
    if across.low is not None and across.high is not None:
        axes.plot([logit(across.low), logit(across.high)], [centre[1]] * 2, color=colour, linewidth=1.4, zorder=4)
    if up.low is not None and up.high is not None:
        axes.plot([centre[0]] * 2, [logit(up.low), logit(up.high)], color=colour, linewidth=1.4, zorder=4)


def _star(axes: Axes, results: Results, x: Metric, y: Metric) -> list[tuple[float, float]]:
    start_x, start_y = results.zero_shot_values(x), results.zero_shot_values(y)
    seeds = sorted(set(start_x) & set(start_y))
    if not seeds:
        return []
    points = [(logit(start_x[seed]), logit(start_y[seed])) for seed in seeds]
    axes.scatter(
        [p[0] for p in points], [p[1] for p in points], s=16, marker="*", color=STAR, alpha=0.4, linewidths=0, zorder=2
    )
    centre_x, centre_y = (logit(summarise([own[seed] for seed in seeds]).mean) for own in (start_x, start_y))
    axes.plot([centre_x], [centre_y], marker="*", markersize=13, color=STAR, markeredgecolor=PAPER, zorder=5)
    axes.annotate("zero-shot", (centre_x, centre_y), xytext=(8, -3), textcoords="offset points", fontsize=8.5, va="top")
    return points


def _limits_and_ticks(axes: Axes, dots: Sequence[tuple[float, float]]) -> None:
    for axis, values in (("x", [d[0] for d in dots]), ("y", [d[1] for d in dots])):
        low, high = min(values), max(values)
        pad = max(0.06 * (high - low), 0.05)
        low, high = low - pad, high + pad
        ticks = next((found for found in (_readable(c, low, high) for c in _TICKS) if len(found) > 2), [])
        getattr(axes, f"set_{axis}lim")(low, high)
        getattr(axes, f"set_{axis}ticks")([logit(t / 100) for t in ticks], [f"{t:.3g}" for t in ticks])
    axes.tick_params(grid_color=GRID)


def _readable(ticks: Sequence[float], low: float, high: float) -> list[float]:
    kept: list[float] = []
    for tick in reversed(ticks):  # the dense end of a logit axis is the one where methods differ
        place = logit(tick / 100)
        if low <= place <= high and (not kept or logit(kept[-1] / 100) - place > 0.1 * (high - low)):
            kept.append(tick)
    return kept[::-1]


def _describe(results: Results, x: Metric, y: Metric, with_start: bool) -> str:
    texts = []
    for label in results.labels:
        own_x, own_y = (list(results.values(metric)[label].values()) for metric in (x, y))
        if own_x and own_y:
            texts.append(f"{label} {x.show(summarise(own_x).mean)} and {y.show(summarise(own_y).mean)}")
    start = ", with the untouched start as a star" if with_start else ""
    return f"Scatter of {y.title} over {x.title} in percent, one dot per seed{start}. Means: {'; '.join(texts)}."
