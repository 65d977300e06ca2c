"""Four processes on meshes of two dimensions take the step of one: HSDP, tensor parallelism, FSDP with it."""

from __future__ import annotations

import pytest

from tests.sharding.processes import run
from tests.sharding.test_fsdp2 import STAGES

pytestmark = pytest.mark.sharding


SPLITS_ROWS = ("TP", "FSDP and TP by columns", "the same columns twice")


def test_every_optimizer_takes_the_step_of_one_process() -> None:
    """From the same gradients, after every step. The sums of a stage travel together, over both dimensions of a mesh;
    where rows are split, a rule that tests rows has to have their sums before it can ask for a tensor's: one more.
    """
    results = run("tests.sharding.mesh_workers:every_row", ranks=4, steps=12)
    assert len(results) == 4
    for found in results:
        for name, (error, collectives) in found.items():
            print(f"{name}: {error:.1e}, {collectives}")
            layout, row = name.split(": ")
            stages = STAGES[row].split()
            assert error <= 1e-12, name
            assert collectives <= len(stages) + (layout in SPLITS_ROWS and "projection" in stages), name


def test_models_that_torch_splits_train_as_one_process_does() -> None:
    """Tensor parallelism leaves weights on meshes of their own, which take collectives of their own."""
    results = run("tests.sharding.mesh_workers:trained", ranks=4, steps=8)
    for found in results:
        for kind, meshes in (("HSDP", 1), ("TP", 1), ("FSDP and TP", 2)):
            print(f"{kind}: {found.pop(kind)}")
            for row, stages in STAGES.items():
                error, collectives = found[f"{kind}: {row}"]
                print(f"{kind}: {row}: {error:.1e}, {collectives}")
                stage_names = stages.split()
                rows_first = kind != "HSDP" and "projection" in stage_names
                assert error <= 1e-12, (kind, row)
                assert collectives <= meshes * len(stage_names) + rows_first, (kind, row)


def test_noise_and_ascents_are_those_of_one_process() -> None:
    for found in run("tests.sharding.mesh_workers:perturbed", ranks=4, steps=6):
        for name, error in found.items():
            print(f"{name}: {error:.1e}")
            assert error <= 1e-12, name


def test_a_piece_lies_where_its_first_element_does() -> None:
    assert all(run("tests.sharding.mesh_workers:pieces", ranks=4))
