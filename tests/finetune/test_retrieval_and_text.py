"""The two small tasks that are not classification: retrieval of unseen classes, and next characters."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from mooring.finetune.data import Split
from mooring.finetune.methods import resolve
from mooring.finetune.metrics import accuracy, load_predictions, nll
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks import texts
from mooring.finetune.tasks.digits_retrieval import (
    DIGITS,
    NEAR_ROWS,
    SCALE,
    SEEN,
    DigitsRetrieval,
    RetrievalNet,
    best_similarities,
)
from mooring.finetune.tasks.text_characters import CONTEXT, CharTransformer, TextCharacters, TextCharactersWeightNorm
from mooring.finetune.trial import run_trial
from mooring.optim.scale_invariance import scale_invariant_parameters

TASKS = {
    "digits-retrieval": DigitsRetrieval,
    "text-characters": TextCharacters,
    "text-characters-weight-norm": TextCharactersWeightNorm,
}


@pytest.fixture(scope="module")
def digits() -> dict[str, torch.Tensor]:
    return DigitsRetrieval(TaskSpec(name="digits-retrieval", starts=1)).fixed()


@pytest.fixture(scope="module")
def text() -> dict[str, torch.Tensor]:
    return TextCharacters(TaskSpec(name="text-characters", starts=1)).fixed()


@pytest.mark.parametrize("name", TASKS)
def test_a_trial_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    task = TaskSpec(name=name, starts=1, pretrain_steps=2, pretrain_examples=200)
    spec = TrialSpec(method=resolve("adamp"), task=task, train=TrainSpec(steps=3, batch_size=8), seed=1)
    finals = [run_trial(spec, tmp_path / folder) for folder in "ab"]
    a, b = (load_predictions(tmp_path / folder / "predictions.npz") for folder in "ab")
    assert list(a) == list(b)
    assert all(np.array_equal(a[split].logits, b[split].logits) for split in a)
    assert all(math.isfinite(value) for value in finals[0].values())


def test_recall_is_that_of_a_plain_search() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(40, 3, generator=generator), dim=1)
    labels = torch.randint(4, (40,), generator=generator)
    labels[0], labels[1:] = 4, labels[1:]  # a class of one picture cannot be found
    found = best_similarities(embeddings, labels, 6)
    for row in range(40):
        cosines = {other: float(embeddings[row] @ embeddings[other]) for other in range(40) if other != row}
        nearest = max(cosines, key=cosines.__getitem__)
        assert int(found[row].argmax()) == int(labels[nearest])
        for k in range(6):
            own = [value for other, value in cosines.items() if labels[other] == k]
            assert float(found[row, k]) == pytest.approx(max(own, default=-1.0), abs=1e-6)
    assert (found[:, 5] == -1).all()
    assert found[0, 4] == -1


def test_logits_of_retrieval_are_scaled_similarities_and_its_loss_is_that_of_the_proxies() -> None:
    task, model = DigitsRetrieval(TaskSpec(name="digits-retrieval")), RetrievalNet().eval()
    images, labels = torch.rand(30, 1, 8, 8), torch.arange(30) % SEEN + DIGITS * (torch.arange(30) % 2)
    with torch.no_grad():
        prediction = task.logits(model, Split(images, labels))
        e = model(images)
        assert torch.allclose(e.norm(dim=1), torch.ones(30))
        losses = []
        for row in range(30):
            column = int(labels[row]) if labels[row] < DIGITS else int(labels[row]) - DIGITS + SEEN
            cosines = [float(e[row] @ p / p.norm()) for p in model.proxies]
            losses.append(math.log(sum(math.exp(SCALE * c) for c in cosines)) - SCALE * cosines[column])
        assert float(task.loss(model, Split(images, labels))) == pytest.approx(sum(losses) / 30, rel=1e-5)
    assert prediction.logits.shape == (30, 2 * DIGITS)
    nearest = (e @ e.T).fill_diagonal_(-2).argmax(1)
    assert accuracy(prediction) == pytest.approx(float((labels[nearest] == labels).float().mean()))


def test_retrieval_trains_on_other_classes_and_pictures_than_it_is_tested_on(digits: dict[str, torch.Tensor]) -> None:
    task = DigitsRetrieval(TaskSpec(name="digits-retrieval", starts=1))
    numbered = torch.arange(len(digits["digits.labels"]), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    data = task.data(0, {**digits, "digits.inputs": numbered})
    splits = {"train": data.train, **{name: data.evaluation[name] for name in ("id_val", "id", "ood.later_rows")}}
    rows = {name: split.inputs[:, 0, 0, 0].int().tolist() for name, split in splits.items()}
    for name, split in splits.items():
        # Every picture is there twice, upright and turned, under two labels.
        assert len(set(rows[name])) * 2 == len(split)
        assert ((split.labels % DIGITS < SEEN) if name == "train" else (split.labels % DIGITS >= SEEN)).all()
        assert (digits["digits.labels"][rows[name]] == split.labels % DIGITS).all()
    assert not set(rows["id_val"]) & set(rows["id"])
    assert max(rows["id"] + rows["id_val"] + rows["train"]) < NEAR_ROWS <= min(rows["ood.later_rows"])
    assert (task.source(0).labels % DIGITS < SEEN).all()
    assert set(task.data(1, digits).train.labels.tolist()) == set(data.train.labels.tolist())


def test_the_embeddings_last_weights_and_proxies_are_scale_invariant() -> None:
    model = RetrievalNet()
    found = scale_invariant_parameters(model, torch.rand(4, 1, 8, 8), lambda m, x: m.cosines(x))
    assert found["proxies"] == "row"
    assert found["body.head.weight"] == "tensor"


def test_a_turned_digit_is_the_upright_one_turned(digits: dict[str, torch.Tensor]) -> None:
    split = DigitsRetrieval(TaskSpec(name="digits-retrieval", starts=1)).data(0, digits).train
    half = len(split) // 2
    assert (split.labels[half:] == split.labels[:half] + DIGITS).all()
    assert torch.equal(split.inputs[half], split.inputs[0].flip(2).transpose(1, 2))


def test_nll_of_characters_by_hand() -> None:
    task, model = TextCharacters(TaskSpec(name="text-characters")), CharTransformer().eval()
    codes = texts.encode("if it moves, it may stop. " * 6).long()
    split = Split(codes[: 4 * CONTEXT].view(4, CONTEXT), codes[1 : 4 * CONTEXT + 1].view(4, CONTEXT))
    with torch.no_grad():
        prediction = task.logits(model, split)
        total = 0.0
        for piece in range(4):
            for place in range(CONTEXT):
                # What comes later must not matter: it is cut off.
                scores = model(split.inputs[piece : piece + 1, : place + 1])[0, -1].double().exp()
                total -= math.log(float(scores[split.labels[piece, place]] / scores.sum()))
        loss = float(task.loss(model, split))
    assert prediction.logits.shape == (4 * CONTEXT, 96)
    assert nll(prediction) == pytest.approx(total / (4 * CONTEXT), rel=1e-5)
    assert loss == pytest.approx(nll(prediction), rel=1e-5)


def test_splits_of_the_text_are_contiguous_and_apart(text: dict[str, torch.Tensor]) -> None:
    task = TextCharacters(TaskSpec(name="text-characters", starts=1))
    length = len(text["reference"])
    for seed in (0, 1):
        # The text is replaced by the places of its characters.
        data = task.data(seed, {**text, "reference": torch.arange(length)})
        used: list[int] = []
        for split in (data.train, data.evaluation["id_val"], data.evaluation["id"]):
            places = split.inputs.flatten().tolist()
            after = split.labels.flatten().tolist()
            assert after == [(place + 1) % length for place in places]
            assert places == [(places[0] + i) % length for i in range(len(places))]
            used += [*places, after[-1]]
        assert len(set(used)) == len(used)
    assert not torch.equal(task.data(0, text).train.inputs, task.data(1, text).train.inputs)


def test_texts_are_english_and_code(text: dict[str, torch.Tensor]) -> None:
    assert texts.decode(texts.encode("Tom’s “naïve” plan…\n")) == 'Tom\'s "na?ve" plan...\n'
    reference, code = texts.decode(text["reference"]), texts.decode(text["code"])
    assert min(len(reference), len(code)) > 200_000
    assert reference.count(" the ") > 2000 > 5 * code.count(" the ")
    assert code.count("return ") > 500
    assert not any(line.lstrip().startswith(("#", '"""')) for line in code.splitlines())


