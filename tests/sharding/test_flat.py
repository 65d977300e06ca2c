"""Hosts of torch that take shapes, or the model, away: two gloo processes, FSDP version 1, ZeroRedundancyOptimizer."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.optim.table import BY_NAME
from tests.sharding.processes import run_once

pytestmark = [pytest.mark.sharding, pytest.mark.slow]

STAGE = r"(projection\(|over the model|NSO|SAM)"


@pytest.fixture(scope="module")
def results() -> list[list[dict[str, Any]]]:
    """By process and host."""
    return run_once("tests.sharding.flat_workers:hosts", ranks=2, steps=4)


def test_fsdp_version_one_serves_pointwise_recipes_and_no_others(results: list[list[dict[str, Any]]]) -> None:
    """With flat and with original parameters, and where the model is wrapped after the optimizer was made."""
    for found, _ in results:
        assert len(found) >= 3 * len(BY_NAME)
        for name, result in found.items():
            row, case = name.rsplit(", ", 1)
            if row in BY_NAME and BY_NAME[row].scope == "pointwise":
                if case == "wrapped later":
                    assert not result["refused"] and result["moved"] > 0, name
                else:
                    assert result["error"] <= 1e-12, name
                continue
            assert re.search(r"flat piece of FSDP version 1.*" + STAGE + ".*fully_shard", result["refused"]), (
                name,
                result,
            )
            assert result.get("moved", 0) == 0, name


def test_zero_redundancy_optimizer_serves_what_works_tensor_by_tensor(results: list[list[dict[str, Any]]]) -> None:
    for _, found in results:
        for name, result in found.items():
            if name == "AdamW, clipped" or BY_NAME[name].scope == "model":
                assert re.search("ZeroRedundancyOptimizer gives .* fully_shard", result["refused"]), (name, result)
            else:
                assert result == {"refused": "", "error": pytest.approx(0, abs=1e-14)}, name
