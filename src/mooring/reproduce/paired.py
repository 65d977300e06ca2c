"""What experiments that pair their methods by seed share: differences, their intervals in words, changes in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mooring.compare.statistics import Summary
from mooring.reproduce.outcome import Check


def minus(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Differences, seed by seed."""
    return [a - b for a, b in zip(values, others, strict=True)]


def percent(change: Summary) -> Summary:
    """The mean of a logarithm's differences as a change in percent: ends transformed, the deviation to first order."""

    def as_percent(x: float | None) -> float | None:
        return None if x is None else 100 * math.expm1(x)

    sd = None if change.sd is None else 100 * math.exp(change.mean) * change.sd
    mean = 100 * math.expm1(change.mean)
    return Summary(change.n, mean, sd, as_percent(change.low), as_percent(change.high), change.interval)


def interval(change: Summary, digits: int = 2) -> str:
    """The 95 % interval in words."""
    if change.low is None or change.high is None:
        return "none"
    return f"{change.low:+.{digits}f} … {change.high:+.{digits}f}"


def finding(figure: str, change: Summary, published: str = "", why: str = "") -> Check:
    """A difference that is shown with its 95 % interval and not asserted."""
    text = f"{why}; " if why else ""
    return Check.finding(figure, change.mean, published, f"{text}95 % interval {interval(change)}", change.error)
