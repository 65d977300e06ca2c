"""A mean over seeds with what its checks need: the standard error and Student's 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mooring.compare.statistics import summarise


@dataclass(frozen=True)
class Mean:
    """A mean over independent runs.

    Attributes:
        value: The mean; not-a-number where a run diverged.
        error: Its standard error.
        low: The interval's lower end.
        high: The interval's upper end.
        n: How many runs.
    """

    value: float
    error: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} … {self.high:+.2f})"


def mean_of(values: Sequence[float]) -> Mean:
    """The mean with its 95 % interval: Student's t below 20 values, bootstrap from 20 on.

    Example:
        >>> from mooring.reproduce.intervals import mean_of
        >>> found = mean_of([1.0, 2.0, 3.0])
        >>> round(found.value, 3), round(found.half, 3)
        (2.0, 2.484)
    """
    found = summarise(values)
    if found.sd is None or found.low is None or found.high is None:
        return Mean(found.mean, math.nan, math.nan, math.nan, found.n)
    return Mean(found.mean, found.sd / math.sqrt(found.n), found.low, found.high, found.n)
