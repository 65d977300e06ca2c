"""Four processes take the step of one, however weights are split over them: compared after every step.

Each comparison tells its smallest decision margin. A step decides by thresholds, and where a quantity came as near to
one as rounding, both sides could rightly differ; so equality means something where the margin is far above the error.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.sharding.mesh_workers import BUILDERS, COMPOSITIONS, POLICIES
from tests.sharding.processes import run_once
from tests.sharding.sides import STAGES, collectives

pytestmark = [pytest.mark.sharding, pytest.mark.slow]

LAYOUTS = 7
# In how many ways a layout splits rows, with rows along dimension 0 and along dimension 1.
ROWS_SPLIT = {
    "TP": (1, 1),
    "FSDP and TP by columns": (1, 2),
    "the same columns twice": (1, 0),
    "slices of a mesh": (1, 4),
}
BY_STAGES = STAGES | {name: stages for name, (_, stages) in COMPOSITIONS.items()}
SAME = 1e-12


Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def four() -> Found:
    """What each of four processes found."""
    return run_once("tests.sharding.mesh_workers:everything", ranks=4, timeout=600, backend="numba")


def results(four: Found, what: str) -> list[tuple[str, Any]]:
    return [item for found in four for item in found[what].items()]


def test_every_optimizer_takes_the_step_of_one_process(four: Found) -> None:
    """From the same gradients, at most three collectives a step whatever the number of meshes.

    In the first step, one more where weights are split along two dimensions of a mesh: its processes agree on what the
    slices of the mesh may add. Recipes with five stages, or with a mean that the moments need first, take more.
    """
    assert len(results(four, "float64")) == 4 * LAYOUTS * len(BUILDERS)
    for name, (error, count, first, margin) in results(four, "float64"):
        print(f"{name}: {error:.1e}, {count} collectives, margin {margin:.1e}")
        layout, method = name.split(": ")
        rows = ROWS_SPLIT.get(layout, (0, 1))["by columns" in method]
        assert error <= SAME, name
        assert margin >= 1e4 * SAME, name
        assert count <= collectives(BY_STAGES[method], rows_split=rows), name
        assert first <= count + 1, name
        assert count <= 3 or method in COMPOSITIONS, name


def test_bfloat16_weights_are_within_one_unit_in_the_last_place(four: Found) -> None:
    assert len(results(four, "bfloat16")) == 4 * 4 * len(BUILDERS)
    for name, (ulps, _, _, margin) in results(four, "bfloat16"):
        print(f"{name}: {ulps:g} ulp, margin {margin:.1e}")
        assert ulps <= 1, name
        assert margin >= 1e-5, name


def test_clipping_goes_before_all_other_sums(four: Found) -> None:
    """Where gradients are clipped, rows are split, tested and contracted, that is a chain of four."""
    for name, (error, count) in results(four, "clipped"):
        print(f"{name}: {error:.1e}, {count} collectives")
        assert error <= SAME, name
        assert count == collectives(STAGES[name], rows_split=1, clipped=True), name


def test_slices_of_a_mesh_may_hold_different_weights(four: Found) -> None:
    """As experts do: their sums still travel in the collective of the whole mesh, also where some have no gradient."""
    for name, (error, count, first) in results(four, "experts"):
        assert error <= SAME, name
        assert count == collectives(STAGES[name]), name
        assert first == count + (count > 0), name


def test_what_an_optimizer_says_that_it_sends_has_the_slots_in_it(four: Found) -> None:
    for name, right in results(four, "accounts"):
        assert right, name


def test_weights_added_after_slots_were_agreed_on_go_by_themselves(four: Found) -> None:
    for found in four:
        error, count = found["added later"]
        assert error <= SAME and count == 2


def test_ddp_takes_the_step_of_one_process_to_the_bit(four: Found) -> None:
    for name, (same, error, moved, margin) in results(four, "DDP"):
        print(f"{name}: gradients {error:.1e}, margin {margin:.1e}")
        assert same, name
        assert error <= SAME and moved > 1e-3, name
        assert margin >= 1e4 * SAME, name


def test_mixed_precision_and_offload_of_fsdp_change_nothing(four: Found) -> None:
    """Given the gradients that FSDP has made in bfloat16 and reduced in float32, or moved to the host."""
    assert len(results(four, "policies")) == 4 * len(POLICIES) * len(BUILDERS)
    for name, (error, margin) in results(four, "policies"):
        print(f"{name}: {error:.1e}, margin {margin:.1e}")
        assert error <= SAME, name
        assert margin >= 1e4 * SAME, name


def test_models_that_torch_splits_train_as_one_process_does(four: Found) -> None:
    """Tensor parallelism leaves weights on meshes of their own, whose sums travel with the others'."""
    for found in four:
        trained = found["trained"]
        for kind in ("HSDP", "TP", "FSDP and TP"):
            print(f"{kind}: {trained[kind]}")
            for row, stages in STAGES.items():
                error, count, first = trained[f"{kind}: {row}"]
                print(f"{kind}: {row}: {error:.1e}, {count}")
                assert error <= SAME, (kind, row)
                assert count == collectives(stages, rows_split=kind != "HSDP") <= 3, (kind, row)
                assert first == count + (kind == "FSDP and TP" and count > 0), (kind, row)


def test_noise_and_ascents_are_those_of_one_process(four: Found) -> None:
    for name, error in results(four, "perturbed"):
        print(f"{name}: {error:.1e}")
        assert error <= SAME, name


def test_a_piece_lies_where_its_first_element_does(four: Found) -> None:
    assert all(found["pieces"] for found in four)


def test_stages_of_a_pipeline_share_what_is_one_number_for_the_model(four: Found) -> None:
    """The mean that stable decay and Adai read, the norm, and a skip, also where one stage has no gradient."""
    for found in four:
        pipeline = found["pipeline"]
        for name in STAGES:
            for way in ("plain", "clipped"):
                error, count = pipeline[f"{way}: {name}"]
                print(f"{way}: {name}: {error:.1e}, {count} collectives")
                over_stages = ("scan" in STAGES[name]) + (way == "clipped")
                assert error <= SAME, (way, name)
                assert count == collectives(STAGES[name], clipped=way == "clipped") + over_stages, (way, name)
        for name in ("NSO", "SAM", "ASAM", "RSAM"):
            assert pipeline[f"perturbed: {name}"] <= SAME, name
        assert pipeline["alone"] > 1e6 * SAME


def test_a_process_group_is_in_no_checkpoint_and_a_pickle_says_that_it_lacks_it(four: Found) -> None:
    for found in four:
        pipeline = found["pipeline"]
        assert pipeline["copied"] and not pipeline["saved"]
        assert "set optimizer.process_group" in pipeline["said"]
        assert pipeline["mean"] == pytest.approx((4 * 1 + 4 * 4) / 8)  # of ones on one stage and twos on the other
        assert pipeline["cost"] == 2
