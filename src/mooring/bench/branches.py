"""Weights, gradients and anchors that make a method take one of its branches, and the check that it did.

What a step costs can depend on the numbers: AdamP projects rows, whole tensors or nothing, AdamSPD pulls a tensor back
or leaves it. A random gradient takes one of these branches by chance, so each is built:

- ``rows``: every row of the gradient is orthogonal to its row of weights, as it is in front of a normalisation layer.
- ``tensor``: the whole gradient is orthogonal, its rows are not.
- ``along``: the gradient has a cosine of about 0.7 with the weights.
- contraction: with ``d = x (g - c sign(g))`` and c between ``mean |g|`` and ``sum g^2 / sum |g|``, ``<g, d> > 0`` and
  ``<sign(g), d> < 0``: descent points back to the anchor, but Adam's step, which is along sign(g) when the gradient
  stays the same, leads away from it. That is what selective projection pulls back; ``-d`` is what it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mooring.bench.shapes import Shape

WEIGHT = 0.05
"""Standard deviation of the weights; gradients have 1."""
_OFFSET = 0.01
_PIECE = 1 << 20


@dataclass(frozen=True)
class Branch:
    """What the numbers are to make a method do.

    Attributes:
        gradient: ``random``, ``rows``, ``tensor`` or ``along``, as above.
        contracted: the share of the elements whose tensors are to be pulled back; None where nothing has an anchor.
    """

    gradient: str = "random"
    contracted: float | None = None


class Problem:
    """Parameters with gradients, and anchors where the branch has them.

    Args:
        shapes: of the parameters.
        branch: what a step is to do on them.
        dtype: of weights and gradients.
        device: where they are.
        seed: equal seeds give equal numbers.
    """

    def __init__(
        self, shapes: Sequence[Shape], branch: Branch, *, dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        # A stretch of one pool at a place of its own for every tensor: sampling a billion normals would take longer
        # than timing a step with them.
        pool = torch.randn(1 << 20, generator=generator)
        self.branch, self.params = branch, list[nn.Parameter]()
        for shape in shapes:
            weights, gradient = (_stretch(pool, shape, generator).to(device, dtype) for _ in range(2))
            p = nn.Parameter(weights.mul_(WEIGHT))
            p.grad = gradient
            self.params.append(p)
        self.refresh()
        self.pulled = _chosen([p.numel() for p in self.params], branch.contracted or 0.0)
        self.anchors: dict[str, Tensor] = {}
        if branch.contracted is not None:
            for i, p in enumerate(self.params):
                anchor = p.detach() - _offset(p.grad, 1.0 if self.pulled[i] else -1.0)
                self.anchors[f"t{i}"] = anchor.bfloat16().to(dtype)  # which a store in bfloat16 keeps as it is

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters with the names of their anchors."""
        return [(f"t{i}", p) for i, p in enumerate(self.params)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the gradients into the branch again after the weights have moved."""
        make = {"rows": _without_rows, "tensor": _without_whole, "along": _along}.get(self.branch.gradient)
        for p in self.params if make else ():
            if p.ndim > 1 and p.numel():
                assert p.grad is not None and make is not None
                make(p.detach().flatten(1), p.grad.flatten(1))

    def expected(self) -> dict[str, float]:
        """The shares of elements that telemetry has to report; see :func:`taken`."""
        out: dict[str, float] = {}
        matrices = [p for p in self.params if p.ndim > 1]
        size = sum(p.numel() for p in matrices)
        if self.branch.gradient != "random" and size:
            single = sum(p.numel() for p in matrices if p.shape[0] == 1)  # one row is the whole tensor
            by_row = {"rows": size, "tensor": single, "along": 0}[self.branch.gradient]
            by_tensor = {"rows": 0, "tensor": size - single, "along": 0}[self.branch.gradient]
            out.update(by_row=by_row / size, by_tensor=by_tensor / size)
        if self.branch.contracted is not None:
            pulled = sum(p.numel() for p, chosen in zip(self.params, self.pulled, strict=True) if chosen)
            out["contracted"] = pulled / sum(p.numel() for p in self.params)
        return out


def taken(optimizer: Any, params: Sequence[Tensor]) -> dict[str, float]:
    """What the last recorded step of an optimizer of this package did, as shares of the elements it could do it to.

    ``by_row`` and ``by_tensor``: projected, of the matrices; ``contracted``: pulled back, of all.
    """
    told = optimizer.telemetry(per_tensor=True)
    out: dict[str, float] = {}
    for rule, metric in (
        ("radial_projection", "by_row"),
        ("radial_projection", "by_tensor"),
        ("selective_projection", "contracted"),
    ):
        found = [(p.numel(), told.get(f"group0/{rule}/{metric}/t{i}")) for i, p in enumerate(params)]
        known = [(size, share) for size, share in found if share is not None]
        if known:
            out[metric] = math.fsum(size * share for size, share in known) / sum(size for size, _ in known)
    return out


def differs(found: dict[str, float], expected: dict[str, float]) -> str | None:
    """Where a branch was not taken as built, in words."""
    for name, share in expected.items():
        got = found.get(name)
        if got is None or abs(got - share) > 1e-9:
            return f"{name} is {'not reported' if got is None else f'{got:.4g}'}, built for {share:.4g}"
    return None


def _stretch(pool: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    size = math.prod(shape)
    start = int(torch.randint(pool.numel(), (), generator=generator))
    repeats = -(-(start + size) // pool.numel())
    return pool.repeat(repeats)[start : start + size].reshape(shape).clone()


def _chosen(sizes: Sequence[int], share: float) -> list[bool]:
    """Tensors that hold so much of all elements, the largest first, each to the side that lacks more."""
    out, total, inside, outside = [False] * len(sizes), sum(sizes), 0, 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        out[i] = share * total - inside > (1 - share) * total - outside
        inside, outside = (inside + sizes[i], outside) if out[i] else (inside, outside + sizes[i])
    return out


def _offset(gradient: Tensor | None, sign: float) -> Tensor:
    """``d`` of the module's heading, in the gradient's type."""
    assert gradient is not None
    size = gradient.abs()
    first = float(size.sum(dtype=torch.float64))
    second = math.fsum(float(part.double().square().sum()) for part in torch.split(size.flatten(), _PIECE))
    middle = (first / max(gradient.numel(), 1) + second / first) / 2 if first else 0.0
    out: Tensor = (gradient - middle * gradient.sign()) * (sign * _OFFSET)
    return out


def _pieces(p: Tensor, g: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows of weights and gradient in float64, and the gradient's own rows to write them to."""
    step = max(1, _PIECE // max(p.shape[1], 1))
    for start in range(0, p.shape[0], step):
        rows = slice(start, start + step)
        yield p[rows].double(), g[rows].double(), g[rows]


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    return torch.where(bottom > 0, top / bottom, torch.zeros_like(top))


def _without_rows(p: Tensor, g: Tensor) -> None:
    for x, y, out in _pieces(p, g):
        out.copy_(y - x * _ratio((x * y).sum(1, keepdim=True), (x * x).sum(1, keepdim=True)))


def _without_whole(p: Tensor, g: Tensor) -> None:
    turn = torch.ones(p.shape[0], 1, dtype=torch.float64, device=p.device)
    turn[1::2] = -1
    for x, y, out in _pieces(p, g):  # rows that lean to their weights and away from them, in turn
        lean = _ratio((y * y).sum(1, keepdim=True), (x * x).sum(1, keepdim=True)).sqrt()
        away = y - x * _ratio((x * y).sum(1, keepdim=True), (x * x).sum(1, keepdim=True))
        out.copy_((away + x * lean * turn[: x.shape[0]]) / math.sqrt(2))
    for _ in range(2):  # the second time takes away what rounding has left
        both = torch.stack([torch.stack([(x * y).sum(), (x * x).sum()]) for x, y, _ in _pieces(p, g)]).sum(0)
        factor = _ratio(both[0], both[1])
        for x, y, out in _pieces(p, g):
            out.copy_(y - x * factor)


def _along(p: Tensor, g: Tensor) -> None:
    for x, y, out in _pieces(p, g):
        lean = _ratio((y * y).sum(1, keepdim=True), (x * x).sum(1, keepdim=True)).sqrt()
        away = y - x * _ratio((x * y).sum(1, keepdim=True), (x * x).sum(1, keepdim=True))
        out.copy_((away + x * lean) / math.sqrt(2))