def test_retention_is_text_that_no_start_was_trained_on(text: dict[str, torch.Tensor]) -> None:
    task = TextCharacters(TaskSpec(name="text-characters", starts=1, pretrain_examples=3000))
    every = texts.docstrings()
    held_out = texts.decode(text["retention.inputs"].flatten())
    assert (
        texts.encode(every)[-len(text["retention.inputs"]) * CONTEXT - 1 : -1].tolist()
        == texts.encode(held_out).tolist()
    )
    source = task.source(0)
    assert not any(torch.equal(piece, row) for piece in text["retention.inputs"][:5] for row in source.inputs)
    assert torch.equal(source.inputs[:, 1:], source.labels[:, :-1])


def test_weight_normalisation_makes_the_directions_scale_invariant() -> None:
    codes = torch.randint(96, (2, CONTEXT))
    found = scale_invariant_parameters(CharTransformer(True), codes)
    linear = [name for name, _ in CharTransformer(True).named_parameters() if name.endswith("original1")]
    assert len(linear) == 9
    assert {found[name] for name in linear} == {"row"}
    assert not scale_invariant_parameters(CharTransformer(), codes)


def test_weight_normalisation_leaves_the_start_as_it_is() -> None:
    plain, normalised = CharTransformer(), CharTransformer(True)
    codes = torch.randint(96, (2, CONTEXT))
    state = dict(plain.state_dict())
    for name, module in normalised.named_modules():
        if f"{name}.weight" in state and hasattr(module, "parametrizations"):
            module.weight = state.pop(f"{name}.weight")
    normalised.load_state_dict(state, strict=False)
    torch.testing.assert_close(normalised(codes), plain(codes))
