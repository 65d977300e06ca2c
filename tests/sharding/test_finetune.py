"""A training of two processes against one: the same weights and metrics, stopped and continued on either number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mooring.finetune.checkpoints import find_checkpoints
from mooring.finetune.team import Team

from . import finetune_workers as workers
from .processes import run

pytestmark = [pytest.mark.sharding, pytest.mark.slow]

# Float64 rounds at 1e-16. A sum over a batch in another order differs by some of that; Adam divides it by no less than
# eps = 1e-8, and some steps later the same elements' weights differ by 1e-12 at the learning rates of these methods.
BOUND = 1e-10
ABOUT_THE_RUN = ("time/", "memory/")


ALL = ["straight", "continued", "from one"]
PLAN = {"adamspd": ALL, "nso": ALL, "adamp": ["straight"], "adams": ["straight"]}
SLOW_PLAN = {case: ["straight"] for case in workers.CASES if case not in PLAN}


def make(folder: Path, plan: dict[str, list[str]], ranks: int = 2) -> Path:
    """The cases of a plan, on one process here and on several; what was said, in a file."""
    for case, ways in plan.items():
        workers.run(case, folder / case / "one", Team())
        if "from one" in ways:
            workers.run(case, folder / case / "from one", Team(), stop=True)
    said = run("tests.sharding.finetune_workers:trials", ranks, folder=str(folder), plan=plan)
    for case, ways in plan.items():
        if "continued" in ways:
            workers.run(case, folder / case / "from two", Team())
    (folder / "said.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOORING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("trials"), PLAN)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def apart(a: Path, b: Path) -> float:
    ours, theirs = weights(a), weights(b)
    assert list(ours) == list(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def agree(one: Path, other: Path) -> None:
    """Weights and metrics are the same."""
    expected, found = (json.loads((folder / "final.json").read_text()) for folder in (one, other))
    gap, moved = apart(one, other), expected["drift/l2"]
    print(f"{other.parent.name}, {other.name}: moved {moved:.3g}, apart {gap:.2g}")
    assert gap <= BOUND < 1e-6 * moved
    assert list(found) == list(expected)
    for name, value in expected.items():
        if not name.startswith(ABOUT_THE_RUN):
            # Predictions are kept in float32.
            assert found[name] == pytest.approx(value, rel=0, abs=BOUND if "/" not in name else 1e-6), name


@pytest.mark.parametrize("case", PLAN)
def test_two_processes_train_as_one(done: Path, case: str) -> None:
    agree(done / case / "one", done / case / "straight")


@pytest.mark.parametrize("way", ["from one", "from two"])
@pytest.mark.parametrize("case", ["adamspd", "nso"])
def test_a_checkpoint_is_continued_on_another_number_of_processes(done: Path, case: str, way: str) -> None:
    agree(done / case / "one", done / case / way)


@pytest.mark.slow
def test_other_tasks_and_three_processes(tmp_path: Path) -> None:
    """A loss that calls another method of the model, a transformer, weights made of others, shares of 11 examples."""
    make(tmp_path / "tasks", SLOW_PLAN)
    for case in SLOW_PLAN:
        agree(tmp_path / "tasks" / case / "one", tmp_path / "tasks" / case / "straight")
    make(tmp_path / "three", {"adamspd": ["straight"]}, ranks=3)
    agree(tmp_path / "three" / "adamspd" / "one", tmp_path / "three" / "adamspd" / "straight")


@pytest.mark.parametrize("case", ["adamspd", "nso"])
def test_a_continued_training_has_the_same_bits(done: Path, case: str) -> None:
    straight, continued = done / case / "straight", done / case / "continued"
    assert apart(straight, continued) == 0
    rows = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (straight, continued)]
    for ours, theirs in zip(*([json.loads(line) for line in lines] for lines in rows), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_what_was_said(done: Path) -> None:
    said = json.loads((done / "said.json").read_text())
    for process in said:
        *continued, dropout = process
        assert all(f"step {workers.STOP} of {workers.STEPS}." in messages[0] for messages in continued)
        assert all(len(messages) == 1 for messages in continued)  # nothing of dropout, where there is none
        assert "dropout" in dropout[0] and "2 processes" in dropout[0] and len(dropout) == 1


def test_every_process_continues_its_own_dropout(done: Path) -> None:
    assert apart(done / "dropout straight", done / "dropout") == 0


def test_the_checkpoint_of_two_processes_is_written_by_both(done: Path) -> None:
    (saved,) = find_checkpoints(done / "adamspd" / "straight")
    assert (saved.step, saved.processes) == (workers.STOP, 2)
    sizes = [path.stat().st_size for path in sorted(saved.path.glob("__*.distcp"))]
    assert len(sizes) == 2 and min(sizes) > 0.8 * max(sizes)


def test_batch_normalization_over_processes() -> None:
    for gaps in run("tests.sharding.finetune_workers:norms", 2, first=4):
        assert len(gaps) == 4 and max(gaps.values()) < 1e-13, gaps


def test_other_running_statistics_are_refused() -> None:
    assert "InstanceNorm1d" in workers.refused()
