"""Every constructed branch, looked at with loops of our own and with telemetry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import mooring as mo
from mooring.bench.branches import Branch, Problem, differs, taken
from mooring.bench.measured import LR, prepared
from mooring.bench.methods import METHODS
from mooring.bench.shapes import convolutional, small

SHAPES = [*convolutional(), *small(8), (1, 40), (3, 70)]
CPU = torch.device("cpu")
BRANCHED = [
    m for m in METHODS.values() if m.ours and (m.branch.gradient != "random" or m.branch.contracted is not None)
]


def problem(branch: Branch, dtype: torch.dtype = torch.float32) -> Problem:
    return Problem(SHAPES, branch, dtype=dtype, device=CPU, seed=3)


def cosines(p: torch.Tensor) -> tuple[float, float]:
    """AdamP's two tests: the largest row's |cos| and the whole tensor's, each over its limit."""
    assert p.grad is not None
    weights, gradient = p.detach().double().flatten(1), p.grad.double().flatten(1)

    def over(a: torch.Tensor, b: torch.Tensor) -> float:
        return abs(float(a @ b)) / float(a.norm() * b.norm()) / (0.1 / math.sqrt(a.numel()))

    rows = max(over(a, b) for a, b in zip(weights, gradient, strict=True))
    return rows, over(weights.flatten(), gradient.flatten())


@pytest.mark.parametrize("kind", ["rows", "tensor", "along"])
def test_gradients_pass_and_fail_the_cosine_tests(kind: str) -> None:
    for p in problem(Branch(kind)).params:
        if p.ndim < 2:
            continue
        rows, whole = cosines(p)
        assert (rows < 0.01) == (kind == "rows" or (kind == "tensor" and p.shape[0] == 1)), (kind, p.shape, rows)
        assert (whole < 0.01) == (kind != "along"), (kind, p.shape, whole)
        if kind != "rows" and p.shape[0] > 1:
            assert rows > 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_anchors_pull_back_what_they_should(share: float) -> None:
    built = problem(Branch(contracted=share))
    for i, p in enumerate(built.params):
        assert p.grad is not None
        d, g = (p.detach() - built.anchors[f"t{i}"]).double(), p.grad.double()
        # Descent points back to the anchor, and Adam's step from the same gradient leads away, or neither.
        assert (float((d * g).sum()) > 0) == built.pulled[i]
        assert (float((d * g.sign()).sum()) < 0) == built.pulled[i]
    if share in (0.0, 1.0):
        assert set(built.pulled) == {bool(share)}
    assert built.expected()["contracted"] == pytest.approx(share, abs=0.3)


@pytest.mark.parametrize("method", BRANCHED, ids=lambda m: m.id)
def test_telemetry_reports_the_branch(method: Any) -> None:
    built = problem(method.branch, method.dtype)
    optimizer = prepared(method, built)
    optimizer.record(1)
    for _ in range(3):
        optimizer.step()
        found = taken(optimizer, built.params)
        assert differs(found, built.expected()) is None, found
    assert LR > 0


def test_another_branch_is_noticed() -> None:
    built = problem(Branch("rows"))
    aside = problem(Branch("along"))
    optimizer = mo.AdamP(aside.named, lr=1e-3)
    optimizer.record(1)
    optimizer.step()
    assert "by_row is 0, built for 1" in str(differs(taken(optimizer, aside.params), built.expected()))
    plain = mo.AdamW(built.named, lr=1e-3)
    plain.record(1)
    plain.step()
    assert "by_row is not reported" in str(differs(taken(plain, built.params), built.expected()))


def test_equal_seeds_give_equal_numbers() -> None:
    one, two = problem(Branch("tensor", 0.5)), problem(Branch("tensor", 0.5))
    for p, q in zip(one.params, two.params, strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad)
    assert all(torch.equal(one.anchors[name], two.anchors[name]) for name in one.anchors)
