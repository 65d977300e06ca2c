"""The interval of a median against scipy's, its coverage, and what it decides about a target."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, quantile_test

from mooring.bench.statistics import Interval, median_interval, met, rank


@pytest.mark.parametrize("n", [6, 7, 11, 30, 31, 32, 101])
def test_interval_is_that_of_scipy(n: int) -> None:
    values = np.random.default_rng(n).lognormal(size=n)
    found = median_interval(values.tolist())
    expected = quantile_test(values, p=0.5).confidence_interval(0.95)
    assert found.median == pytest.approx(float(np.median(values)), rel=1e-15)
    # scipy's test is of the quantile in the sample, whose interval may reach one order statistic further down.
    ordered = np.sort(values)
    assert found.high == expected.high
    assert expected.low in (found.low, ordered[rank(n) - 2] if rank(n) > 1 else found.low)


@pytest.mark.parametrize("n", range(1, 80))
def test_rank_is_the_largest_that_covers(n: int) -> None:
    def coverage(k: int) -> float:
        return 1 - 2 * float(binom.cdf(k - 1, n, 0.5))

    k = rank(n)
    assert k == 0 or coverage(k) >= 0.95
    assert coverage(k + 1) < 0.95 or k + 1 > n // 2


def test_few_values_have_no_interval() -> None:
    assert rank(5) == 0 and rank(6) == 1 and rank(31) == 10
    assert median_interval([3.0, 1.0, 2.0, 5.0]) == Interval(4, 2.5, None, None)
    assert str(Interval(4, 2.5, None, None)) == "2.5"
    with pytest.raises(ValueError, match="finite"):
        median_interval([1.0, math.nan])
    with pytest.raises(ValueError, match="finite"):
        median_interval([])


def test_the_interval_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).exponential(size=(2000, 31))
    intervals = [median_interval(row) for row in draws.tolist()]
    covered = sum(i.low is not None and i.high is not None and i.low <= math.log(2) <= i.high for i in intervals)
    exact = 1 - 2 * float(binom.cdf(9, 31, 0.5))
    assert abs(covered / 2000 - exact) < 5 * math.sqrt(exact * (1 - exact) / 2000)


def test_a_target_is_met_missed_or_undecided() -> None:
    assert met(Interval(31, 1.0, 0.9, 1.1), 1.1) == "yes"
    assert met(Interval(31, 1.0, 0.9, 1.1), 1.05) == "undecided"
    assert met(Interval(31, 1.0, 0.9, 1.1), 0.9) == "undecided"
    assert met(Interval(31, 1.0, 0.9, 1.1), 0.89) == "no"
    assert met(Interval(3, 1.0, None, None), 2.0) == "undecided"
