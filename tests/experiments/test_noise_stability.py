"""What noise on the weights measures and what its gradient is worth, on a small trained net with its Hessian at hand.

E f(W + U) - f(W) = sigma^2/2 tr H + O(sigma^4). One point estimates the gradient of E f(W + U) with variance
O(sigma^2), two points with O(sigma^4); the bias against the gradient of f is sigma^2/2 times that of tr H. All float64.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import mooring as mo

SHAPES = ((6, 4), (6,), (3, 6), (3,))


def loss_of(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Two layers with tanh, all weights in one vector; mean squared error over 64 rows and three outputs."""
    w1, b1, w2, b2 = (p.view(s) for p, s in zip(flat.split([math.prod(s) for s in SHAPES]), SHAPES))
    return (torch.tanh(x @ w1.T + b1) @ w2.T + b2 - y).square().mean()


@cache
def trained() -> tuple[Tensor, Tensor, Tensor]:
    """Weights after training, inputs and targets: another net's outputs, and noise that leaves a loss."""
    generator = torch.Generator().manual_seed(0)
    size = sum(math.prod(s) for s in SHAPES)
    teacher, student = torch.randn(2, size, generator=generator, dtype=torch.float64)
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    w1, b1, w2, b2 = (p.view(s) for p, s in zip(teacher.split([math.prod(s) for s in SHAPES]), SHAPES))
    y = torch.tanh(x @ w1.T + b1) @ w2.T + b2
    y = y + 0.3 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    p = nn.Parameter(0.5 * student)
    optimizer = torch.optim.Adam([p], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss_of(p, x, y).backward()
        optimizer.step()
    return p.detach(), x, y


def hessian(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.func.hessian(loss_of)(w, x, y)


def test_noise_measures_the_trace_of_the_hessian() -> None:
    """The mean loss over pairs that a step of NSO returns, k draws at once and no learning rate."""
    w, x, y = trained()
    h = hessian(w, x, y)
    trace, size = float(h.trace()), float(h.norm())
    assert trace >= size, "otherwise too many draws are needed"
    sigma, draws = 0.01, 8000
    assert math.sqrt(2) * size / (trace * math.sqrt(draws)) <= 0.005

    p = nn.Parameter(w.clone())
    optimizer = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=sigma, k=draws // 20)
    steps = torch.tensor([float(optimizer.step(lambda: loss_of(p.detach(), x, y))) for _ in range(20)])
    rises = (steps.double() - float(loss_of(w, x, y))) / (sigma**2 / 2)
    found, error = float(rises.mean()), float(rises.std()) / math.sqrt(len(rises))
    print(f"2 (E f(W + U) - f(W)) / sigma^2 = {found:.4f} +- {error:.4f}; tr H = {trace:.4f}; |H|_F = {size:.4f}")
    assert torch.equal(p.detach(), w)
    assert error < 0.01 * trace
    assert found == pytest.approx(trace, rel=0.02)


def slope(sigmas: list[float], values: list[float]) -> float:
    """Of log values over log sigmas, by least squares."""
    x, y = torch.tensor(sigmas).log(), torch.tensor(values).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def samples(two_point: bool, sigma: float, draws: int) -> Tensor:
    """One gradient for each draw: (draws, n). Equal seeds, so every sigma scales the same noise."""
    w, x, y = trained()
    p = nn.Parameter(w.clone())
    optimizer = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=sigma, two_point=two_point)
    out = []
    for _ in range(draws):
        optimizer.zero_grad()
        for pass_ in optimizer.passes():
            with pass_:
                pass_.backward(loss_of(p, x, y))
        assert p.grad is not None
        out.append(p.grad.clone())
    return torch.stack(out)


SIGMAS, DRAWS, PARTS = [0.0025, 0.005, 0.01], 1200, 12


def test_orders_of_variance_and_bias() -> None:
    w, x, y = trained()
    clean = torch.func.grad(loss_of)(w, x, y)
    towards = torch.func.grad(lambda v: hessian(v, x, y).trace())(w)
    one = [samples(False, s, DRAWS // 2) for s in SIGMAS]
    two = [samples(True, s, DRAWS) for s in SIGMAS]

    def variance_slope(all_samples: list[Tensor]) -> float:
        return slope(SIGMAS, [float(g.var(0).sum()) for g in all_samples])

    def bias_slope(all_samples: list[Tensor]) -> float:
        return slope(SIGMAS, [abs(float((g.mean(0) - clean) @ towards)) for g in all_samples])

    for name, f, group, order in (
        ("variance of one point", variance_slope, one, 2),
        ("variance of two points", variance_slope, two, 4),
        ("bias", bias_slope, two, 2),
    ):
        found = f(group)
        parts = torch.tensor([f(list(part)) for part in zip(*(g.chunk(PARTS) for g in group))])
        error = float(parts.std()) / math.sqrt(PARTS)
        print(f"{name}: sigma^({found:.3f} +- {error:.3f})")
        # The next power of sigma is two orders up; at these sigmas it bends the lines by less than 0.01.
        assert error < 0.05
        assert abs(found - order) < 3 * error + 0.01
    for sigma, g in zip(SIGMAS, two):
        along = (g - clean) @ towards / towards.square().sum()
        error = float(along.std()) / math.sqrt(DRAWS)
        assert abs(float(along.mean()) - sigma**2 / 2) < 4 * error, "the bias is sigma^2/2 times the gradient of tr H"
        assert error < 0.1 * sigma**2 / 2
