"""The statistics against scipy, closed forms and hand-computed examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mooring.compare.statistics import (
    compare_paired,
    holm,
    separated_best,
    sign_flip_p,
    smallest_p,
    summarise,
)


def normal(n: int, seed: int = 0, loc: float = 0.0) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(loc, 1.0, n)]


@pytest.mark.parametrize("n", [2, 3, 10, 19])
def test_interval_below_twenty_is_the_one_of_the_t_test(n: int) -> None:
    a, b = normal(n, 1, 0.3), normal(n, 2)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = summarise(differences)
    assert found.interval == "t"
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.sd == pytest.approx(np.std(differences, ddof=1))


def test_hand_computed_interval() -> None:
    # mean 2, sd 1, n 3: 2 ± t(0.975, 2 df) / sqrt(3), t = 4.302653
    found = summarise([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.sd == 1.0
    assert found.low == pytest.approx(2 - 4.302652729911275 / math.sqrt(3))


def test_from_twenty_on_bca_bootstrap_and_the_same_every_time() -> None:
    sample = [float(x) for x in np.random.default_rng(3).exponential(1.0, 25)]
    first, second = summarise(sample), summarise(sample)
    assert first == second
    assert first.interval == "BCa"
    expected = stats.bootstrap((sample,), np.mean, n_resamples=50_000, rng=np.random.default_rng(9)).confidence_interval
    assert first.low == pytest.approx(expected.low, abs=0.02)
    assert first.high == pytest.approx(expected.high, abs=0.02)
    # The exponential is skewed to the right, and so is a BCa interval; a t-interval would be symmetric.
    assert first.high - first.mean > first.mean - first.low


def test_too_few_values_have_no_interval() -> None:
    assert summarise([]).n == 0 and math.isnan(summarise([]).mean)
    one = summarise([0.7])
    assert one.mean == 0.7 and one.sd is None and one.low is None and one.interval == "none"


def test_equal_values_have_an_interval_of_no_width() -> None:
    for n in (3, 30):
        found = summarise([0.5] * n)
        assert (found.mean, found.sd, found.low, found.high) == (0.5, 0.0, 0.5, 0.5)


def test_a_diverged_run_is_not_dropped_from_the_mean() -> None:
    found = summarise([0.9, float("nan"), 0.8])
    assert found.n == 3 and math.isnan(found.mean) and found.low is None
    assert math.isnan(summarise([1.0, math.inf]).mean)


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_sign_flip_equals_scipys_exact_permutation_test(n: int) -> None:
    a, b = normal(n, 4, 0.5), normal(n, 5)
    expected = stats.permutation_test(
        (np.array(a), np.array(b)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    assert sign_flip_p([x - y for x, y in zip(a, b, strict=True)]) == pytest.approx(expected, abs=1e-12)


def test_hand_computed_sign_flip() -> None:
    # |1+2+3| = 6 is reached by +++ and --- alone; |1+2-3| = 0 by every pattern.
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1.0
    # sums of (1, 1, -1): +-1 six times, +-3 twice
    assert sign_flip_p([1.0, 1.0, -1.0]) == 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert math.isnan(sign_flip_p([])) and math.isnan(sign_flip_p([math.nan]))


def test_rounding_does_not_split_equal_sums() -> None:
    # In floating point 0.1 + 0.2 + 0.3 depends on the order; the test must not.
    assert sign_flip_p([0.1, 0.2, 0.3, -0.3]) == sign_flip_p([1.0, 2.0, 3.0, -3.0])


def test_above_twenty_random_patterns_agree_with_the_exact_value() -> None:
    differences = normal(20, 6, 0.35)
    padded = [*differences, 1e-9]  # a 21st that changes no sum noticeably: the same p, by another way
    assert sign_flip_p(padded) == pytest.approx(sign_flip_p(differences), abs=0.005)


def test_smallest_p_is_attained() -> None:
    for n in (1, 4, 10):
        assert sign_flip_p([1.0 + i for i in range(n)]) == smallest_p(n) == 2 / 2**n
    assert sign_flip_p([1.0] * 25) == smallest_p(25)


def test_hand_computed_holm() -> None:
    # sorted: .01*4=.04, .02*3=.06, .03*2=.06, .5*1=.5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # the running maximum: .01*3=.03, .011*2=.022 -> .03, .2
    assert holm([0.011, 0.01, 0.2]) == pytest.approx([0.03, 0.03, 0.2])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_value_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values)) or adjusted == pytest.approx(raw)


def test_pairs_use_only_the_seeds_finished_by_both() -> None:
    values = {"adamw": {0: 0.5, 1: 0.6, 3: 0.9}, "adamp": {0: 0.7, 1: 0.7, 2: 0.1}}
    found = compare_paired(values, "adamw")["adamp"]
    assert found.seeds == (0, 1)
    assert found.difference.mean == pytest.approx(0.15)
    assert compare_paired({"adamw": {0: 1.0}, "adamp": {1: 1.0}}, "adamw") == {}


def test_resolved_needs_both_the_interval_and_the_adjusted_p() -> None:
    base = dict.fromkeys(range(10), 0.0)
    clear = {seed: 1.0 + 0.01 * seed for seed in range(10)}
    noise = dict(enumerate(normal(10, 7)))
    found = compare_paired({"b": base, "clear": clear, "noise": noise}, "b")
    assert found["clear"].resolved and not found["noise"].resolved
    assert found["clear"].p == 2 / 1024
    assert found["clear"].p_adjusted == found["clear"].p_attainable == 4 / 1024
    # Three seeds: the interval excludes zero by far, but no exact test of three pairs can say so.
    few = compare_paired({"b": dict.fromkeys(range(3), 0.0), "clear": {s: clear[s] for s in range(3)}}, "b")["clear"]
    assert few.difference.low is not None and few.difference.low > 0
    assert few.p_adjusted == few.p_attainable == 0.25 and not few.resolved


def test_attainable_p_accounts_for_missing_seeds() -> None:
    base = {seed: float(seed) for seed in range(10)}
    values = {"b": base, "all": {s: base[s] + 1 for s in range(10)}, "few": {s: base[s] + 1 for s in range(4)}}
    found = compare_paired(values, "b")
    assert found["all"].p_attainable == 2 * 2 / 1024
    assert found["few"].p_attainable == 2 / 16


def test_a_best_method_is_named_only_if_it_beats_every_other() -> None:
    seeds = range(10)
    noise = normal(10, 8)
    low = {s: 0.5 + 0.01 * noise[s] for s in seeds}
    middle = {s: low[s] + 0.001 * (-1) ** s for s in seeds}
    high = {s: low[s] + 0.1 + 0.001 * s for s in seeds}
    assert separated_best({"low": low, "middle": middle, "high": high}) == "high"
    assert separated_best({"low": low, "middle": middle}) is None
    assert separated_best({"low": low, "middle": middle, "high": high}, higher_is_better=False) is None
    assert separated_best({"low": low, "high": high}, higher_is_better=False) == "low"
    assert separated_best({"low": low}) is None
    assert separated_best({"low": low, "high": {**high, 3: math.nan}}) is None
