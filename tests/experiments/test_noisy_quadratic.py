"""How strongly a decay pulls must not depend on the gradient's noise: AdamW's does, stable decay's does not.

L = |theta - 1|^2 / 2 with gradient noise of size s. AdamW settles where (1 - theta)/sqrt(v) = lambda theta, that is at
1/(1 + lambda s) once noise dominates v; AdamS at 1/(1 + lambda) for every s.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mooring as mo

DECAY, DIMENSIONS, STEPS, CHUNK = 0.1, 2000, 15_000, 500


def settled(method: type[torch.optim.Optimizer], noise: float) -> float:
    """Mean over all dimensions and the last half of the steps, weighted alike."""
    torch.manual_seed(0)
    theta = nn.Parameter(torch.zeros(DIMENSIONS))
    theta.grad = torch.zeros(DIMENSIONS)
    optimizer = method([theta], lr=2e-3 * max(1.0, noise), betas=(0.9, 0.999), weight_decay=DECAY)  # type: ignore[call-arg]
    total = torch.zeros(DIMENSIONS, dtype=torch.float64)
    for t in range(0, STEPS, CHUNK):
        shifts = torch.randn(CHUNK, DIMENSIONS).mul_(noise).sub_(1)
        for shift in shifts:
            torch.add(theta.detach(), shift, out=theta.grad)
            optimizer.step()
            if t >= STEPS // 2:
                total += theta.detach()
    return float(total.mean()) / (STEPS // 2)


@pytest.mark.parametrize(("noise", "figure"), [(0.5, 0.952), (1.0, 0.909), (4.0, 0.714), (10.0, 0.500)])
def test_adamw_decays_more_under_noise(noise: float, figure: float) -> None:
    assert figure == pytest.approx(1 / (1 + DECAY * noise), abs=6e-4)
    assert settled(mo.AdamW, noise) == pytest.approx(figure, rel=0.01)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0, 10.0])
def test_adams_does_not(noise: float) -> None:
    assert settled(mo.AdamS, noise) == pytest.approx(1 / (1 + DECAY), rel=0.01)
