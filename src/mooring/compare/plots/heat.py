"""Tables of colour: drift by layer and method, shift by severity and method. The numbers stand in the cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.patches import Rectangle

from mooring.compare import metrics
from mooring.compare.plots.style import BLUE, MUTED, VERMILLION, WIDTH, new_axes, short, signed
from mooring.compare.plots.svg import Panel
from mooring.compare.results import Layer, Results
from mooring.compare.statistics import compare_paired, summarise

MOST_LAYERS = 36
LONGEST_LAYER = 30  # characters
_ROW = 0.235  # inches
_STRONGEST = 0.62  # opacity of the largest value; ink stays readable on it


@dataclass(frozen=True)
class _Cell:
    text: str
    colour: str
    strength: float  # 0 to 1
    bold: bool = False


def _draw(title: str, rows: Sequence[str], columns: Sequence[str], cells: list[list[_Cell]], name: str) -> Panel:
    left = 0.16 + 0.078 * max(map(len, rows))
    slanted = max(map(len, columns)) * 0.078 > (WIDTH - left - 0.2) / len(columns)
    head = 0.12 + (0.06 * max(map(len, columns)) if slanted else 0.1)
    right = 0.15 + (0.04 * max(map(len, columns)) if slanted else 0)
    height = 0.38 + head + _ROW * len(rows)
    figure, axes = new_axes(height, "", left=left, right=right, bottom=0.08, top=0.3 + head)
    figure.text(0.02 / WIDTH, 1 - 0.2 / height, title, fontsize=9.5, fontweight="bold", va="center")
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            box = Rectangle(
                (column + 0.02, row + 0.04), 0.96, 0.92, linewidth=0, facecolor=cell.colour,
                alpha=max(0.03, _STRONGEST * cell.strength),
            )  # fmt: skip
            axes.add_patch(box)
            weight = "bold" if cell.bold else "normal"
            axes.text(column + 0.5, row + 0.52, cell.text, ha="center", va="center", fontsize=8, fontweight=weight)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.xaxis.tick_top()
    turn: dict[str, Any] = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, **turn)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=8)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    lines = [
        f"{row}: {', '.join(f'{column} {cell.text}' for column, cell in zip(columns, line, strict=True))}"
        for row, line in zip(rows, cells, strict=True)
    ]
    return Panel(name, figure, f"{title}. {'; '.join(lines)}.")


def drift_by_layer(results: Results, name: str) -> Panel | None:
    """How far each layer moved, relative to its size at the start, mean over seeds."""
    by_method: dict[str, dict[str, list[float]]] = {}
    for trial in results.with_status("done"):
        for layer, relative in relative_drift(results.layers(trial)).items():
            by_method.setdefault(trial.method, {}).setdefault(layer, []).append(relative)
    labels = [label for label in results.labels if label in by_method]
    if not labels:
        return None
    layers = list(by_method[labels[0]])
    means = [[summarise(by_method[label][layer]).mean for label in labels] for layer in layers]
    largest = max((value for line in means for value in line if math.isfinite(value)), default=0.0) or 1.0
    cells = [[_Cell(_percent(value), BLUE, _share(value, largest)) for value in line] for line in means]
    names = [short(label) for label in labels]
    return _draw("Drift by layer, % of the layer's norm at the start", layer_names(layers), names, cells, name)


def layer_names(layers: Sequence[str]) -> list[str]:
    """The layers' names as the figure has room for them: without a beginning that all share, then their ends."""
    if max(map(len, layers)) <= LONGEST_LAYER:
        return list(layers)
    parts = [layer.split(".") for layer in layers]
    shared = 0
    while all(len(one) > shared + 1 and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    ends = [".".join(one[shared:]) for one in parts]
    return [end if len(end) <= LONGEST_LAYER else "…" + end[1 - LONGEST_LAYER :] for end in ends]


def relative_drift(layers: Sequence[Layer], most: int = MOST_LAYERS) -> dict[str, float]:
    """Layer → drift over norm; layers of a large model are joined by module until at most ``most`` remain.

    A parameter that starts at zero has no relative drift of its own and is left out, unless it is part of a module.
    """
    depth = max(layer.name.count(".") for layer in layers) + 1
    groups: dict[str, list[Layer]] = {layer.name: [layer] for layer in layers if layer.norm > 0}
    while len(groups) > most and depth > 1:
        depth -= 1
        groups = {}
        for layer in layers:
            groups.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
    found = {}
    for group, members in groups.items():
        norm = math.hypot(*(layer.norm for layer in members))
        if norm > 0:
            found[group] = math.hypot(*(layer.drift for layer in members)) / norm
    return found


def _percent(value: float) -> str:
    return f"{100 * value:.0f}" if value >= 0.1 else f"{100 * value:.1f}"


def _share(value: float, largest: float) -> float:
    # The square root keeps small drifts apart; the numbers carry the scale.
    return math.sqrt(max(0.0, value) / largest) if math.isfinite(value) else 0.0


def shifts_by_severity(results: Results, name: str) -> Panel | None:
    """Each shift and severity: the paired difference in accuracy to the baseline, in points."""
    rows = []
    for kind in results.kinds:
        rows.append(metrics.shift(kind))
        levels = metrics.severities(kind, results.keys)
        if levels:
            rows[-1:] = [metrics.shift(kind, level) for level in levels]
    found = {metric: compare_paired(results.values(metric), results.baseline) for metric in rows}
    labels = [label for label in results.labels if any(label in by_method for by_method in found.values())]
    if not labels:
        return None
    differences = [[100 * found[m][label].difference.mean for label in labels] for m in rows]
    largest = max(1.0, *(abs(value) for line in differences for value in line if math.isfinite(value)))
    cells = [
        [
            _Cell(
                signed(value, 1) if math.isfinite(value) else "–",
                BLUE if value > 0 else VERMILLION if value < 0 else MUTED,
                abs(value) / largest if math.isfinite(value) else 0.0,
                bold=found[metric][label].resolved,
            )
            for label, value in zip(labels, line, strict=True)
        ]
        for metric, line in zip(rows, differences, strict=True)
    ]
    return _draw(
        f"Accuracy under each shift, points to {short(results.baseline)}",
        [metric.short for metric in rows],
        [short(label) for label in labels],
        cells,
        name,
    )
