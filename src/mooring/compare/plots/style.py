"""Colours, markers and axes shared by every figure.

The colours are those of Okabe and Ito (2008), chosen to be told apart with any colour vision, two of them darkened for
white paper. A method keeps its colour and its marker in every figure of every report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mooring.compare.metrics import MINUS
from mooring.compare.plots.fonts import families

INK, MUTED, GRID, PAPER = "#1f2328", "#666e79", "#e3e6ea", "#ffffff"
GREY, BLUE, VERMILLION, GREEN = "#5a6572", "#0072b2", "#d55e00", "#009e73"
PURPLE, ORANGE, SKY, OCHRE = "#b5559c", "#e69f00", "#38a1db", "#8d7300"
STAR = "#c99700"

THEME = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper", GREY: "--grey", BLUE: "--blue",
    VERMILLION: "--vermillion", GREEN: "--green", PURPLE: "--purple", ORANGE: "--orange", SKY: "--sky",
    OCHRE: "--ochre", STAR: "--star",
}  # fmt: skip
"""The page's variable for each colour; in the page, figures change with its light and dark scheme."""

WIDTH = 4.8  # inches, of every figure; the page shows two beside each other, or one on a telephone


LONGEST = 16  # characters of a method's name in a figure


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere."""

    colour: str
    marker: str


_KNOWN = {
    "adamw": Look(GREY, "o"),
    "sgd": Look(PURPLE, "s"),
    "adamp": Look(BLUE, "^"),
    "adams": Look(GREEN, "D"),
    "adamspd": Look(VERMILLION, "v"),
    "sgdp": Look(SKY, "P"),
    "sgds": Look(OCHRE, "X"),
    "sgdspd": Look(ORANGE, "p"),
}
_COLOURS = (SKY, OCHRE, ORANGE, PURPLE, BLUE, GREEN, VERMILLION, GREY)
_MARKERS = ("<", ">", "h", "8", "P", "X", "p", "d")


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for every method: the built-in ones keep theirs, the others take what is free."""
    taken = {_KNOWN[label].colour for label in labels if label in _KNOWN}
    colours = itertools.cycle([*(c for c in _COLOURS if c not in taken), *(c for c in _COLOURS if c in taken)])
    markers = itertools.cycle(_MARKERS)
    return {
        label: _KNOWN[label] if label in _KNOWN else Look(next(colours), next(markers))
        for label in labels
    }  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for our figures, and only while they are drawn and saved."""
    settings: Any = {
        **mpl.rcParamsDefault,  # whatever the user's matplotlibrc says
        "font.family": families(),
        "font.size": 9,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.labelsize": 9,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "text.color": INK,
        "text.parse_math": False,  # a dollar in a label is a dollar
        "lines.linewidth": 1.7,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
        "pdf.fonttype": 42,
        "savefig.dpi": 200,
    }
    with mpl.rc_context(settings):
        yield


def new_axes(
    height: float, title: str, *, left: float = 0.62, right: float = 0.2, bottom: float = 0.5, top: float = 0.38
) -> tuple[Figure, Axes]:
    """A figure of the common width with one pair of axes; margins in inches, so that figures line up."""
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.set_title(title, x=-(left - 0.02) / (WIDTH - left - right))
    return figure, axes


def short(label: str) -> str:
    """A method's name as figures have room for it."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def label_margin(labels: Sequence[str]) -> float:
    """The right margin, in inches, that direct labels need."""
    return 0.34 + 0.082 * max(len(short(label)) for label in labels)


def margin_labels(axes: Axes, points: dict[str, tuple[float, float]], look: dict[str, Look]) -> None:
    """Name each method beside the axes, at the height of its point, moved apart where names would overlap.

    Args:
        axes: with their final limits.
        points: method → the point in data coordinates that its name belongs to.
        look: how methods are drawn.
    """
    if not points:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {label: float(to_axes.transform(point)[1]) for label, point in points.items()}
    line = 12.5 / 72 / (axes.bbox.height / axes.figure.dpi)
    for label, height in spread(heights, line).items():
        colour = look[label].colour
        axes.annotate(
            "",
            xy=points[label],
            xycoords="data",
            xytext=(1.035, height),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 3},
        )
        axes.plot(
            [1.045], [height], marker=look[label].marker, color=colour, markersize=4.5, transform=axes.transAxes,
            clip_on=False, linestyle="none",
        )  # fmt: skip
        axes.text(1.075, height, short(label), transform=axes.transAxes, va="center", ha="left", fontsize=8.5)


def spread(heights: dict[str, float], gap: float, low: float = 0.0, high: float = 1.0) -> dict[str, float]:
    """Move heights apart to at least ``gap``, as little as possible, inside ``[low, high]`` if they fit."""
    order = sorted(heights, key=lambda label: heights[label])
    groups: list[tuple[list[str], float]] = []  # labels that touch, and the height of their middle
    for label in order:
        groups.append(([label], min(max(heights[label], low), high)))
        while len(groups) > 1:
            (below, under), (above, over) = groups[-2:]
            if over - under >= gap * (len(below) + len(above)) / 2:
                break
            merged = below + above
            middle = (under * len(below) + over * len(above)) / len(merged)
            half = gap * (len(merged) - 1) / 2
            groups[-2:] = [(merged, max(low + half, min(high - half, middle)))]
    return {
        label: middle + gap * (index - (len(labels) - 1) / 2)
        for labels, middle in groups
        for index, label in enumerate(labels)
    }


def signed(value: float, digits: int) -> str:
    """A number with its sign, the minus as wide as the plus."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text
