"""What the experiments' pictures share: panels in one row or several, in the colours of the report."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mooring.compare.plots.style import BLUE, GREEN, GREY, OCHRE, ORANGE, PAPER, PURPLE, SKY, VERMILLION

COLOURS = (GREY, BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, OCHRE)
"""Told apart with any colour vision; the first is for a baseline."""


def panels(count: int, *, columns: int = 3, width: float = 4.0, height: float = 3.1) -> tuple[Figure, Sequence[Axes]]:
    """A figure with ``count`` panels, ``columns`` in a row; widths and heights of one panel in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), facecolor=PAPER, layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, axes
