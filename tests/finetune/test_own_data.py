"""Data and models on the user's disk: what is found, what is refused, what identifies them, how images are drawn."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mooring.compare.config import ConfigError, RunConfig, build_config
from mooring.compare.store import RunFolder, differences
from mooring.finetune.errors import SpecError, TrialError
from mooring.finetune.methods import resolve
from mooring.finetune.metrics import Prediction, load_predictions, save_predictions, score, summarize
from mooring.finetune.optimizers import build_optimizer
from mooring.finetune.own import task as own_task
from mooring.finetune.own.cifar import Pictures, drawn, shifted
from mooring.finetune.own.images import ImageFiles, View, crop_box
from mooring.finetune.own.task import load_own_task
from mooring.finetune.seeds import derive, generator
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.task_spec import OwnTaskSpec
from tests.recipes.miniatures import cifar10, imagenet, picture

BUILTIN = {"builtin": "resnet18-cifar", "width": 4}


def config(name: str, data: Path | str, train: dict[str, Any] | None = None, **task: Any) -> RunConfig:
    content = {"name": name, "data": str(data), "model": BUILTIN, **task}
    return build_config({"task": content, "train": train or {}, "compare": {"methods": ["adamw"], "seeds": 2}})


def own(found: RunConfig) -> OwnTaskSpec:
    assert isinstance(found.task, OwnTaskSpec)
    return found.task


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return imagenet(tmp_path).data


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return cifar10(tmp_path).data


# What is refused


def test_wrong_folders_are_named_with_what_should_be_there(images: Path, tmp_path: Path) -> None:
    def refused(match: str, **task: Any) -> None:
        with pytest.raises(SpecError, match=match):
            config("image-folder", task.pop("data", images), **task).identified()

    refused(r"needs your data: give its folder with --data", data="")
    refused(r"there is no folder '.*nowhere'", data=tmp_path / "nowhere")
    refused(r"should hold train/CLASS/\*\.jpg and val/CLASS/.*it holds n01440764/", data=images / "train")
    refused(r"there is no '.*/vall' \(did you mean 'val'\?\)", splits={"train": "train", "id": "vall"})
    refused(r"the class 'n09999999', which the training images do not have", **extra_class(images))
    shutil.rmtree(images / "val" / "n09999999")
    (images / "train" / "n02000000").mkdir()
    refused(r"class folder '.*n02000000' holds no image; remove it")
    (images / "train" / "n02000000").rmdir()
    for path in (images / "val").glob("*/*"):
        path.rename(images / "val" / path.name)
    shutil.rmtree(images / "val" / "n01440764")
    shutil.rmtree(images / "val" / "n01443537")
    shutil.rmtree(images / "val" / "n01484850")
    refused(r"'.*/val' holds images but no class folders; expected val/CLASS/\*\.jpg")


def extra_class(images: Path) -> dict[str, Any]:
    picture(images / "val" / "n09999999" / "1.JPEG", random.Random(0))
    return {}


def test_lists_name_their_line_and_do_not_mix(images: Path) -> None:
    splits = {"train": "list.txt", "id": "val"}
    (images / "list.txt").write_text("train/n01440764/n01440764_10026.JPEG 0\ntrain/n01440764/gone.JPEG 0\n")
    with pytest.raises(SpecError, match=r"line 2 of '.*list.txt' names '.*gone.JPEG', which is not there"):
        config("image-folder", images, splits=splits).identified()
    (images / "list.txt").write_text("train/n01440764/n01440764_10026.JPEG 0\ntrain/n01443537/n01443537_10026.JPEG 1\n")
    with pytest.raises(SpecError, match="must be numbers in lists, or names of folders, got train: numbers, id: names"):
        config("image-folder", images, splits=splits).identified()


def test_the_pickled_version_of_cifar_is_never_read(binary: Path) -> None:
    place = binary / "cifar-10-batches-bin"
    with pytest.raises(SpecError, match=r"binary version of CIFAR-100: train.bin and test.bin"):
        config("cifar", binary, classes=100).identified()
    with (place / "test_batch.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(SpecError, match=r"has 18439 bytes, which is no multiple of the 3073"):
        config("cifar", binary).identified()
    (place / "test_batch.bin").unlink()
    (place / "data_batch_1").write_bytes(b"")
    with pytest.raises(SpecError, match="Python version, a pickle, which is never read"):
        config("cifar", binary).identified()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"imagesize": 32}, r"unknown key 'task.imagesize' \(did you mean 'image_size'\?\)"),
        ({"model": {"builtins": "x"}}, r"unknown key 'task.model.builtins' \(did you mean 'builtin'\?\)"),
        ({"model": {"builtin": "vgg16-cifar", "type": "resnet"}}, r"one of pretrained .* got type and builtin"),
        ({"splits": {"train": "a", "ood": "b"}}, r"unknown split 'ood'; splits are train, id, id_val and ood.NAME"),
        ({"splits": {"train": "a"}}, r"splits must name train, and id must be among splits or holdout"),
        ({"pretrain_steps": 3}, r"pretrain_steps is for embedded tasks"),
        ({"scale": [0.5, 0.1]}, r"scale must be a range"),
    ],
)
def test_a_wrong_description_names_the_key(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config("image-folder", "anywhere", **content)


def test_keys_of_an_embedded_task_are_still_its_own() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown key 'task.data' .* the keys there are name, data_seed, starts, pre"
    ):
        build_config({"task": {"data": "somewhere"}})
    with pytest.raises(ConfigError, match=r"train\.epochs is for tasks on your own data"):
        build_config({"train": {"epochs": 2}}).identified()


def test_an_image_that_cannot_be_read_is_named(images: Path) -> None:
    (images / "val" / "n01440764" / "broken.JPEG").write_bytes(b"no image")
    data = load_own_task(own(config("image-folder", images).identified())).data(0)
    with pytest.raises(TrialError, match=r"broken\.JPEG' cannot be read"):
        data.evaluation["id"].rows(torch.arange(len(data.evaluation["id"])))


# What identifies data


def test_moved_data_is_the_same_data_and_changed_data_is_not(images: Path, tmp_path: Path) -> None:
    before = config("image-folder", images).identified()
    shutil.move(images, tmp_path / "moved")
    moved = config("image-folder", tmp_path / "moved", workers=1).identified()
    assert [t.key() for t in moved.trials()] == [t.key() for t in before.trials()]
    assert not differences(before, moved)
    with RunFolder(tmp_path / "run") as folder:
        folder.open(before, {})
        assert own(folder.open(moved, {}).config).data == str(tmp_path / "moved")
    picture(tmp_path / "moved" / "train" / "n01440764" / "one_more.JPEG", random.Random(1))
    changed = config("image-folder", tmp_path / "moved").identified()
    assert differences(before, changed) and changed.trials()[0].key() != before.trials()[0].key()
    with pytest.raises(SpecError, match="is not what this comparison began with"):
        moved.identified()


def test_a_resolved_configuration_reads_back_to_itself(binary: Path) -> None:
    found = config("cifar", binary, {"epochs": 3, "batch_size": 10}).identified()
    assert (found.train.steps, found.train.eval_every) == (9, 3)  # 30 images
    import yaml

    again = build_config(yaml.safe_load(found.to_yaml()))
    assert again == found and again.identified() == found


def test_embedded_trials_keep_the_keys_they_had_before() -> None:
    # Taken before tasks on one's own data were added: folders of finished trials are to stay finished.
    spurious = TaskSpec(name="synthetic-spurious", starts=2)
    linear = TrialSpec(method=resolve("nso"), task=spurious, train=TrainSpec(schedule="linear"), seed=0)
    assert TrialSpec(method=resolve("adamw"), seed=3).key() == "df1106e458a1ec03"
    assert linear.key() == "ff5e04a0a390d038"  # of version 2 of nso; what version 1 finished is run again


# How long, and how fast


def test_the_step_schedule_drops_where_the_epochs_say() -> None:
    train = TrainSpec(steps=300, warmup=0, schedule="step", drop_every=1 / 3)
    assert [train.lr_factor(step) for step in (0, 99, 100, 199, 200, 299)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    two = TrainSpec(steps=200, warmup=0, schedule="step", drop_every=0.4, drop_factor=0.5)
    assert [two.lr_factor(step) for step in (79, 80, 159, 160, 199)] == [1, 0.5, 0.5, 0.25, 0.25]
    with pytest.raises(ValueError, match="schedule 'step' and drop_every"):
        TrainSpec(schedule="step")
    with pytest.raises(ValueError, match="schedule 'step' and drop_every"):
        TrainSpec(drop_every=0.5)


# Splits


def test_folders_lists_and_shares_give_the_same_labels(images: Path) -> None:
    lines = [f"{p.relative_to(images / 'train')}\n" for p in sorted((images / "train").glob("*/*"))]
    (images / "list.txt").write_text("".join(lines))
    listed = config("image-folder", images, root="train", splits={"train": "list.txt", "id": "val"})
    from_list, from_folders = (
        load_own_task(own(found.identified())).data(0) for found in (listed, config("image-folder", images))
    )
    pairs = [(from_list.train, from_folders.train), (from_list.evaluation["id"], from_folders.evaluation["id"])]
    for one, other in pairs:
        assert isinstance(one, ImageFiles) and isinstance(other, ImageFiles)
        assert list(one.paths) == list(other.paths) and one.labels.tolist() == other.labels.tolist()
    (images / "test").mkdir()
    shutil.copytree(images / "val", images / "test", dirs_exist_ok=True)
    assert set(load_own_task(own(config("image-folder", images).identified())).data(0).evaluation) == {"id_val", "id"}


def test_what_is_held_out_is_not_trained_on(images: Path) -> None:
    two = {"epochs": 1, "batch_size": 2}
    found = config("image-folder", images, two, splits={"train": "train"}, holdout={"id": 0.3}).identified()
    assert found.train.steps == 3  # 9 images, 3 held out
    drawn = []
    for seed in (0, 1, 0):
        data = load_own_task(own(found)).data(seed)
        train, held = data.train, data.evaluation["id"]
        assert isinstance(train, ImageFiles) and isinstance(held, ImageFiles)
        assert not set(train.paths) & set(held.paths) and len({*train.paths, *held.paths}) == 9
        assert sorted(held.labels.tolist()) == [0, 1, 2]  # one of every class
        drawn.append(held.paths)
    assert drawn[0] == drawn[2] != drawn[1]


def test_cifar_is_read_as_it_is_written(tmp_path: Path) -> None:
    data = cifar10(tmp_path).data
    rng = np.random.default_rng(7)
    image, label = rng.integers(256, size=(3, 32, 32), dtype=np.uint8), 6
    file = data / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(bytes([label]) + image.tobytes())
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    read = load_own_task(own(config("cifar", data, mean=mean, std=std).identified())).data(0).evaluation["id"]
    found = read.rows(torch.tensor([0]))
    assert found.labels.tolist() == [label]
    for channel in range(3):
        expected = (image[channel] / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(found.inputs[0, channel], expected, rtol=1e-5, atol=1e-6)


# Augmentation


def test_shifts_and_flips_match_a_loop_over_pixels() -> None:
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    rng = generator("test")
    offsets = torch.randint(9, (2, 5), generator=rng)
    flips = torch.rand(5, generator=rng) < 0.5
    assert flips.any() and not flips.all()
    moved = shifted(pixels, *drawn(len(pixels), generator("test")))
    for image in range(5):
        expected = np.zeros((3, 32, 32), dtype=np.uint8)
        for row in range(32):
            for column in range(32):
                y = row + int(offsets[0, image]) - 4
                x = (31 - column if flips[image] else column) + int(offsets[1, image]) - 4
                if 0 <= y < 32 and 0 <= x < 32:
                    expected[:, row, column] = pixels[image, :, y, x]
        np.testing.assert_array_equal(moved[image], expected)


def test_random_crops_lie_inside_and_cover_what_they_should() -> None:
    rng = random.Random(0)
    shares, ratios = [], []
    for _ in range(2000):
        left, top, right, bottom = crop_box((500, 400), (0.08, 1.0), rng)
        assert 0 <= left < right <= 500 and 0 <= top < bottom <= 400
        shares.append((right - left) * (bottom - top) / 200_000)
        ratios.append((right - left) / (bottom - top))
    # Rounding to pixels moves a side of 113 pixels or more by less than half a percent.
    assert min(shares) > 0.079 and max(shares) <= 1 and min(shares) < 0.1 and max(shares) > 0.9
    assert 0.74 < min(ratios) < 0.78 and 1.29 < max(ratios) < 1.35
    assert crop_box((1000, 10), (1.0, 1.0), rng) == (493, 0, 506, 10)  # no shape fits: the middle, 4:3


def test_the_middle_of_an_image_is_cut_out_after_resizing(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 32:96] = 200
    view = View(32, 32, (0, 0, 0), (1, 1, 1))
    assert np.asarray(view.middle(Image.fromarray(pixels)))[:, 1:-1].min() == 200


def test_batches_read_ahead_are_those_of_seed_step_and_example(images: Path) -> None:
    spec = own(config("image-folder", images, image_size=16).identified())
    order = torch.tensor([[0, 5], [5, 0], [8, 1]])

    def batches(seed: int, workers: int) -> list[torch.Tensor]:
        task = load_own_task(spec.model_copy(update={"workers": workers}))
        return [batch.inputs for batch in task.data(seed).train.stream(order)]

    first, again, other = batches(3, 1), batches(3, 4), batches(4, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0][1], first[1][0])  # the same image in another step
    with Image.open(sorted((images / "train").glob("*/*"))[8]) as opened:
        rng = random.Random(derive("augmentation", 3, 2, 8))
        box = crop_box(opened.size, (0.08, 1.0), rng)
        drawn = opened.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, box=box)
    flipped = np.asarray(drawn)[:, ::-1] if rng.random() < 0.5 else np.asarray(drawn)
    mean, std = np.array(spec.model_dump()["mean"]), np.array(spec.model_dump()["std"])
    np.testing.assert_allclose(first[2][0].permute(1, 2, 0), (flipped / 255 - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cifar", "image-folder"])
def test_parts_of_batches_from_a_later_step_are_those_of_the_whole(binary: Path, images: Path, kind: str) -> None:
    """What processes that share a batch read, and a training that goes on."""
    folder, options = (binary, {}) if kind == "cifar" else (images, {"image_size": 16})
    train = load_own_task(own(config(kind, folder, **options).identified())).data(3).train
    order = torch.tensor([[0, 5, 2], [5, 0, 1], [8, 1, 0]])
    whole = list(train.stream(order))
    for first in range(4):
        parts = [list(train.stream(order, first, part)) for part in (slice(0, 2), slice(2, 3))]
        assert len(parts[0]) == len(parts[1]) == 3 - first
        for expected, *found in zip(whole[first:], *parts, strict=True):
            assert torch.equal(torch.cat([batch.inputs for batch in found]), expected.inputs)
            assert torch.equal(torch.cat([batch.labels for batch in found]), expected.labels)


def test_pictures_without_augmentation_stay_as_they_are() -> None:
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    split = Pictures(pixels, torch.arange(4), View(32, 32, (0, 0, 0), (1, 1, 1)))
    (batch,) = split.stream(torch.tensor([[2, 0]]))
    assert torch.equal(batch.inputs, pixels[[2, 0]].float() / 255) and batch.labels.tolist() == [2, 0]


# Predictions, and what is new in a model


def test_predictions_too_many_to_keep_give_the_same_metrics(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_own_task(own(config("cifar", binary, eval_batch=4).identified()))
    model, split = task.model().eval(), task.data(0).evaluation["id"]
    with torch.no_grad():
        kept = task.logits(model, split)
        monkeypatch.setattr(own_task, "KEPT_LOGITS", 1)
        reduced = task.logits(model, split)
    assert isinstance(kept, Prediction) and len(kept.labels) == len(split)
    both = {"train": reduced, "id": reduced, "ood.x": kept}
    metrics = summarize(both)
    for name in ("accuracy", "nll", "ece"):
        assert metrics[f"id/{name}"] == pytest.approx(metrics[f"ood.x/{name}"], rel=1e-5)
    save_predictions(tmp_path / "predictions.npz", both)
    assert summarize(load_predictions(tmp_path / "predictions.npz")) == metrics
    assert "ood/accuracy" not in summarize({"train": kept, "id": kept})


def test_scores_are_those_of_a_softmax() -> None:
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 5.0]], dtype=np.float32)
    found = score(Prediction(logits, np.array([0, 1])))
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.log_p, np.log([p[0, 0], p[1, 1]]), rtol=1e-12)
    np.testing.assert_allclose(found.confidence, [p[0, 0], p[1, 2]], rtol=1e-12)
    assert found.correct.tolist() == [True, False]


@pytest.mark.parametrize(
    "method",
    [
        "adamspd",
        {"name": "adam", "options": {"lr": 1e-2}, "rules": [{"SelectiveProjection": 1.0}], "label": "recipe"},
        {"wrap": "torch.optim:Adam", "lr": 1e-2, "rules": [{"SelectiveProjection": 1.0}], "label": "wrapped"},
    ],
    ids=str,
)
def test_a_new_head_has_no_anchor_and_adapters_have_zero(method: Any) -> None:
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "lora_A": nn.Linear(3, 3, bias=False), "head": nn.Linear(3, 2)})
    model["body"].bias.requires_grad_(False)
    loaded = model["body"].weight.detach().clone()
    optimizer: Any = build_optimizer(resolve(method), model, head=("head",))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4  # what is frozen is left out
    model["head"](model["lora_A"](model["body"](torch.ones(2, 3)))).square().sum().backward()
    optimizer.step()
    anchors = {name: optimizer.anchor_of(p) for name, p in model.named_parameters() if p.requires_grad}
    assert torch.equal(anchors["body.weight"], loaded) and not torch.equal(model["body"].weight, loaded)
    assert anchors["head.weight"] is None and anchors["head.bias"] is None
    assert not anchors["lora_A.weight"].any()
