"""From a matplotlib figure to files, and to SVG that lives in a page."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mooring.compare.plots.style import THEME
from mooring.finetune.files import write_atomic


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        name: its file name without ending, and its id in the page.
        figure: drawn, not yet saved.
        description: what it shows, for those who do not see it.
    """

    name: str
    figure: Figure
    description: str

    def save(self, folder: Path) -> None:
        """Write PNG and PDF, the same bytes every time."""
        FigureCanvasAgg(self.figure)
        write_atomic(folder / f"{self.name}.png", lambda path: self.figure.savefig(path, metadata={"Software": None}))
        write_atomic(
            folder / f"{self.name}.pdf", lambda path: self.figure.savefig(path, metadata={"CreationDate": None})
        )

    def inline(self) -> str:
        """The figure as an ``<svg>`` element: its own ids, the page's font and colours, a description."""
        out = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return themed(out.getvalue(), self.name, self.description)


def themed(svg: str, name: str, description: str) -> str:
    """Make a standalone SVG of matplotlib's fit to be set into a page.

    Args:
        svg: the file's text.
        name: put in front of every id, so that two figures of one page do not share one.
        description: read aloud in the figure's place.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = re.sub(r'font-family: [^;"]*;? ?', "", svg)
    for colour, variable in THEME.items():
        svg = re.sub(colour, f"var({variable})", svg, flags=re.IGNORECASE)
    view_box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    size = f' viewBox="{view_box[0][9:-1]}"' if view_box else ""
    opening = f'<svg role="img" aria-label="{escape(description)}" xmlns="http://www.w3.org/2000/svg"{size}>'
    return re.sub(r"\A<svg.*?>", lambda _: opening, svg, count=1, flags=re.DOTALL)
