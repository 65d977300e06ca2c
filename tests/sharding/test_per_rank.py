"""Noise that differs between the copies of data parallelism, on four processes: the mean over copies, by hand."""

from __future__ import annotations

import pytest

from tests.sharding.per_rank_workers import STEPS, K
from tests.sharding.processes import run

pytestmark = [pytest.mark.sharding, pytest.mark.slow]


def test_every_copy_of_the_model_has_draws_of_its_own() -> None:
    """Processes that hold one copy together draw the same; copies draw apart, and are equal to the bit after a step.

    DDP on all processes is in ``test_perturbed.py``.
    """
    for found in run("tests.sharding.per_rank_workers:on_four", ranks=4):
        assert found.pop("resumed")
        for mesh, said in found.pop("refused").items():
            assert "no dimension replicates every weight" in said and "raise k" in said
            assert mesh in said
        assert set(found) == {"HSDP", "HSDP over tensor parallelism", "DDP in pairs"}
        for name, result in found.items():
            print(f"{name}: {result['error']:.1e}")
            assert result["error"] <= 1e-12, name
            assert result["equal"], name
            assert result["draws"] == STEPS * K * 2, name
