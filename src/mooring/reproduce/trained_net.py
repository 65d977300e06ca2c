"""A net small enough to know its Hessian, trained: 51 weights, two layers with tanh, in float64.

Its Hessian has a trace above its Frobenius norm, so the mean of few draws of noise is precise: one draw of
``2 (f(W + U) - f(W)) / σ²``, of a pair of mirrored points, has the mean tr H and the standard deviation √2 ‖H‖_F.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

SHAPES = ((6, 4), (6,), (3, 6), (3,))
SIZE = sum(math.prod(shape) for shape in SHAPES)


def outputs(weights: Tensor, x: Tensor) -> Tensor:
    """Of many nets at once: weights (..., 51), inputs (rows, 4) → (..., rows, 3)."""
    parts = weights.split([math.prod(shape) for shape in SHAPES], -1)
    w1, b1, w2, b2 = (part.unflatten(-1, shape) for part, shape in zip(parts, SHAPES))
    hidden = torch.tanh(x @ w1.mT + b1.unsqueeze(-2))
    found: Tensor = hidden @ w2.mT + b2.unsqueeze(-2)
    return found


def losses(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error of each net: (..., 51) → (...)."""
    error: Tensor = outputs(weights, x) - y
    return error.square().mean((-2, -1))


@cache
def trained() -> tuple[Tensor, Tensor, Tensor]:
    """Weights after training, 64 inputs and their targets: another net's outputs, and noise that leaves a loss."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    y = outputs(teacher, x)
    y = y + 0.3 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    weights = nn.Parameter(0.5 * student)
    optimizer = torch.optim.Adam([weights], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        losses(weights, x, y).backward()
        optimizer.step()
    return weights.detach(), x, y


def hessian(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The explicit Hessian of one net's loss: (51, 51)."""
    found: Tensor = torch.func.hessian(losses)(weights, x, y)
    return found
