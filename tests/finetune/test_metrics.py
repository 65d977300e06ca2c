from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from mooring.finetune.metrics import (
    Prediction,
    accuracy,
    ece,
    load_predictions,
    nll,
    save_predictions,
    summarize,
)


def random_prediction(seed: int, n: int = 200, classes: int = 4) -> Prediction:
    rng = np.random.default_rng(seed)
    return Prediction((3 * rng.normal(size=(n, classes))).astype(np.float32), rng.integers(classes, size=n))


def test_accuracy_and_likelihood_agree_with_scikit_learn() -> None:
    prediction = random_prediction(0)
    probabilities = np.exp(prediction.logits.astype(float))
    probabilities /= probabilities.sum(1, keepdims=True)
    assert nll(prediction) == pytest.approx(log_loss(prediction.labels, probabilities), rel=1e-9)
    assert accuracy(prediction) == (probabilities.argmax(1) == prediction.labels).mean()


def test_likelihood_of_huge_logits_is_finite() -> None:
    prediction = Prediction(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]))
    assert nll(prediction) == pytest.approx(2e4)


def test_calibration_error_from_its_definition() -> None:
    prediction = random_prediction(1)
    probabilities = torch.softmax(torch.from_numpy(prediction.logits).double(), 1).numpy()
    expected = 0.0
    for bin_ in range(15):
        inside = [row for row in range(200) if bin_ / 15 < probabilities[row].max() <= (bin_ + 1) / 15]
        if inside:
            hits = [probabilities[row].argmax() == prediction.labels[row] for row in inside]
            gap = abs(np.mean(hits) - np.mean([probabilities[row].max() for row in inside]))
            expected += len(inside) / 200 * gap
    assert ece(prediction) == pytest.approx(expected, abs=1e-12)


def test_a_certain_and_right_model_is_calibrated() -> None:
    assert ece(Prediction(np.array([[100, 0], [0, 100]], dtype=np.float32), np.array([0, 1]))) == 0


def test_ood_is_the_mean_over_kinds_and_retention_is_not_one() -> None:
    splits = ("train", "id", "ood.a", "ood.b.1", "ood.b.2", "ood.b.3", "retention")
    predictions = {name: random_prediction(seed) for seed, name in enumerate(splits)}
    metrics = summarize(predictions)
    b = np.mean([metrics[f"ood.b.{severity}/accuracy"] for severity in (1, 2, 3)])
    assert metrics["ood.b/accuracy"] == pytest.approx(b)
    assert metrics["ood/accuracy"] == pytest.approx((metrics["ood.a/accuracy"] + b) / 2)
    assert metrics["train/loss"] == metrics["train/nll"]
    assert metrics["retention/accuracy"] == accuracy(predictions["retention"])


def test_predictions_survive_a_file(tmp_path: Path) -> None:
    predictions = {"id": random_prediction(0), "ood.b.1": random_prediction(1)}
    save_predictions(tmp_path / "predictions.npz", predictions)
    loaded = load_predictions(tmp_path / "predictions.npz")
    assert list(loaded) == list(predictions)
    for name, prediction in predictions.items():
        assert np.array_equal(loaded[name].logits, prediction.logits)
        assert np.array_equal(loaded[name].labels, prediction.labels)
