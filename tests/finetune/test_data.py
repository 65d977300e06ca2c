from __future__ import annotations

import pytest
import torch

from mooring.finetune.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from mooring.finetune.data import Split, batches, deal
from mooring.finetune.seeds import derive, generator, own_global_rng
from mooring.finetune.spec import TaskSpec
from mooring.finetune.tasks.fonts2digits import NEAR_ROWS, Fonts2Digits
from mooring.finetune.tasks.printed import _glyphs, printed_digits
from mooring.finetune.tasks.synthetic_spurious import SyntheticSpurious


@pytest.fixture(scope="module")
def digits() -> dict[str, torch.Tensor]:
    """The fixed data with every image replaced by its row's number, so that a split says which rows it holds."""
    fixed = Fonts2Digits(TaskSpec()).fixed()
    rows = torch.arange(len(fixed["digits.labels"]), dtype=torch.float32)
    return {**fixed, "digits.rows": rows.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)}


def rows_of(digits: dict[str, torch.Tensor], seed: int) -> dict[str, list[int]]:
    data = Fonts2Digits(TaskSpec()).data(seed, {**digits, "digits.inputs": digits["digits.rows"]})
    splits = {"train": data.train, **{name: data.evaluation[name] for name in ("id_val", "id", "ood.later_rows")}}
    return {name: split.inputs[:, 0, 0, 0].int().tolist() for name, split in splits.items()}


def test_splits_are_disjoint_and_cover_the_near_rows(digits: dict[str, torch.Tensor]) -> None:
    rows = rows_of(digits, 0)
    assert {name: len(split) for name, split in rows.items()} == {
        "train": 100,
        "id_val": 60,
        "id": 140,
        "ood.later_rows": 1197,
    }
    assert sorted(rows["train"] + rows["id_val"] + rows["id"]) == list(range(NEAR_ROWS))
    assert rows["ood.later_rows"] == list(range(600, 1797))


def test_splits_are_redrawn_per_seed_and_the_same_for_the_same_seed(digits: dict[str, torch.Tensor]) -> None:
    assert rows_of(digits, 1) == rows_of(digits, 1)
    assert set(rows_of(digits, 1)["train"]) != set(rows_of(digits, 2)["train"])


def test_splits_are_stratified(digits: dict[str, torch.Tensor]) -> None:
    labels = digits["digits.labels"]
    share = torch.bincount(labels[:NEAR_ROWS], minlength=10) / NEAR_ROWS
    for seed in range(20):
        rows = rows_of(digits, seed)
        for name in ("train", "id_val", "id"):
            counts = torch.bincount(labels[rows[name]], minlength=10)
            assert (counts - share * len(rows[name])).abs().max() < 2


def test_dealing_needs_hands_for_every_row() -> None:
    with pytest.raises(ValueError, match="sum to 5, there are 6 rows"):
        deal(torch.zeros(6), (2, 3), generator("x"))


def test_every_example_comes_once_per_pass() -> None:
    order = batches(10, 4, 5, generator("order", 0))
    assert order.shape == (5, 4)
    assert sorted(order.flatten()[:10].tolist()) == sorted(order.flatten()[10:].tolist()) == list(range(10))


def test_every_font_has_ten_digits_that_differ() -> None:
    glyphs = _glyphs().flatten(2)
    assert glyphs.shape[:2] == (20, 10)
    ink = glyphs.mean(-1)
    assert 0.08 < ink.min() < ink.max() < 0.6
    for font in glyphs:
        distances = torch.cdist(font, font) / glyphs.shape[-1] ** 0.5
        assert distances[~torch.eye(10, dtype=torch.bool)].min() > 0.15


def test_printed_digits_look_like_the_handwritten_set(digits: dict[str, torch.Tensor]) -> None:
    printed = printed_digits(500, generator("printed test"))
    assert printed.inputs.shape == (500, 1, 8, 8)
    assert torch.bincount(printed.labels).tolist() == [50] * 10
    assert printed.inputs.min() >= 0
    assert printed.inputs.max() <= 1
    assert abs(printed.inputs.mean() - digits["digits.inputs"].mean()) < 0.1
    again = printed_digits(500, generator("printed test"))
    assert torch.equal(printed.inputs, again.inputs)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_are_deterministic_clamped_and_stronger_with_severity(
    kind: str, digits: dict[str, torch.Tensor]
) -> None:
    images = digits["digits.inputs"][:NEAR_ROWS]
    changed = []
    for severity in SEVERITIES:
        once = corrupt(images, kind, severity, generator(kind, 0))
        assert torch.equal(once, corrupt(images, kind, severity, generator(kind, 0)))
        assert once.shape == images.shape
        assert once.min() >= 0
        assert once.max() <= 1
        changed.append((once - images).pow(2).mean().sqrt().item())
    assert 0 < changed[0] < changed[1] < changed[2]


@pytest.mark.parametrize("kind", sorted(set(CORRUPTIONS) - {"contrast"}))
def test_random_corruptions_follow_the_seed(kind: str, digits: dict[str, torch.Tensor]) -> None:
    images = digits["digits.inputs"][:20]
    assert not torch.equal(corrupt(images, kind, 1, generator(0)), corrupt(images, kind, 1, generator(1)))


def test_a_shift_moves_ink_by_less_than_a_pixel_at_first() -> None:
    dot = torch.zeros(50, 1, 8, 8)
    dot[:, 0, 3:5, 3:5] = 1
    moved = corrupt(dot, "shift", 1, generator("shift"))
    grid = torch.arange(8.0)
    mass = moved.sum((1, 2, 3))
    x = (moved.sum((1, 2)) * grid).sum(1) / mass - 3.5
    y = (moved.sum((1, 3)) * grid).sum(1) / mass - 3.5
    torch.testing.assert_close(torch.hypot(x, y), torch.full((50,), 0.4), atol=2e-3, rtol=0)


def test_an_occlusion_covers_the_area_it_says() -> None:
    white = torch.ones(50, 1, 8, 8)
    for severity, side in zip(SEVERITIES, (2.0, 2.5, 3.0), strict=True):
        covered = (1 - corrupt(white, "occlusion", severity, generator("occlusion"))).sum((1, 2, 3))
        torch.testing.assert_close(covered, torch.full((50,), side**2), atol=1e-4, rtol=0)


def test_seeds_of_different_purposes_differ_and_the_global_generator_is_left_alone() -> None:
    assert derive("a", 1) != derive("a1") != derive("a", 2)
    assert derive("a", 1) == 4742018630964328543
    before = torch.get_rng_state()
    with own_global_rng(torch.device("cpu"), "x"):
        first = torch.rand(3)
    with own_global_rng(torch.device("cpu"), "x"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


def test_the_spurious_feature_agrees_as_often_as_it_should() -> None:
    task = SyntheticSpurious(TaskSpec(name="synthetic-spurious"))
    data = task.data(0, task.fixed())

    def agreement(split: Split) -> float:
        return ((split.inputs[:, 1] > 0) == (split.labels == 1)).float().mean().item()

    assert agreement(data.train) == pytest.approx(0.95, abs=0.03)
    assert agreement(data.evaluation["id"]) == pytest.approx(0.95, abs=0.03)
    assert agreement(data.evaluation["ood.anti"]) == pytest.approx(0.05, abs=0.03)
    assert agreement(data.evaluation["ood.none"]) == pytest.approx(0.5, abs=0.06)
    assert agreement(data.evaluation["retention"]) == pytest.approx(0.5, abs=0.06)
    assert not torch.equal(data.train.inputs, task.data(1, task.fixed()).train.inputs)
