"""The analysis behind the fine-tuning experiments, against closed forms and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mooring.compare.statistics import summarise
from mooring.reproduce.experiments import digits_combinations, digits_pareto, digits_sharpness, low_label
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


def test_a_curve_is_read_at_a_loss_as_by_hand() -> None:
    curve = [(8.0, 100.0), (4.0, 50.0), (1.0, 2.0)]
    # Half way from 4 to 1 in the logarithm is 2; half way from 50 to 2 is the root of 100.
    assert digits_sharpness.at_loss(curve, 2.0) == pytest.approx(10.0)
    assert digits_sharpness.at_loss(curve, 1.0) == pytest.approx(2.0)
    assert digits_sharpness.at_loss(curve, 8.0) == pytest.approx(100.0)
    assert math.isnan(digits_sharpness.at_loss(curve, 0.5))


def test_a_curve_that_rises_again_is_read_at_its_first_fall() -> None:
    assert digits_sharpness.at_loss([(4.0, 40.0), (1.0, 10.0), (4.0, 1.0), (1.0, 5.0)], 2.0) == pytest.approx(20.0)


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


def test_the_design_is_full_in_five_factors_and_balanced_in_the_kind_of_decay() -> None:
    cells = digits_combinations.design()
    assert len({cell[:5] for cell in cells}) == 32
    decay = digits_combinations.CROSSED.index("decay")
    assert all((cell[5] == 0) == (cell[decay] == -1) for cell in cells)
    columns = np.array(list(digits_combinations.contrasts(cells).values()))
    products = columns @ columns.T
    assert len(columns) == 20
    assert np.array_equal(products, np.diag(np.diag(products)))  # orthogonal
    assert (columns.sum(axis=1) == 0).all()  # and to the mean


def test_known_effects_are_recovered_exactly_and_as_least_squares_has_them() -> None:
    cells = digits_combinations.design()
    columns = digits_combinations.contrasts(cells)
    known = {name: float(i + 1) * (-1) ** i for i, name in enumerate(columns)}
    values = [50 + sum(known[n] / 2 * signs[row] for n, signs in columns.items()) for row in range(len(cells))]
    found = {name: digits_combinations.effect(signs, values) for name, signs in columns.items()}
    assert found == pytest.approx(known)
    noisy = np.asarray(values) + np.random.default_rng(0).normal(size=32)
    fitted = np.linalg.lstsq(np.array([np.ones(32), *columns.values()]).T, noisy, rcond=None)[0][1:] * 2
    effects = [digits_combinations.effect(signs, noisy.tolist()) for signs in columns.values()]
    assert effects == pytest.approx(fitted.tolist())


def test_an_interaction_is_half_the_difference_of_an_effect_with_and_without_the_other() -> None:
    cells = digits_combinations.design()
    values = np.random.default_rng(1).normal(size=32)
    first, second = (digits_combinations.CROSSED.index(name) for name in ("selective", "augmentation"))

    def within(sign: int) -> float:
        kept = [(cell[first], value) for cell, value in zip(cells, values, strict=True) if cell[second] == sign]
        return float(np.mean([v for s, v in kept if s == 1]) - np.mean([v for s, v in kept if s == -1]))

    signs = digits_combinations.contrasts(cells)["selective x augmentation"]
    assert digits_combinations.effect(signs, values.tolist()) == pytest.approx((within(1) - within(-1)) / 2)


def test_only_what_is_resolved_is_called_large() -> None:
    one, two, three = (summarise([mean - 1, mean, mean + 1]) for mean in (1.0, -2.0, 30.0))
    found = {"id": {"noise": (one, 0.05), "decay": (two, 0.01), "stable": (three, 0.06)}}
    assert digits_combinations.largest(found, "id") == "ID accuracy, points: decay -2.0, noise +1.0"
    assert digits_combinations.largest({"id": {"stable": (three, 0.06)}}, "id") == "ID accuracy, points: none"
