"""Medians of paired ratios with their exact interval, and whether a target is met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mooring.compare.statistics import LEVEL

Verdict = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A median and the interval that covers the true one at the level of 95 % or more.

    Attributes:
        n: how many values.
        median: their median.
        low: an order statistic; None below 6 values, where no interval reaches the level.
        high: the order statistic as far from the other end.
    """

    n: int
    median: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Three significant digits."""
        ends = "" if self.low is None or self.high is None else f" ({self.low:.3g}–{self.high:.3g})"
        return f"{self.median:.3g}{ends}"


def rank(n: int, level: float = LEVEL) -> int:
    """The largest k for which the k-th smallest and k-th largest of n values enclose the median; 0 for none.

    The number of values below the median is binomial with probability 1/2 whatever the distribution of the values is,
    so the interval misses with probability ``2 P(Bin(n, 1/2) < k)``.
    """
    total, k = 0, 0
    while k < n // 2 and 2 * (total + math.comb(n, k)) <= (1 - level) * 2**n:
        total += math.comb(n, k)
        k += 1
    return k


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The median and its distribution-free interval.

    Raises:
        ValueError: for no values, or one that is not finite.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n or not all(math.isfinite(value) for value in ordered):
        raise ValueError(f"median_interval needs finite values, got {list(values)!r}")
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    k = rank(n, level)
    return Interval(n, middle, *((ordered[k - 1], ordered[n - k]) if k else (None, None)))


def met(ratio: Interval, target: float) -> Verdict:
    """Whether the ratio is at most the target; undecided where the interval holds it or there is none."""
    if ratio.low is None or ratio.high is None or ratio.low <= target < ratio.high:
        return "undecided"
    return "yes" if ratio.high <= target else "no"
