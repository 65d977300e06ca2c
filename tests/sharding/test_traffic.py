"""What an optimizer says that a step sends is what its step hands to the reductions, byte by byte."""

from __future__ import annotations

import pytest
import torch

import mooring as mo
from tests.optim.table import BY_NAME
from tests.sharding.processes import run

pytestmark = [pytest.mark.sharding, pytest.mark.slow]


def test_the_bytes_are_those_of_the_reductions() -> None:
    for found in run("tests.sharding.traffic_workers:every_row", ranks=2):
        assert found.pop("refused") == "communication knows mooring's optimizers and wrap(...), got SAM"
        for name, result in found.items():
            print(f"{name}: {result['said']}")
            assert all(counted == [size for size, _ in result["said"]] for counted in result["steps"]), name
            assert {processes for _, processes in result["said"]} <= {2}, name
            assert result["unchanged"] == ("in training" not in name), name
        pointwise = [row for row in BY_NAME if BY_NAME[row].scope == "pointwise"]
        for row in BY_NAME:
            assert bool(found[f"rows, {row}, {{}}"]["said"]) == (row not in pointwise), row
        # Four sharded tensors: five sums of each for the cosine test, four for the selective projection.
        assert found["rows, AdamP, {}"]["said"] == [[8 * 5 * 3, 2]]


def test_one_process_sends_nothing() -> None:
    net = torch.nn.Linear(3, 2)
    assert mo.communication(mo.AdamP(net.parameters())) == []
