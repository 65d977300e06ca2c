"""Models of transformers as starts: what is loaded, what is new, what holds them, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from mooring.compare.config import build_config
from mooring.finetune.errors import SpecError
from mooring.finetune.evaluate import predict
from mooring.finetune.methods import resolve
from mooring.finetune.metrics import summarize
from mooring.finetune.optimizers import build_optimizer
from mooring.finetune.own import task as own_task
from mooring.finetune.own.models import build, tokenizer
from mooring.finetune.task_spec import ModelSpec, OwnTaskSpec
from mooring.finetune.tasks.starts import load_start

from .miniatures import commonsense, domainnet, indoor, wikitext

pytestmark = pytest.mark.recipes


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def described(**task: Any) -> OwnTaskSpec:
    found = build_config({"task": task}).identified().task
    assert isinstance(found, OwnTaskSpec)
    return found


def one_step(start: Any, method: Any) -> Any:
    optimizer = build_optimizer(resolve(method), start.model, head=start.head)
    start.model.train()
    batch = start.data.train.rows(torch.arange(3))
    start.task.loss(start.model, batch).backward()
    optimizer.step()
    return optimizer


def test_anchors_are_the_loaded_weights_and_the_new_head_has_none(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = domainnet(tmp_path)
    splits = {"train": "real_train.txt", "id": "real_test.txt"}
    start = load_start(
        described(name="image-folder", data=str(made.data), model={"pretrained": str(made.pretrained)},
                  splits=splits, image_size=32),
        0,
    )  # fmt: skip
    assert set(start.head) == {"network.classifier.weight", "network.classifier.bias"}
    optimizer = one_step(start, "adamspd")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    held = []
    for name, parameter in start.model.named_parameters():
        if name in start.head:
            assert optimizer.anchor_of(parameter) is None
        elif parameter.grad is not None:  # the last normalisation of CLIP's encoder has no part in the classifier
            assert torch.equal(optimizer.anchor_of(parameter), saved[name.removeprefix("network.")])
            held.append(not torch.equal(parameter, start.state[name]))
    assert len(held) == len(start.state) - 4 and all(held)


def test_draws_of_a_new_head_belong_to_the_start(tmp_path: Path) -> None:
    made = indoor(tmp_path)
    spec = described(
        name="image-folder", data=str(made.data), model={"pretrained": str(made.pretrained)}, root="Images",
        splits={"train": "TrainImages.txt", "id": "TestImages.txt"}, image_size=32, starts=2,
    )  # fmt: skip
    starts = [load_start(spec, seed) for seed in (0, 1, 2)]
    assert starts[0].sha256 == starts[2].sha256 != starts[1].sha256
    (weight,) = (name for name in starts[0].head if name.endswith("weight"))
    for name, tensor in starts[0].state.items():
        assert torch.equal(tensor, starts[1].state[name]) == (name != weight and not name.endswith("classifier.1.bias"))


def test_adapters_are_trained_and_the_model_is_not(tmp_path: Path) -> None:
    made = commonsense(tmp_path)
    spec = described(
        name="instructions", data=str(made.data), model={"pretrained": str(made.pretrained)}, holdout=2, lora={"r": 2},
        files={"train": "ft-training_set/commonsense_170k.json"},
    )  # fmt: skip
    start = load_start(spec, 0)
    frozen = {name: p.detach().clone() for name, p in start.model.named_parameters() if not p.requires_grad}
    optimizer = one_step(start, "adamspd")
    after = dict(start.model.named_parameters())
    assert frozen and all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert len(start.state) == 10 and all("lora_" in name for name in start.state)  # A and B of five layers
    assert not any(optimizer.anchor_of(after[name]).any() for name in start.state)
    assert any(not torch.equal(after[name], start.state[name]) for name in start.state)
    with pytest.raises(SpecError, match=r"task.lora.targets \['no_such_layer'\] do not fit the model"):
        load_start(spec.model_copy(update={"lora": type(spec.lora)(targets=("no_such_layer",))}), 0)  # type: ignore


def test_perplexity_is_that_of_the_models_own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wikitext(tmp_path)
    model = {"type": "gpt2", "config": {**made.config, "embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0}}
    start = load_start(described(name="language-model", data=str(made.data), model=model, block=8), 0)
    monkeypatch.setattr(own_task, "KEPT_LOGITS", 0)
    split = start.data.evaluation["id"]
    found = summarize(predict(start.task, start.model, {"train": split, "id": split}))["id/nll"]
    everything = split.rows(torch.arange(len(split)))
    with torch.no_grad():
        logits = start.model.eval()(everything.inputs)
    expected = sum(
        cross_entropy(logits[block, place], everything.labels[block, place]).item()
        for block in range(len(split))
        for place in range(8)
    ) / (8 * len(split))
    assert found == pytest.approx(expected, rel=1e-5) and math.exp(found) < 20  # 13 words, untrained


def test_files_that_make_no_such_model_are_refused(tmp_path: Path) -> None:
    made = commonsense(tmp_path)
    with pytest.raises(SpecError, match="cannot be loaded for images"):
        build(ModelSpec(pretrained=str(made.pretrained)), "images", 3)
    with pytest.raises(SpecError, match=r"model.type 'resnett' with the config given makes no model"):
        build(ModelSpec(type="resnett"), "images", 3)
    with pytest.raises(SpecError, match=r"model.config: ResNetConfig has no 'depth' \(did you mean 'depths'\?\)"):
        build(ModelSpec(type="resnet", config={"depth": [1]}), "images", 3)
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    with pytest.raises(SpecError, match=r"the tokenizer of .* cannot be loaded"):
        tokenizer(ModelSpec(pretrained=str(made.pretrained)))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made = indoor(tmp_path)
    file = tmp_path / "model" / "model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"are not those of ResNetForImageClassification: \d+ of its \d+ parameters"):
        build(ModelSpec(pretrained=str(made.pretrained)), "images", 3)
