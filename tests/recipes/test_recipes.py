"""Every file in recipes/ runs through the command line: two steps on a generated miniature of its data set."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.cli import main
from mooring.compare.config import RunConfig, build_config, read_yaml

from .miniatures import MINIATURES, SIZES, Miniature

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
WITHOUT_TRANSFORMERS = {"cifar10-resnet18"}
WITH_FIGURES = {"cifar10-resnet18", "wikitext103-gpt2", "domainnet-clip-vit-b"}
# Parameters of the published networks, from their papers or torchvision's table: a wrong block or width shows here.
PARAMETERS = {
    "imagenet-resnet18": 11_689_512,
    "imagenet-resnet18-no-decay": 11_689_512,
    "imagenet-resnet50": 25_557_032,
    "imagenet-mobilenetv2": 3_504_872,
    "cifar10-resnet18": 11_173_962,
    "cifar10-vgg16": 14_728_266 - 4_224,  # convolutions before batch normalization have no bias here
    "cifar100-densenet121": 7_048_548,
}


def recipes() -> list[Any]:
    marks: dict[bool, list[Any]] = {True: [], False: [pytest.mark.recipes]}
    return [pytest.param(path, id=path.stem, marks=marks[path.stem in WITHOUT_TRANSFORMERS]) for path in RECIPES]


def shrunk(recipe: Path, made: Miniature, target: Path) -> RunConfig:
    """Write the recipe with the miniature's sizes; everything else stays as it is."""
    content = read_yaml(recipe)
    model = content["task"]["model"]
    changes = {"task": made.task, "train": made.train, "model": {}}
    if "type" in model:
        changes["model"] = {"config": {**model.get("config", {}), **made.config}}
    if "builtin" in model:
        changes["model"] = {"width": made.width}
    for section, changed in changes.items():
        assert set(changed) <= SIZES[section]
    model.update(changes["model"])
    content["task"].update({**made.task, "starts": 1})
    content["train"].update(made.train)
    target.write_text(yaml.safe_dump(content), encoding="utf-8")
    return build_config(content)


def test_every_recipe_has_a_miniature() -> None:
    assert {path.stem for path in RECIPES} == set(MINIATURES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_where_it_comes_from_and_what_is_not_known(recipe: Path) -> None:
    config = build_config(read_yaml(recipe), source=str(recipe))
    assert config.trials() and config.baseline in config.labels
    text = recipe.read_text(encoding="utf-8")
    page = recipe.parents[1] / "docs" / "papers-benchmarks.md"
    assert f"| `{recipe.stem}` |" in page.read_text(encoding="utf-8")
    for part in ("arXiv ", f"mooring compare recipes/{recipe.name} --data ", "# Data: ", "Published", "Not known here"):
        assert part in text, f"{recipe.name} does not say: {part}"


@pytest.mark.parametrize("recipe", recipes())
def test_two_steps(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    made = MINIATURES[recipe.stem](tmp_path)
    config = shrunk(recipe, made, tmp_path / recipe.name)
    words = ["compare", recipe.name, "--data", str(made.data), "--steps", "2", "--seeds", "1", "--output-dir", "run"]
    words += ["--model", str(made.pretrained)] if made.pretrained else []
    if recipe.stem not in WITH_FIGURES:  # they take longer than the trials
        monkeypatch.setattr("mooring.compare.report.render", lambda results, folder: {})
    code = main(words)
    assert code == 0, capfd.readouterr().err
    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert ("## Each shift" in page) == any(split.startswith("ood.") for split in getattr(config.task, "splits", {}))
    assert ("ID loss" in page) == (config.task.name in ("language-model", "instructions"))
    assert "etention" not in page
    for method in config.compare.methods:
        (trial,) = (tmp_path / "run" / "trials" / method.label).iterdir()
        final = json.loads((trial / "final.json").read_text(encoding="utf-8"))
        assert final["steps"] == 2 and all(math.isfinite(value) for value in final.values())
        assert 0 <= final["id/accuracy"] <= 1 and final["id/nll"] > 0
        for split in {**getattr(config.task, "splits", {}), **getattr(config.task, "files", {})}:
            assert split == "train" or f"{split}/accuracy" in final
        check_moved_from_the_loaded_weights(trial, made)


def check_moved_from_the_loaded_weights(trial: Path, made: Miniature) -> None:
    """Every parameter began where the file has it, and the optimizer moved the model."""
    with (trial / "layers.csv").open(newline="", encoding="utf-8") as file:
        layers = {row["name"]: row for row in csv.DictReader(file)}
    assert sum(float(row["drift_l2"]) > 0 for row in layers.values()) > len(layers) / 2
    if made.pretrained is None:
        return
    if any("lora_" in name for name in layers):  # adapters alone are trained, and begin by changing nothing
        assert all("lora_" in name for name in layers)
        assert all((float(row["norm0"]) == 0) == ("lora_B" in name) for name, row in layers.items())
        return
    from safetensors.torch import load_file

    saved = load_file(made.pretrained / "model.safetensors")
    known = 0
    for name, row in layers.items():
        tensor = saved.get(name.removeprefix("network."))
        if tensor is not None and tensor.numel() == int(row["numel"]):
            assert float(row["norm0"]) == pytest.approx(float(tensor.double().norm()), rel=1e-6)
            known += 1
    assert known >= len(layers) - 2  # all but the head's weight and bias


@pytest.mark.recipes
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_network_is_the_published_one(name: str) -> None:
    import torch

    from mooring.finetune.own.models import build

    task = build_config(read_yaml(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")).task
    with torch.device("meta"):
        network = build(task.model, "images", getattr(task, "classes", 1000))  # type: ignore[attr-defined]
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
