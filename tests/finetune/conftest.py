"""A cache of its own for these tests, and specifications small enough to run in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.finetune.methods import resolve
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tests never read or write the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("MOORING_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture
def vision() -> TaskSpec:
    return TaskSpec(starts=2, pretrain_steps=20, pretrain_examples=400)


@pytest.fixture
def spurious() -> TaskSpec:
    return TaskSpec(name="synthetic-spurious", starts=2)


@pytest.fixture
def short(spurious: TaskSpec) -> TrialSpec:
    """A trial of a fraction of a second."""
    return TrialSpec(
        method=resolve({"name": "torch.optim:AdamW", "lr": 1e-3}),
        task=spurious,
        train=TrainSpec(steps=12, eval_every=5),
        seed=3,
    )
