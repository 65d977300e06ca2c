"""What the two experiments with AdamP's other settings measure, held against plain computations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mooring.finetune.spec import TaskSpec
from mooring.finetune.tasks.starts import load_start
from mooring.finetune.tasks.text_characters import CONTEXT, CharTransformer
from mooring.reproduce.experiments import retrieval, text_weight_norm


def test_the_texts_follow_one_another_without_overlap() -> None:
    train, validation, test = text_weight_norm.corpus()
    length = text_weight_norm.HELD_OUT * CONTEXT
    text = torch.cat([
        train, *(torch.cat([split.inputs.flatten(), split.labels[-1, -1:]]) for split in (validation, test))
    ])  # fmt: skip
    whole = text_weight_norm.encode(text_weight_norm.reference()).long()
    assert torch.equal(text, whole)
    assert len(validation.inputs.flatten()) == len(test.inputs.flatten()) == length
    assert len(train) > 10 * length


def test_bits_per_character_by_hand() -> None:
    model = CharTransformer(normalised=True)
    _, validation, _ = text_weight_norm.corpus()
    part = validation.rows(torch.arange(3))
    with torch.no_grad():
        p = model(part.inputs).double().softmax(-1)
    total = -sum(math.log2(p[i, j, part.labels[i, j]]) for i in range(3) for j in range(CONTEXT))
    assert text_weight_norm.bits(model, part) == pytest.approx(total / (3 * CONTEXT), rel=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_norms_of_a_text_trial_are_those_of_the_linear_layers(normalised: bool) -> None:
    found = text_weight_norm.trial("AdamP", normalised, 1e-3, 5, 2)
    assert found == text_weight_norm.trial("AdamP", normalised, 1e-3, 5, 2)
    with text_weight_norm.own_global_rng(torch.device("cpu"), "initialisation", 5):
        model = CharTransformer(normalised)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = [m.parametrizations.weight.original1 if normalised else m.weight for m in layers]
    assert len(found["norms"]) == 2 and len(weights) == 9
    assert found["norms"][0] == pytest.approx(sum(float(w.detach().square().sum()) for w in weights))


def test_norms_of_a_retrieval_trial_are_those_of_the_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path))
    task = TaskSpec(name="digits-retrieval", starts=1, pretrain_steps=2, pretrain_examples=200)
    monkeypatch.setattr(retrieval, "TASK", task)
    found = retrieval.trial("SGDP", 1e-3, 0, retrieval.EVERY)
    assert found == retrieval.trial("SGDP", 1e-3, 0, retrieval.EVERY)
    state = load_start(task, 0).state
    wanted = sum(float(t.square().sum()) for name, t in state.items() if t.ndim > 1)
    assert found["norms"][0] == pytest.approx(wanted)
    assert retrieval.growth(found) == pytest.approx(found["norms"][1] - wanted)
    assert 0 < found["id"] <= 100
