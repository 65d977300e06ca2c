"""Every optimizer against its naive float64 reference: 200 steps of a real loss, each side at its own weights."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim.problems import backward, gradients, make_groups, make_net
from tests.optim.table import ROWS, OptimizerRow, every_variant
from tests.reference import base

STEPS = 200
TOLERANCE = 1e-9


def follow(groups: list[dict[str, Any]], reference: base.Reference) -> None:
    """Write the reference's weights into the net that computes its next gradients."""
    with torch.no_grad():
        for group, result in zip(groups, reference.groups, strict=True):
            for p, value in zip(group["params"], result["params"], strict=True):
                p.copy_(value)


def train_both(row: OptimizerRow, variant: str) -> tuple[list[Tensor], list[Tensor], list[Tensor], float]:
    """Start, ours and the reference's end, per parameter, and the smallest margin of any decision."""
    hyper = {**row.reference.defaults, **row.hyper(variant)}
    ours, theirs = make_net(), make_net()
    our_groups, their_groups = make_groups(ours, hyper), make_groups(theirs, hyper)
    start = [p.detach().clone() for group in our_groups for p in group["params"]]
    optimizer = row.build(our_groups, variant)
    reference = row.reference([{**row.hyper(variant), **group} for group in their_groups])
    for t in range(STEPS):
        backward(ours, t)
        optimizer.step()
        backward(theirs, t)
        reference.step(gradients(their_groups))
        follow(their_groups, reference)
    end = [p.detach() for group in our_groups for p in group["params"]]
    expected = [p for group in reference.groups for p in group["params"]]
    return start, end, expected, min(reference.margins)


@every_variant
def test_follows_the_naive_reference(row: OptimizerRow, variant: str) -> None:
    start, end, expected, margin = train_both(row, variant)
    total = torch.cat([(e - s).flatten() for s, e in zip(start, expected)]).norm()
    error = torch.cat([(e - o).flatten() for o, e in zip(end, expected)]).norm()
    print(f"{row.name} {variant}: displacement {total:.3g}, relative error {error / total:.2g}, margin {margin:.2g}")
    assert total > 1e-2, "the weights hardly moved, so the comparison would prove nothing"
    assert error <= TOLERANCE * total, f"relative displacement error {error / total:.3g}; nearest decision {margin:.3g}"
    for i, (s, o, e) in enumerate(zip(start, end, expected)):
        bound = TOLERANCE * max(float((e - s).norm()), 1e-6 * float(total))
        assert (o - e).norm() <= bound, f"parameter {i} of shape {tuple(e.shape)}"


@pytest.mark.parametrize("row", [r for r in ROWS if r.branches], ids=lambda r: r.name)
def test_the_test_problem_takes_every_branch(row: OptimizerRow) -> None:
    """The comparison above proves a decision right only where the problem makes the method take it."""
    seen: Counter[str] = Counter()
    for variant in ("default", "capped decay", "delta .5"):
        if variant in row.variants:
            hyper: dict[str, Any] = {**row.reference.defaults, **row.hyper(variant)}
            net = make_net()
            groups = make_groups(net, hyper)
            reference = row.reference([{**row.hyper(variant), **group} for group in groups])
            for t in range(STEPS):
                backward(net, t)
                reference.step(gradients(groups))
                follow(groups, reference)
            seen += reference.branches
    print(row.name, dict(seen))
    assert row.branches <= set(seen)


@every_variant
def test_same_gradients_in_one_optimizer_and_in_deep_copies(row: OptimizerRow, variant: str) -> None:
    """A fixed gradient sequence (no feedback through a loss) must give the reference's weights to rounding."""
    hyper = row.hyper(variant)
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 5), (3, 2, 2, 2), (6,), (), (1, 7), (5, 1)]
    start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    params = [torch.nn.Parameter(s.clone()) for s in start]
    optimizer = row.build(params, variant)
    reference = row.reference([{**hyper, "params": start}])
    for t in range(30):
        grads = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        for p, g in zip(params, grads):
            p.grad = None if (t + p.dim()) % 9 == 0 else g.clone()
        reference.step([[p.grad for p in params]])
        optimizer.step()
        if t == 12:
            optimizer, params = copy_with_parameters(optimizer)
    for p, expected in zip(params, reference.groups[0]["params"]):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-11, atol=1e-12)


def copy_with_parameters(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """A deep copy of an optimizer owns deep copies of its parameters."""
    twin = copy.deepcopy(optimizer)
    return twin, [p for group in twin.param_groups for p in group["params"]]
