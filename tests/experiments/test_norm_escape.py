"""Noise drives the norm of a scale-invariant weight away, and radial projection holds it.

f(w) = wᵀ A w / wᵀ w has no radial gradient, but the mean of two gradients at w + u and w - u has: uᵀ H u outward, from
the third derivative. From the minimiser, where tr H = 2 (tr A - d lambda_min) / |w|^2, plain descent with NSO follows

    |W_t|^4 = |W_0|^4 + 8 eta sigma^2 (tr A - d lambda_min) t

A = M Mᵀ / d with d = 8, the unit minimiser as a 1 x d tensor, eta 0.01, 20000 steps, k = 1. The law is the
first order in (sigma / |W|)^2. In general <w, grad F(w)> = -sigma^2 times the Laplacian of F = E f(w + U), because F
depends on w / sigma alone, and this f, a harmonic of degree two over |w|^2 and a constant, has

    tr H of F = 2 (tr A - d lambda_min) / |w|^2 * (1 - 2 (d - 2) sigma^2 / |w|^2 + ...)

so to second order |W_t|^4 + 4 (d - 2) sigma^2 (|W_t|^2 - |W_0|^2) takes the place of |W_t|^4. At sigma 0.05 that is one
per cent of the figure, at sigma 0.2 four, at every t.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mooring as mo

D, LR, STEPS, SIGMAS = 8, 0.01, 20_000, (0.05, 0.2)


def norms(a: torch.Tensor, runs: list[nn.Parameter], optimizer: mo.NSO) -> list[float]:
    """Train every run, a tensor of its own, at once, and return their norms."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        for pass_ in optimizer.passes():
            with pass_, torch.no_grad():
                w = torch.cat([w.detach() for w in runs])
                square = w.square().sum(1, keepdim=True)
                aw = w @ a
                gradient = 2 * (aw - (w * aw).sum(1, keepdim=True) / square * w) / square
                for p, g in zip(runs, gradient.split(1)):
                    p.grad = g if p.grad is None else p.grad.add_(g)
        optimizer.step()
    return [float(w.detach().norm()) for w in runs]


def test_the_norm_escapes_and_projection_holds_it() -> None:
    m = torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = m @ m.T / D
    values, vectors = torch.linalg.eigh(a)
    escape = 8 * LR * float(a.trace() - D * values[0])

    def start(sigma: float, **options: object) -> dict[str, object]:
        return {"params": [nn.Parameter(vectors[:, :1].T.clone())], "sigma": sigma, **options}

    # A step adds sigma^2 (uᵀ H u) with a relative spread of sqrt(2) |H|_F / tr H, which 20000 of them average out.
    tangent = values[1:] - values[0]
    error = 2**0.5 * float(tangent.norm() / tangent.sum()) / STEPS**0.5
    assert error < 0.01
    groups = [start(sigma) for sigma in SIGMAS]
    free = norms(a, [g["params"][0] for g in groups], mo.NSO(torch.optim.SGD(groups, lr=LR)))  # type: ignore[index]
    for sigma, norm in zip(SIGMAS, free):
        law = 1 + escape * sigma**2 * STEPS
        second = 4 * (D - 2) * sigma**2 * (norm**2 - 1)
        print(f"sigma {sigma}: |W|^4 {norm**4:.1f}, first-order law {law:.1f} ({norm**4 / law - 1:+.1%}), "
              f"to second order {(norm**4 + second) / law - 1:+.1%}, standard error {error:.1%}")  # fmt: skip
        assert norm**4 + second == pytest.approx(law, rel=0.02)
        assert norm**4 == pytest.approx(law, rel=0.02 if sigma < 0.1 else 0.05)

    group = start(max(SIGMAS), scale_invariant="tensor")
    base = mo.SGDP([group], lr=LR, weight_decay=0.0)
    [held] = norms(a, group["params"], mo.NSO(base))  # type: ignore[arg-type]
    print(f"sigma {max(SIGMAS)} with projection: |W| {held:.3f}")
    assert held <= 1.12
