"""A number that was estimated from several draws, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over probes.

    Attributes:
        value: the mean.
        error: its standard error; NaN for a single probe.
        probes: how many.
    """

    value: float
    error: float
    probes: int

    def scaled(self, factor: float) -> Estimate:
        """The estimate of ``factor`` times as much."""
        return Estimate(factor * self.value, abs(factor) * self.error, self.probes)


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of independent draws and ``sqrt(variance / n)``, the variance with n - 1 in its denominator."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, 1)
    variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
    return Estimate(mean, math.sqrt(variance / n), n)
