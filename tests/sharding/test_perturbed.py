"""NSO and the sharpness-aware family on two gloo processes: the steps of one process given the same noise.

SyncBatchNorm runs on GPUs alone, so running statistics are tested with layers that average over their own process.
"""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.sharding.perturbed_workers import METHODS
from tests.sharding.processes import run

pytestmark = [pytest.mark.sharding, pytest.mark.slow]
WORKERS = "tests.sharding.perturbed_workers"


@cache
def under_ddp() -> dict[str, Any]:
    ranks = run(f"{WORKERS}:ddp_everything", ranks=2, steps=4)
    assert ranks[0] == ranks[1]
    found: dict[str, Any] = ranks[0]
    return found


@cache
def under_fsdp() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        ranks = run(f"{WORKERS}:fsdp_everything", ranks=2, steps=4, folder=folder)
    assert ranks[0] == ranks[1]
    found: dict[str, Any] = ranks[0]
    return found


# --- DDP ---------------------------------------------------------------------------------------------------------


def test_ddp_takes_the_steps_of_one_process_and_averages_gradients_once() -> None:
    """NSO in its last pass alone. The family has to know the average before it can climb, and averages twice.

    Every other step has two micro-batches in each pass; without ``no_sync`` of the user's both are averaged.
    """
    found = under_ddp()["methods"]
    assert set(found) == set(METHODS)
    for name, result in found.items():
        passes = 1 if name.startswith("NSO") else 2
        assert result["error"] <= 1e-12, name
        assert result["reductions"] == [passes, 2 * passes] * 2, name


def test_names_through_the_wrapper_get_the_same_noise() -> None:
    assert under_ddp()["names"] == 0.0


def test_a_local_norm_climbs_each_processes_gradient_and_saves_an_average() -> None:
    for name, result in under_ddp()["local"].items():
        assert result["error"] <= 1e-11, name
        assert result["from global"] > 1e-2, name  # another method, not the same one cheaper
        assert set(result["reductions"]) == {1}, name


def test_draws_of_every_process_are_averaged() -> None:
    result = under_ddp()["per rank"]
    assert result["error"] <= 1e-12
    assert result["draws"] == 4 * 2 * 2  # steps, draws, processes


def test_gradients_cleared_before_they_were_averaged_are_an_error() -> None:
    said = under_ddp()["cleared"]
    assert (
        "cleared inside a pass, before they were averaged over processes; clear them before the loop" in said["model"]
    )
    assert said["moved"] == "False"
    assert said["error"] == "True"  # with the optimizer's own zero_grad nothing was lost


def test_an_infinity_on_one_process_in_any_pass_skips_the_step_on_all() -> None:
    for name, result in under_ddp()["infinite"].items():
        assert all(result["skipped"]), name
        assert result["scale"] == 2.0**10, name


# --- FSDP2 -------------------------------------------------------------------------------------------------------


def test_fsdp_takes_the_steps_of_one_process() -> None:
    """Uneven and empty shards; a forward without gradient in the step and an evaluation after it leave the root whole.

    Weights, running statistics and what an evaluation between steps sees.
    """
    found = under_fsdp()["methods"]
    assert set(found) == set(METHODS)
    for name, result in found.items():
        assert result["error"] <= 1e-12, name
        assert result["outputs"] <= 1e-12, name
        assert result["buffers"] <= 1e-12, name


def test_fsdp_with_rows_of_its_own_on_every_process() -> None:
    for name, error in under_fsdp()["split batch"].items():
        assert error <= 1e-12, name


def test_a_raise_in_a_pass_leaves_the_true_shards_and_no_moved_copy() -> None:
    found = under_fsdp()["interrupted"]
    assert set(found) == set(METHODS)
    assert all(found.values()), found


def test_sharded_weights_need_their_model() -> None:
    assert under_fsdp()["refused"].startswith("NSO: model must be given where weights are sharded")


def test_a_distributed_checkpoint_resumes_bitwise() -> None:
    found = under_fsdp()["resumed"]
    assert set(found) == set(METHODS)
    assert all(found.values()), found


def test_noise_does_not_depend_on_the_sharding() -> None:
    assert under_fsdp()["noise"]
