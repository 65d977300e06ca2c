"""The analysis behind the fine-tuning experiments, against closed forms and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mooring.compare.statistics import summarise
from mooring.reproduce.experiments import digits_pareto, low_label
from mooring.reproduce.paired import percent


def test_curves_at_equal_drift_are_compared_where_both_exist() -> None:
    # Straight lines in log drift: 3 + 2 x above 1 + x is 2 + x, whose mean over x in [1, 2] is 3.5.
    ours = [(math.exp(x), 3 + 2 * x) for x in (3.0, 1.0, 2.0)]
    theirs = [(math.exp(x), 1 + x) for x in (0.0, 2.0, 0.5)]
    height, low, high = digits_pareto.at_equal_drift(ours, theirs)
    assert (height, low, high) == pytest.approx((3.5, math.e, math.e**2))
    assert digits_pareto.at_equal_drift(theirs, ours)[0] == pytest.approx(-3.5)


def test_curves_without_a_common_drift_have_no_height() -> None:
    assert math.isnan(digits_pareto.at_equal_drift([(1.0, 0.0), (2.0, 1.0)], [(3.0, 0.0), (4.0, 1.0)])[0])


def test_a_change_of_the_logarithm_in_percent() -> None:
    logs = summarise([math.log(1.1), math.log(1.2), math.log(1.3)])
    found = percent(logs)
    assert found.mean == pytest.approx(100 * ((1.1 * 1.2 * 1.3) ** (1 / 3) - 1))
    assert found.low is not None and found.high is not None
    low, high = stats.t.interval(0.95, 2, *(f([math.log(x) for x in (1.1, 1.2, 1.3)]) for f in (np.mean, stats.sem)))
    assert (found.low, found.high) == pytest.approx((100 * math.expm1(low), 100 * math.expm1(high)))


def test_the_slope_and_its_error_are_those_of_scipy_row_by_row() -> None:
    random = np.random.default_rng(0)
    x = [math.log2(n) for n in low_label.LABELS]
    rows = random.normal(size=(6, 4)) + np.arange(6)[:, None] * np.asarray(x)
    slopes = [stats.linregress(x, row).slope for row in rows]
    assert low_label.slope(x, rows.tolist()) == pytest.approx((np.mean(slopes), stats.sem(slopes)))
