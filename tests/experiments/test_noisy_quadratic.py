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


def settled(method: type[torch.optim.Optimizer], noises: list[float]) -> list[float]:
    """Mean over all dimensions and the last half of the steps, one independent problem per noise."""
    torch.manual_seed(0)
    problems = [nn.Parameter(torch.zeros(DIMENSIONS)) for _ in noises]
    groups = [{"params": [theta], "lr": 2e-3 * max(1.0, s)} for theta, s in zip(problems, noises)]
    optimizer = method(groups, betas=(0.9, 0.999), weight_decay=DECAY)  # type: ignore[call-arg]
    totals = [torch.zeros(DIMENSIONS, dtype=torch.float64) for _ in noises]
    for t in range(0, STEPS, CHUNK):
        for xi in torch.randn(CHUNK, DIMENSIONS):
            for theta, s in zip(problems, noises):
                theta.grad = torch.add(theta.detach() - 1, xi, alpha=s)
            optimizer.step()
            if t >= STEPS // 2:
                torch._foreach_add_(totals, [theta.detach() for theta in problems])
    return [float(total.mean()) / (STEPS // 2) for total in totals]


def test_adamw_decays_more_under_noise() -> None:
    """AdamW is pointwise, so the four problems may share one optimizer."""
    noises, figures = [0.5, 1.0, 4.0, 10.0], [0.952, 0.909, 0.714, 0.500]
    assert figures == pytest.approx([1 / (1 + DECAY * s) for s in noises], abs=6e-4)
    assert settled(mo.AdamW, noises) == pytest.approx(figures, rel=0.01)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0, 10.0])
def test_adams_does_not(noise: float) -> None:
    """One optimizer each: its mean is over all parameters that it holds."""
    assert settled(mo.AdamS, [noise]) == pytest.approx([1 / (1 + DECAY)], rel=0.01)
