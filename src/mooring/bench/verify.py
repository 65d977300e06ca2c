"""Whether an optimizer takes the step it should: against the same method's eager step in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mooring.bench.backends import REFERENCE, use
from mooring.bench.branches import Problem, differs, taken
from mooring.bench.methods import METHODS, Method
from mooring.bench.shapes import Shape
from mooring.kernels import rounding

STEPS = 3
LR, NARROW_LR = 1e-4, 1e-2
"""The second for weights of two bytes, whose last place is wider than a step of the first."""
MOST, MORE = 32 << 20, 2 << 20
"""Elements that are verified: one tensor of every shape, the smallest first, as long as they fit into the first; then
further ones into the second, because tensors of one shape may be taken together."""


@dataclass(frozen=True)
class Verified:
    """What the comparison found.

    Attributes:
        deviation: the largest distance of a tensor's displacement to the reference's, relative to it.
        allowed: the same for what rounding explains; where it is larger for a tensor, that tensor decides.
        tensors: how many were compared.
        error: why it failed; None where it is right.
    """

    deviation: float
    allowed: float
    tensors: int
    error: str | None = None


def sample(shapes: Sequence[Shape], most: int = MOST, more: int = MORE) -> list[Shape]:
    """The tensors to verify, in their order.

    Args:
        shapes: of a model.
        most: elements that one tensor of every shape may have together; at least one tensor is taken.
        more: elements that further tensors may have.
    """
    order = sorted(range(len(shapes)), key=lambda i: math.prod(shapes[i]))
    first = {shapes[i]: i for i in reversed(order)}
    chosen: list[int] = []
    for candidates, limit in (
        ([i for i in order if first[shapes[i]] == i], most),
        ([i for i in order if first[shapes[i]] != i], more),
    ):
        total = 0
        for i in candidates:
            total += math.prod(shapes[i])
            if chosen and total > limit:
                break
            chosen.append(i)
    return [shapes[i] for i in sorted(chosen)]


def verify(method: Method, shapes: Sequence[Shape], backend: str, device: torch.device) -> Verified:
    """Take three steps with it and with its reference, on the same gradients, and compare where they lead.

    The reference is the float64 step of our row of the same method on the eager backend, which the tests hold against
    naive loops written from the papers. A tensor of weights p that has moved by D may differ by

        steps * eps * |p| + 64 * eps32 * |D|

    with eps of the weights' type (the weight is rounded at most twice in a step, by half an eps each), and the second
    term for the direction, which is made of a handful of float32 operations.
    """
    problem = Problem(sample(shapes), method.branch, dtype=method.dtype, device=device, seed=1)
    reference = [(name, p.detach().double().requires_grad_()) for name, p in problem.named]
    start = [p.detach().clone() for _, p in reference]
    ours = METHODS[method.reference]
    lr = NARROW_LR if method.dtype.itemsize < 4 else LR
    with use(REFERENCE):
        right: Any = ours.make(reference, lr)
    _anchor(right, {name: anchor.double() for name, anchor in problem.anchors.items()})
    try:
        with use(backend if method.ours else ""):
            candidate: Any = method.make(problem.named, lr)
            if method.ours:
                _anchor(candidate, problem.anchors)
            for step in range(STEPS):
                problem.refresh()
                for (_, q), p in zip(reference, problem.params, strict=True):
                    assert p.grad is not None
                    q.grad = p.grad.double()
                for optimizer in (right, candidate) if method.ours else (right,):
                    optimizer.record(1)
                candidate.step()
                with use(REFERENCE):
                    right.step()
                told: list[tuple[Any, Any]] = [
                    (right, reference),
                    *([(candidate, problem.named)] if method.ours else []),
                ]
                for optimizer, named in told if step == 0 else []:
                    wrong = differs(taken(optimizer, [p for _, p in named]), problem.expected())
                    if wrong is not None:
                        return Verified(math.nan, math.nan, len(reference), f"another branch than built: {wrong}")
        ends = [_exact(candidate, p) for p in problem.params]
    except Exception as error:  # another package's: shown in its row, and the others go on
        return Verified(math.nan, math.nan, len(reference), f"{type(error).__name__}: {error}")
    return _compare(start, [q.detach() for _, q in reference], ends, _unit(method, candidate))


def _anchor(optimizer: Any, anchors: dict[str, Tensor]) -> None:
    if anchors:
        optimizer.anchor_to(anchors)


def _exact(optimizer: Any, p: Tensor) -> Tensor:
    """A weight with what its type could not hold, where the optimizer keeps that."""
    rest = optimizer.state[p].get("compensation")
    value: Tensor = p.detach() if rest is None else rounding.join(p.detach(), rest)
    return value.double()


def _unit(method: Method, optimizer: Any) -> float:
    kept = any("compensation" in state for state in optimizer.state.values())
    return torch.finfo(torch.float32 if kept else method.dtype).eps


def _compare(start: Sequence[Tensor], right: Sequence[Tensor], ends: Sequence[Tensor], unit: float) -> Verified:
    worst = Verified(0.0, math.inf, len(start))
    for i, (before, expected, got) in enumerate(zip(start, right, ends, strict=True)):
        moved, error = float((expected - before).norm()), float((got - expected).norm())
        allowed = STEPS * unit * float(before.norm()) + 64 * torch.finfo(torch.float32).eps * moved
        if not moved > 0:
            return Verified(math.nan, math.nan, len(start), f"the reference does not move tensor {i}")
        found = Verified(error / moved, allowed / moved, len(start))
        if not error <= allowed:  # also where it is not a number
            return Verified(
                found.deviation, found.allowed, len(start),
                f"its step differs from its float64 reference by {found.deviation:.2g} of it, "
                f"rounding explains {found.allowed:.2g} (tensor of shape {tuple(before.shape)})",
            )  # fmt: skip
        if found.deviation >= worst.deviation:
            worst = found
    return worst
