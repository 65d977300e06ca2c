"""Two layers, one that the task needs and one that it does not: selective decay lets the first go, holds the second.

Anchor 0. The relevant layer's gradient is theta - t + noise with t = +-1, the irrelevant one's is pure noise.
Compared at the same drift of the irrelevant layer, decoupled L2-SP pays for it in the relevant one.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import mooring as mo

RELEVANT, IRRELEVANT, STEPS = 20, 200, 4000


def run(seed: int, strength: float, decay: float) -> tuple[float, float]:
    """The relevant layer's loss, mean over its dimensions of (theta - t)^2 / 2, and the irrelevant layer's drift."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.ones(RELEVANT, dtype=torch.float64)
    target[1::2] = -1
    layers = [nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (RELEVANT, IRRELEVANT)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*anchor.*", category=UserWarning)
        optimizer = mo.AdamSPD(layers, lr=1e-3, strength=strength, weight_decay=decay, anchor="zero")
    noise = torch.randn(STEPS, RELEVANT + IRRELEVANT, generator=generator, dtype=torch.float64)
    for x in noise:
        layers[0].grad = layers[0].detach() - target + x[:RELEVANT]
        layers[1].grad = x[RELEVANT:]
        optimizer.step()
    loss = 0.5 * (layers[0].detach() - target).square().mean()
    return float(loss), float(layers[1].detach().norm())


@pytest.mark.parametrize("seed", range(3))
def test_spd_reaches_the_task_at_the_same_drift(seed: int) -> None:
    spd_loss, spd_drift = run(seed, strength=2.0, decay=0.0)
    l2_loss, l2_drift = run(seed, strength=0.0, decay=1.0)
    free_loss, free_drift = run(seed, strength=0.0, decay=0.0)
    print(f"SPD(2) {spd_loss:.4f} at {spd_drift:.3f}; L2-SP(1) {l2_loss:.4f} at {l2_drift:.3f}; "
          f"Adam {free_loss:.4f} at {free_drift:.3f}")  # fmt: skip
    assert 0.0028 <= spd_loss <= 0.0037
    assert 0.23 <= spd_drift <= 0.42
    assert 0.14 <= l2_loss <= 0.147
    assert 0.28 <= l2_drift <= 0.33
    assert l2_loss / spd_loss > 30
    assert free_drift > 1.5 * spd_drift
