"""Learning curves: the mean over seeds and its 95 % interval at every evaluation."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mooring.compare.metrics import Metric
from mooring.compare.plots.style import MUTED, label_margin, looks, margin_labels, new_axes
from mooring.compare.plots.svg import Panel
from mooring.compare.results import Results
from mooring.compare.statistics import summarise

Curves = dict[str, list[list[dict[str, float]]]]
Across = Literal["step", "gradients", "seconds"]
_WORDS = {
    "step": ("steps", "optimizer steps"),
    "gradients": ("gradients", "gradient evaluations"),
    "seconds": ("time", "seconds of training without evaluation, mean over seeds"),
}


def read_curves(results: Results) -> Curves:
    """Method → the evaluations of each finished seed."""
    return {
        label: [results.curve(trial) for trial in results.with_status("done") if trial.method == label]
        for label in results.labels
    }


def learning_curve(results: Results, curves: Curves, metric: Metric, x: Across, name: str) -> Panel | None:
    """One metric over steps, gradient evaluations or training seconds; None if it was not recorded."""
    look = looks(results.labels)
    percent = metric.unit == "percent"
    scale = 100 if percent else 1
    title = f"{metric.name} over {_WORDS[x][0]}{', %' if percent else ''}"
    figure, axes = new_axes(2.9, title, right=label_margin(results.labels))
    ends: dict[str, tuple[float, float]] = {}
    after_start: list[float] = []
    starts: list[float] = []
    for label, runs in curves.items():
        steps = sorted({row["step"] for run in runs for row in run if metric.key in row})
        across, middle, low, high = [], [], [], []
        for step in steps:
            rows = [row for run in runs for row in run if row["step"] == step and metric.key in row and x in row]
            if not rows:
                continue
            found = summarise([row[metric.key] for row in rows])
            across.append(sum(row[x] for row in rows) / len(rows))
            middle.append(scale * found.mean)
            low.append(scale * (found.mean if found.low is None else found.low))
            high.append(scale * (found.mean if found.high is None else found.high))
            if step > 0:
                after_start += [low[-1], high[-1]]
            else:
                starts.append(middle[-1])
        if across:
            colour = look[label].colour
            axes.fill_between(across, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(across, middle, color=colour)
            ends[label] = (across[-1], middle[-1])
    if not ends:
        return None
    axes.set_xlim(0, 1.01 * max(end[0] for end in ends.values()))
    axes.set_xlabel(_WORDS[x][1])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    _limit(axes, starts, after_start, percent)
    margin_labels(axes, ends, look)
    texts = [f"{label} ends at {end[1]:.4g}" for label, end in ends.items()]
    return Panel(name, figure, f"Learning curves: {title}. {'; '.join(texts)}.")


def _limit(axes: Axes, starts: list[float], after: list[float], percent: bool) -> None:
    """Scale to what happens after the start where the first steps would flatten everything else; say where it began."""
    values = after or starts
    low, high = min(values), max(values)
    if not percent and low > 0 and high > 30 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(y=0.06)
        axes.set_ylim(*axes.get_ylim())
        return
    whole = max([*values, *starts]) - min([*values, *starts])
    cut = bool(starts) and percent and whole > 2.5 * (high - low)
    if not cut:
        low, high = min([*values, *starts]), max([*values, *starts])
    pad = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - pad, min(high + pad, 100.5) if percent else high + pad)
    if cut:
        start = sum(starts) / len(starts)
        arrow, height, align = ("↓", 0.03, "bottom") if start < low else ("↑", 0.97, "top")
        text = f"start {start:.1f} {arrow}"
        axes.text(0.985, height, text, transform=axes.transAxes, fontsize=8, color=MUTED, va=align, ha="right")
