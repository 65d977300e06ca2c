"""Measures on two gloo processes with sharded weights: the numbers of one process, and nothing left behind."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.sharding.processes import run_once

pytestmark = [pytest.mark.sharding, pytest.mark.slow]


@cache
def found() -> dict[str, Any]:
    ranks = run_once("tests.sharding.measure_workers:everything", ranks=2)
    assert ranks[0] == ranks[1]
    result: dict[str, Any] = ranks[0]
    return result


def flat(x: Any) -> list[float]:
    return [value for item in x for value in flat(item)] if isinstance(x, list) else [x]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        # Differences of gradients in float64 carry an error of 1e-10, which Lanczos steps pass on.
        ("product", 1e-8), ("trace", 1e-8), ("top", 1e-6), ("dense", 1e-7), ("density", 1e-6), ("blocks", 1e-6),
        ("stability", 1e-9), ("slices", 1e-11),
    ],
)  # fmt: skip
def test_sharded_measures_are_those_of_one_process(name: str, tolerance: float) -> None:
    one, ours = flat(found()["one"][name]), flat(found()["ours"][name])
    scale = max(abs(x) for x in one)
    assert len(one) == len(ours) and scale > 1e-3
    assert max(abs(a - b) for a, b in zip(one, ours)) <= tolerance * scale


def test_drift_of_shards_is_that_of_the_whole() -> None:
    one, ours = found()["drifts"]
    assert flat(ours) == pytest.approx(flat(one), rel=1e-12) and max(flat(one)) > 0.1


def test_sharded_weights_and_gradients_are_left_as_they_were() -> None:
    assert found()["kept"] and found()["restored"]


def test_double_backward_is_refused_where_weights_are_sharded() -> None:
    assert "method='double_backward' cannot be used with sharded weights" in found()["said"]
    assert found()["auto"] == "finite_difference"
