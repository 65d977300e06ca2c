"""A sharded step is the same step: two gloo processes with FSDP2 against one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.optim.table import BY_NAME
from tests.sharding.processes import run
from tests.sharding.sides import STAGES, collectives

pytestmark = [pytest.mark.sharding, pytest.mark.slow]


SWITCHED_OFF = {
    "delta 0": "projection",
    "declared none": "projection",
    "declared by row": "projection",  # whole rows lie on one process, and nothing has to be tested
    "strength 0": "contraction",
    "anchor none": "contraction",
}


def test_every_optimizer_follows_the_single_process() -> None:
    """The same step, and for each stage that depends on sums over processes one collective; never more than three."""
    results = run("tests.sharding.workers:every_row", ranks=2, steps=12, backend="numba")
    assert results[0] == results[1]  # every rank saw the same full weights
    assert set(STAGES) == set(BY_NAME)
    for name, (error, calls, _) in results[0].items():
        print(f"{name}: {error:.1e}, {calls} collectives")
    for name, (error, calls, stated) in results[0].items():
        assert error <= 1e-10, name
        method, variant = name.split(", ", 1)
        assert calls == stated == collectives(STAGES[method], off=SWITCHED_OFF.get(variant, "")) <= 3, name


def test_clipping_and_skipping_cost_one_collective() -> None:
    """The norm is that of the whole model on every process; where stable decay scans, it reads the same sums."""
    results = run("tests.sharding.workers:clipped", ranks=2, steps=15)
    assert results[0] == results[1]
    for name, (error, calls, said) in results[0].items():
        print(f"{name}: {error:.1e}, {calls} collectives")
        assert error <= 1e-10, name
        assert calls == said == collectives(STAGES[name], clipped=True) <= 3, name


def test_a_nan_on_one_process_stops_all_of_them() -> None:
    for found in run("tests.sharding.workers:screened", ranks=2, steps=8):
        for name, (error, dispatched) in found.items():
            assert error <= 1e-12, name
            assert set(dispatched) <= {"detach"}, name


def test_random_bits_do_not_depend_on_the_sharding() -> None:
    for results in run("tests.sharding.workers:rounded", ranks=2, steps=5):
        assert len(results) == 3
        assert all(results.values()), results


def test_a_sharded_checkpoint_continues_bitwise() -> None:
    for results in run("tests.sharding.workers:checkpoints", ranks=2, backend="numba"):
        assert len(results) == 2 * len(BY_NAME)
        for name, result in results.items():
            assert result["bitwise"], name
            assert result["moved"] > 0, name
            assert result["keys of a fresh state"] == 10, name


def test_any_mixture_of_placements_takes_the_same_step() -> None:
    """Sums run over the mesh dimensions that split a weight, never over copies of it, and DTensors beside plain tensors
    break no list of tensors. Work is done on the local pieces: dispatching on DTensors costs more than the step.
    """
    for found in run("tests.sharding.workers:mixed", ranks=2, steps=8):
        for name, (error, dispatched) in found.items():
            print(f"{name}: {error:.1e}, {dispatched}")
            assert error <= 1e-12, name
            assert set(dispatched) <= {"detach"}, name


def test_sharded_anchors_come_from_files_and_go_into_them(tmp_path: Path) -> None:
    """Each process reads its own part of the named tensors; a captured file is the one that one process writes."""
    results = run("tests.sharding.workers:anchored", ranks=2, folder=str(tmp_path), steps=6)
    assert results[0] == results[1]
    assert results[0].pop("the same file") and results[0].pop("refused")
    assert len(results[0]) == 4
    for name, result in results[0].items():
        assert result["error"] <= 1e-10, name
        assert result["bitwise"], name
        assert result["asked"], name
        assert result["saved"] == (name == "given device"), name
