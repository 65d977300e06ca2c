"""Telemetry of a sharded training: the single process's numbers, no bit changed, one more collective when recording."""

from __future__ import annotations

import pytest

from tests.optim.table import BY_NAME
from tests.sharding.processes import run

pytestmark = [pytest.mark.sharding, pytest.mark.slow]


def test_every_optimizer_tells_the_same_sharded_or_not() -> None:
    ranks = run("tests.sharding.telemetry_workers:every_row", ranks=2)
    assert set(ranks[0]) == set(BY_NAME)
    for name, found in ranks[0].items():
        assert found["bitwise"] and ranks[1][name]["bitwise"], name
        assert found["same names"] and found["finite"], name
        assert found["numbers"] > 80, name
        assert found["error"] <= 1e-6, name
        assert found["calls"]["recorded"] == found["calls"]["off"] + 1, name
        assert found["calls"]["on"] == found["calls"]["off"], name
        assert ranks[1][name]["error"] == found["error"], name
