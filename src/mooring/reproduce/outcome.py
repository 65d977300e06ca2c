"""What an experiment returns: figures beside what was published, the data behind them, a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
"""One line of a CSV file: names and numbers or words."""


@dataclass(frozen=True)
class Check:
    """One figure: what was published, what was measured, and which values would have confirmed it.

    Attributes:
        figure: What was measured, in a few words with its unit.
        ours: The measured value. Not-a-number never confirms anything.
        published: The value or the claim as its source states it; empty where there is none.
        low: The smallest value that confirms the claim; None: no bound.
        high: The largest.
        why: Where the bounds come from: a standard error, a rounding, a derivation, the source's own interval.
        error: Our standard error, where there is one.
        asserted: False for a finding that is shown without anything being asked of it.
    """

    figure: str
    ours: float
    published: float | str = ""
    low: float | None = None
    high: float | None = None
    why: str = ""
    error: float | None = None
    asserted: bool = True

    @property
    def ok(self) -> bool:
        """Whether the figure was met; a finding always is."""
        if not self.asserted:
            return True
        above = self.low is None or self.ours >= self.low
        return above and (self.high is None or self.ours <= self.high) and not math.isnan(self.ours)

    @classmethod
    def near(
        cls, figure: str, ours: float, published: float, tolerance: float, why: str, error: float | None = None
    ) -> Check:
        """``|ours - published| <= tolerance``."""
        return cls(figure, ours, published, published - tolerance, published + tolerance, why, error)

    @classmethod
    def above(
        cls, figure: str, ours: float, low: float, why: str, published: float | str = "", error: float | None = None
    ) -> Check:
        """``ours >= low``."""
        return cls(figure, ours, published, low=low, why=why, error=error)

    @classmethod
    def below(
        cls, figure: str, ours: float, high: float, why: str, published: float | str = "", error: float | None = None
    ) -> Check:
        """``ours <= high``."""
        return cls(figure, ours, published, high=high, why=why, error=error)

    @classmethod
    def rounded(cls, figure: str, ours: float, published: float, digits: int) -> Check:
        """Equal to the published value where it is rounded to so many digits after the point."""
        half = 0.5 * 10.0**-digits
        return cls.near(figure, ours, published, half, f"printed with {digits} digits")

    @classmethod
    def finding(
        cls, figure: str, ours: float, published: float | str = "", why: str = "", error: float | None = None
    ) -> Check:
        """A figure that is shown and not asserted; ``why`` says what it means."""
        return cls(figure, ours, published, why=why, error=error, asserted=False)


@dataclass
class Outcome:
    """Everything an experiment found.

    Attributes:
        checks: The figures, in the order in which they are shown.
        data: The numbers behind the picture: a CSV file for each name.
        picture: A matplotlib figure; saved as PNG.
        notes: Sentences or Markdown tables that a reader should take along.
    """

    checks: Sequence[Check]
    data: Mapping[str, Sequence[Row]]
    picture: Figure
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether every figure was met."""
        return all(check.ok for check in self.checks)
