"""Calibration, the generalisation gap and the flatness term: by hand, from definitions, against scikit-learn."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torch import nn

from mooring.measure import Hessian, calibration, flatness_bound, generalization_gap, largest_trace
from mooring.measure.calibrated import ece


def predictions(seed: int, n: int = 203, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(n, classes)), rng.integers(classes, size=n)


def probabilities(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True)


def test_scores_are_scikit_learns() -> None:
    logits, labels = predictions(0)
    found, p = calibration(logits, labels), probabilities(logits)
    assert found.nll == pytest.approx(log_loss(labels, p), rel=1e-12)
    assert found.brier == pytest.approx(brier_score_loss(labels, p, labels=range(4), scale_by_half=False), rel=1e-12)
    assert found.accuracy == (p.argmax(1) == labels).mean() and found.count == 203


def test_both_calibration_errors_from_their_definitions() -> None:
    logits, labels = predictions(1)
    p = probabilities(logits)
    sure, right = p.max(1), p.argmax(1) == labels
    found = calibration(logits, labels, bins=10)
    wide = [[r for r in range(203) if i / 10 < sure[r] <= (i + 1) / 10] for i in range(10)]
    order = sorted(range(203), key=lambda r: sure[r])
    deep = [[r for place, r in enumerate(order) if i * 20.3 <= place < (i + 1) * 20.3] for i in range(10)]
    assert {len(rows) for rows in deep} == {20, 21}
    for bins, got in ((wide, found.ece), (deep, found.adaptive_ece)):
        wanted = sum(len(rows) / 203 * abs(right[rows].mean() - sure[rows].mean()) for rows in bins if len(rows))
        assert got == pytest.approx(wanted, abs=1e-12)
    for bar, rows in zip(found.bins, wide):
        assert bar.count == len(rows)
        if rows:
            assert (bar.confidence, bar.accuracy) == pytest.approx((sure[rows].mean(), right[rows].mean()))
        else:
            assert math.isnan(bar.confidence)
    assert (found.bins[3].low, found.bins[3].high) == (0.3, 0.4)


def test_calibration_by_hand() -> None:
    """Six examples: four 80 % sure of which two are right, two 60 % sure, both right; cut into halves of three."""
    high, low = [math.log(4), 0.0], [math.log(1.5), 0.0]
    logits = np.array([high] * 4 + [low] * 2)
    labels = np.array([0, 0, 1, 1, 0, 0])
    found = calibration(logits, labels, bins=4)
    assert found.ece == pytest.approx(4 / 6 * 0.3 + 2 / 6 * 0.4)
    assert found.brier == pytest.approx((2 * 2 * 0.04 + 2 * 2 * 0.64 + 2 * 2 * 0.16) / 6)
    # Halves by confidence: the two of 60 % with the first of 80 % (right), then the other three (one right).
    assert ece(logits, labels, 2, equal_mass=True) == pytest.approx((abs(3 - 2.0) + abs(1 - 2.4)) / 6)
    assert calibration(torch.tensor(logits, dtype=torch.bfloat16), torch.tensor(labels)).accuracy == 4 / 6


def test_the_gap_is_a_difference_of_means() -> None:
    train, test = predictions(2, 300), predictions(3, 150)
    gap = generalization_gap(train, test)
    losses = [-np.log(probabilities(x)[np.arange(len(y)), y]) for x, y in (train, test)]
    hits = [(x.argmax(1) == y).astype(float) for x, y in (train, test)]
    assert gap.loss == pytest.approx(losses[1].mean() - losses[0].mean())
    assert gap.accuracy == pytest.approx(hits[0].mean() - hits[1].mean())
    for got, (a, b) in ((gap.loss_error, losses), (gap.accuracy_error, hits)):
        assert got == pytest.approx(math.sqrt(a.var(ddof=1) / 300 + b.var(ddof=1) / 150))


def test_bad_predictions_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) and \(2,\)"):
        calibration([0.0, 1.0], [0, 1])
    with pytest.raises(ValueError, match="labels must be from 0 to 1, got 0 to 2"):
        calibration([[0.0, 1.0]] * 2, [0, 2])
    with pytest.raises(ValueError, match="labels must be integers, got float64"):
        calibration([[0.0, 1.0]], [0.0])
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        calibration([[0.0, 1.0]], [0], bins=0)
    with pytest.raises(ValueError, match="test must have at least two examples, got 1"):
        generalization_gap(([[0.0, 1.0]] * 2, [0, 1]), ([[0.0, 1.0]], [0]))


def test_calibration_needs_no_torch() -> None:
    code = "import sys; import mooring.measure as m; m.calibration([[0., 1.]], [0]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_flatness_term_is_the_least_over_the_noise() -> None:
    """``s² T / 2 + C r² / 2 n s²`` over a grid of s, and the sum over layers."""
    trace, r, n, c = 7.0, 1.3, 90, 2.5
    sizes = np.geomspace(1e-4, 1e2, 200001)
    wanted = (sizes**2 * trace / 2 + c * r**2 / (2 * n * sizes**2)).min()
    assert flatness_bound(trace, r, n, c) == pytest.approx(wanted, rel=1e-8)
    assert flatness_bound([trace, 1.0, -5.0], [r, 2.0, 1.0], n, c) == pytest.approx(wanted + math.sqrt(c * 4 / n))
    for arguments, said in (
        (([1.0], [1.0, 2.0], 3), "equally many"),
        ((1.0, -1.0, 3), "distances must be finite numbers >= 0"),
        ((math.nan, 1.0, 3), "traces must be finite"),
        ((1.0, 1.0, 0), "examples must be >= 1, got 0"),
        ((1.0, 1.0, 3, 0.0), "loss_bound must be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=said):
            flatness_bound(*arguments)  # type: ignore[arg-type]


def test_the_largest_trace_is_the_worst_examples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    rows = [torch.randn(1, 3).double() for _ in range(6)]

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    exact = [float(Hessian(net, loss, [x]).dense().trace()) for x in rows]
    found, index = largest_trace(net, loss, rows, probes=60)
    assert index == int(np.argmax(exact)) and abs(found.value - max(exact)) < 4 * found.error
    with pytest.raises(ValueError, match="examples must hold at least one batch"):
        largest_trace(net, loss, [])
