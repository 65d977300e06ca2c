"""A sharded step is the same step: two gloo processes with FSDP2 against one process."""

from __future__ import annotations

import pytest

from tests.optim.table import BY_NAME
from tests.sharding.processes import run

pytestmark = pytest.mark.sharding


def test_every_optimizer_follows_the_single_process() -> None:
    results = run("tests.sharding.workers:every_row", ranks=2, steps=25)
    assert results[0] == results[1]  # every rank saw the same full weights
    errors = {name: error for name, (error, _) in results[0].items()}
    print("\n".join(f"{name}: {error:.1e}, {calls} collectives" for name, (error, calls) in results[0].items()))
    assert {name: e for name, e in errors.items() if not e <= 1e-10} == {}


def test_collectives_per_step() -> None:
    """None for pointwise recipes, one for each stage that depends on sums over processes, never more than three."""
    results = run("tests.sharding.workers:every_row", ranks=2, steps=2)[0]
    # A first step at the true learning rate asks nothing of the network beside these.
    stages = {"AdamW": 0, "SGD": 0, "SGDS": 0, "AdamP": 1, "SGDP": 1, "AdamS": 1, "AdamSPD": 1, "SGDSPD": 1}
    for name, (_, calls) in results.items():
        method, variant = name.split(", ", 1)
        switched_off = variant in ("delta 0", "strength 0", "anchor none")
        assert calls == (0 if switched_off else stages[method]), name
    assert set(stages) == set(BY_NAME)


def test_a_sharded_checkpoint_continues_bitwise() -> None:
    for results in run("tests.sharding.workers:checkpoints", ranks=2):
        assert len(results) == 2 * len(BY_NAME)
        for name, result in results.items():
            assert result["bitwise"], name
            assert result["moved"] > 0, name
            assert result["keys of a fresh state"] == 10, name
