"""The papers' two-dimensional picture: momentum inflates the norm of a scale-invariant weight and slows it down.

f(w) = (1 - cos(w, w*))^2 with w* = (0, -1), from nearly the opposite direction, lr 0.01, 499 updates.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import mooring as mo

LR, STEPS = 0.01, 499


def run(method: type[torch.optim.Optimizer], momentum: float) -> tuple[float, float]:
    """Final loss and norm. The gradient is written out: with c = cos(w, w*), f = (1 - c)^2."""
    target = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
    start = torch.tensor([[1e-3, 1.0]], dtype=torch.float64)
    w = nn.Parameter(start / start.norm())
    optimizer = method([w], lr=LR, momentum=momentum)  # type: ignore[call-arg]
    for _ in range(STEPS):
        p = w.detach()
        size = p.norm()
        c = (p * target).sum() / size
        w.grad = -2 * (1 - c) * (target - c * p / size) / size
        optimizer.step()
    p = w.detach()
    return float((1 - (p * target).sum() / p.norm()) ** 2), float(p.norm())


@pytest.mark.parametrize(
    ("momentum", "loss", "norm"),
    [(0.0, 0.0086, 1.02), (0.9, 0.0018, 2.93), (0.95, 0.0043, 5.67), (0.99, 0.0153, 27.87)],
)
@pytest.mark.parametrize("method", [torch.optim.SGD, mo.SGD], ids=["torch", "mooring"])
def test_momentum_without_projection(
    method: type[torch.optim.Optimizer], momentum: float, loss: float, norm: float
) -> None:
    final_loss, final_norm = run(method, momentum)
    assert round(final_loss, 4) == loss
    assert round(final_norm, 2) == norm


@pytest.mark.parametrize(("momentum", "norm"), [(0.9, 1.12), (0.95, 1.14), (0.99, 1.15)])
def test_projected(momentum: float, norm: float) -> None:
    final_loss, final_norm = run(mo.SGDP, momentum)
    assert round(final_loss, 4) == 0.0
    assert round(final_norm, 2) == norm


def test_the_picture_has_a_start_almost_opposite_to_the_target() -> None:
    assert math.isclose((1 - -1 / math.hypot(1e-3, 1)) ** 2, 4.0, rel_tol=1e-5)
