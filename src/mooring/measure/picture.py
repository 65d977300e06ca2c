"""The picture of a watched training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

History = dict[str, list[float]]
Run = tuple[str, History]

# The colours of the reports (Okabe and Ito 2008, darkened for white paper); the first is for a run on its own.
_COLOURS = ("#d55e00", "#5a6572", "#0072b2", "#009e73", "#b5559c", "#8d7300")
_INK, _MUTED, _GRID = "#1f2328", "#666e79", "#e3e6ea"
_NARROW = 6.0  # inches


def draw(runs: Sequence[Run], path: Path, width: float) -> None:
    """Four panels: effective step, drift, what the rules did, weight norm; one colour per run."""
    settings: Any = {
        **mpl.rcParamsDefault,
        "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.edgecolor": _MUTED, "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _MUTED,
        "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "axes.grid": True,
        "axes.axisbelow": True, "grid.color": _GRID, "grid.linewidth": 0.7, "xtick.major.size": 0,
        "ytick.major.size": 0, "ytick.minor.size": 0, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
        "text.parse_math": False, "pdf.fonttype": 42,
    }  # fmt: skip
    with mpl.rc_context(settings):
        columns = 2 if width >= _NARROW else 1
        rows = 4 // columns
        figure = Figure(figsize=(width, 2.35 * rows + 0.45), facecolor="white", layout="constrained")
        panels: list[Callable[[Axes, Sequence[Run]], None]] = [_effective, _drift, _rules, _weights]
        axes: list[Axes] = list(figure.subplots(rows, columns, sharex=True).flat)
        for one, panel in zip(axes, panels):
            panel(one, runs)
        last = max(history["step"][-1] for _, history in runs)
        for one in axes[-columns:]:
            one.set_xlabel("optimizer steps")
            one.set_xlim(0, 1.02 * last)
            one.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, handlelength=1.6,
            columnspacing=1.8, borderaxespad=0.2,
        )  # fmt: skip
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=200, metadata={"Software": None} if path.suffix == ".png" else None)


def _effective(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Effective step: mean, middle 80 % of tensors")
    for colour, (_, history) in zip(_colours(), runs):
        low, high = (history.get(f"model/step/effective/{end}") for end in ("low", "high"))
        if low and high:
            floor = [v if v > 0 else math.nan for v in low]
            axes.fill_between(history["step"], floor, high, color=colour, alpha=0.13, linewidth=0)
    for colour, (label, history) in zip(_colours(), runs):
        _line(axes, history, "model/step/effective", colour, label)
    _log_where_wide(axes, runs, "model/step/effective")


def _drift(axes: Axes, runs: Sequence[Run]) -> None:
    relative = any(_has(history, "model/drift/relative") for _, history in runs)
    axes.set_title("Drift from the start" + (", % of its norm" if relative else ""))
    for colour, (label, history) in zip(_colours(), runs):
        name, scale = ("model/drift/relative", 100.0) if relative else ("model/drift/distance", 1.0)
        _line(axes, history, name, colour, label, scale)
    axes.set_ylim(bottom=0)


# What a rule did, in the order of preference: the metric, the panel's title, and a fainter companion.
_ACTIVITY = (
    ("selective_projection/contracted", "Selective projection: % of tensors pulled back", None),
    ("radial_projection/by_row", "Radial projection: % of tensors projected", "radial_projection/by_tensor"),
    ("trust_ratio/ratio", "Trust ratio, mean over tensors", None),
    ("stable_decay/shrink", "Stable decay: shrink per step", None),
)


def _rules(axes: Axes, runs: Sequence[Run]) -> None:
    for metric, title, companion in _ACTIVITY:
        if not any(_has(history, f"model/{metric}") for _, history in runs):
            continue
        percent = "%" in title
        axes.set_title(title)
        for colour, (label, history) in zip(_colours(), runs):
            values = history.get(f"model/{metric}")
            if values is None:
                continue
            if companion is not None:
                values = [a + b for a, b in zip(values, history.get(f"model/{companion}", [0.0] * len(values)))]
            scaled = [v * (100 if percent else 1) for v in values]
            axes.plot(history["step"], scaled, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(history["step"], _running_mean(scaled), color=colour, label=label)
        if percent:
            axes.set_ylim(0, 100)
        return
    axes.set_title("Gradient norm")
    for colour, (label, history) in zip(_colours(), runs):
        _line(axes, history, "model/gradient/norm", colour, label)
    _log_where_wide(axes, runs, "model/gradient/norm")


def _weights(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_title("Weight norm")
    for colour, (label, history) in zip(_colours(), runs):
        _line(axes, history, "model/weights/norm", colour, label)
    axes.margins(y=0.1)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")


def _colours() -> list[str]:
    return [*_COLOURS] * 4


def _has(history: History, name: str) -> bool:
    return any(not math.isnan(v) for v in history.get(name, ()))


def _line(axes: Axes, history: History, name: str, colour: str, label: str, scale: float = 1.0) -> None:
    values = history.get(name, [math.nan] * len(history["step"]))
    axes.plot(history["step"], [scale * v for v in values], color=colour, label=label)


def _log_where_wide(axes: Axes, runs: Sequence[Run], name: str) -> None:
    """A logarithmic axis where the values span more than a factor of eight."""
    values = [v for _, history in runs for v in history.get(name, ()) if v > 0]
    if not values or max(values) <= 8 * min(values):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    decades = math.log10(max(values) / min(values))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(_power if decades > 2 else _plain))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: object) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(value)))}f}" if value > 1e-6 else f"{value:g}"


def _power(value: float, _: object) -> str:
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(round(math.log10(value))).translate(digits)


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean over a window of a twentieth of the run around each value."""
    half = max(1, len(values) // 40)
    out = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out
