"""The method that docs/adding-a-method.md adds is what it says: LAMB, compared with a naive one from the paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


def classes_of_the_page() -> dict[str, Any]:
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert code is not None
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(compile(code[1], str(PAGE), "exec"), namespace)
    return namespace


def naive_lamb(weights: list[Tensor], grads: list[list[Tensor]], lr: float, decay: float) -> list[Tensor]:
    """Algorithm 2 of the paper with bias correction, phi(z) = z, one tensor at a time."""
    out = []
    for i, start in enumerate(weights):
        p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for t, step in enumerate(grads, start=1):
            g = step[i]
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g * g
            r = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + decay * p
            p = p - lr * p.norm() / r.norm() * r
        out.append(p)
    return out


def test_lamb_of_the_page_is_lamb() -> None:
    shapes = [(6, 5), (7,), (3, 2, 2, 2)]
    start = [torch.randn(s, dtype=torch.float64) for s in shapes]
    grads = [[torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(100)]
    params = [torch.nn.Parameter(w.clone()) for w in start]
    optimizer = classes_of_the_page()["Lamb"](params, lr=1e-2, weight_decay=0.1)
    for step in grads:
        for p, g in zip(params, step):
            p.grad = g.clone()
        optimizer.step()
    for p, expected, w in zip(params, naive_lamb(start, grads, 1e-2, 0.1), start):
        assert (p - expected).norm() <= 1e-9 * (expected - w).norm()


def test_it_composes_with_radial_projection() -> None:
    """The projected step of a scale-invariant loss is orthogonal to the weights, and lr * |p| long."""
    from mooring.moments.adam import Adam
    from mooring.optim.base import Optimizer
    from mooring.rules import RadialProjection

    page = classes_of_the_page()
    options = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False, "delta": 1.0,
               "wd_ratio": 0.1}  # fmt: skip
    weight = torch.nn.Parameter(torch.randn(4, 10, dtype=torch.float64))
    target = torch.randn(4, 10, dtype=torch.float64)
    optimizer = Optimizer([weight], options, Adam(), [RadialProjection(), page["TrustRatio"]()])
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cosine_similarity(weight, target, dim=1).sum().backward()
        before = weight.detach().clone()
        optimizer.step()
        step = before - weight.detach()
        torch.testing.assert_close(step.norm(), 1e-2 * before.norm(), rtol=1e-6, atol=0)
        assert (step * before).sum(1).abs().max() < 1e-7
