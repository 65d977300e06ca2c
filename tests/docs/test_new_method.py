"""The rule that docs/adding-a-method.md adds is what it says, compared with a naive one written from the paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mooring as mo

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
SHAPES = [(6, 5), (7,), (3, 2, 2, 2)]
STEPS = 100


def rule_of_the_page() -> Any:
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert code is not None
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(compile(code[1], str(PAGE), "exec"), namespace)
    return namespace["ClipUpdate"]


def naive(start: Tensor, grads: list[Tensor], lr: float, clip: float, decay: float) -> tuple[Tensor, int]:
    """Adam with the update divided by max(1, RMS(update) / clip), then decoupled decay; and how often it clipped."""
    p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    clipped = 0
    for t, g in enumerate(grads, start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        rms = float(u.square().mean().sqrt())
        clipped += rms > clip
        p = p - lr * decay * p - lr * u / max(1.0, rms / clip)
    return p, clipped


def trajectories(rules: list[Any]) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    start = [torch.randn(s, dtype=torch.float64) for s in SHAPES]
    grads = [[torch.randn(s, dtype=torch.float64) for s in SHAPES] for _ in range(STEPS)]
    params = [torch.nn.Parameter(w.clone()) for w in start]
    optimizer = mo.Adam(params, lr=1e-2, rules=rules)
    for step in grads:
        for p, g in zip(params, step):
            p.grad = g.clone()
        optimizer.step()
    return start, [p.detach() for p in params], grads


def test_the_rule_of_the_page_is_update_clipping() -> None:
    start, found, grads = trajectories([rule_of_the_page()(0.3), mo.DecoupledDecay(0.1)])
    times = 0
    for i, (w, p) in enumerate(zip(start, found)):
        expected, clipped = naive(w, [step[i] for step in grads], 1e-2, 0.3, 0.1)
        assert (p - expected).norm() <= 1e-9 * (expected - w).norm()
        times += clipped
    assert 0 < times < STEPS * len(SHAPES), "the test must see both branches"


def test_it_works_by_rows_too() -> None:
    """Beside a rule that works by rows, the sums of the page's rule still run over whole tensors."""
    clip = rule_of_the_page()
    torch.manual_seed(0)
    _, alone, _ = trajectories([clip(0.3)])
    torch.manual_seed(0)
    _, with_rows, _ = trajectories([mo.RadialProjection(delta=1e-12), clip(0.3)])
    for p, q in zip(alone, with_rows):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
