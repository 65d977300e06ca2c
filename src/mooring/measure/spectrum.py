"""Lanczos iteration in torch, and the density of eigenvalues that it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mooring.measure.estimate import Estimate, mean_of
from mooring.measure.point import Point
from mooring.step.batch import compute_dtype
from mooring.step.shards import Axis, all_sum

Multiply = Callable[[Sequence[Tensor]], list[Tensor]]
Rule = tuple[Tensor, Tensor]
"""Nodes and weights of one probe's quadrature; the weights add up to 1."""

_COLUMNS = 1 << 16  # elements of a vector that are widened to float64 at a time


class Flat:
    """This process's weights as one vector, and inner products of such vectors over all processes."""

    def __init__(self, point: Point) -> None:
        self._params = point.params
        self._point = point
        self.dtype = max((compute_dtype(p.dtype) for p in point.params), key=lambda t: torch.finfo(t).bits)
        self.device = point.params[0].device

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One vector."""
        return torch.cat([x.reshape(-1).to(self.device, self.dtype) for x in parts])

    def split(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """The vector in the shapes of ``like``."""
        pieces = torch.split(flat, [x.numel() for x in like])
        return [x.view(y.shape).to(y.device, y.dtype) for x, y in zip(pieces, like)]

    def dots(self, rows: Tensor, vector: Tensor, lengths: Sequence[int]) -> Tensor:
        """Inner product of every row with a vector: float64."""
        by_axes: dict[tuple[Axis, ...], Tensor] = {}
        start = 0
        for length, axes in zip(lengths, self._point.axes):
            value = torch.zeros(rows.shape[0], dtype=torch.float64, device=self.device)
            for first in range(start, start + length, _COLUMNS):
                here = slice(first, min(first + _COLUMNS, start + length))
                value += rows[:, here].double() @ vector[here].double()
            by_axes[axes] = by_axes[axes] + value if axes in by_axes else value
            start += length
        sums = all_sum([(value, axes) for axes, value in by_axes.items()])
        return torch.stack(sums).sum(0)


def lanczos(
    multiply: Multiply, flat: Flat, start: Sequence[Tensor], steps: int, progress: Callable[[int], None]
) -> Rule:
    """Nodes and weights of the quadrature of ``v·f(H)v / v·v``.

    Every new vector is made orthogonal to all before it, twice: without that, eigenvalues that have converged come
    back as copies. Ends early where the vectors so far span an invariant subspace.

    Args:
        multiply: the product with H, of tensors in the shapes of ``start``.
        flat: how they are one vector.
        start: v.
        steps: how many products at most.
        progress: told how many are done.
    """
    lengths = [x.numel() for x in start]
    current = flat.join(start)
    current = current / flat.dots(current[None], current, lengths).sqrt().to(flat.dtype)
    basis = torch.empty(steps, current.numel(), dtype=flat.dtype, device=flat.device)
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    for j in range(steps):
        basis[j] = current
        image = flat.join(multiply(flat.split(current, start)))
        progress(j + 1)
        known = basis[: j + 1]
        against = flat.dots(known, image, lengths)
        diagonal.append(float(against[-1]))
        image = image - against.to(flat.dtype) @ known
        image = image - flat.dots(known, image, lengths).to(flat.dtype) @ known
        length = float(flat.dots(image[None], image, lengths).sqrt())
        scale = max(scale, abs(diagonal[-1]) + length)
        if j + 1 == steps or length <= 10 * torch.finfo(flat.dtype).eps * scale:
            break
        beside.append(length)
        current = image / length
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside, dtype=torch.float64)
    if len(off):
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, vectors[0].square()


@dataclass(frozen=True)
class Density:
    """The distribution of a Hessian's eigenvalues, as stochastic Lanczos quadrature sees it.

    Attributes:
        grid: eigenvalues, float64.
        density: at these: the mean over probes of ``sum_i w_i N(x; node_i, width)``; its integral is 1.
        error: its standard error over probes; NaN for a single probe.
        width: the standard deviation of the Gaussians.
        nodes: of every probe's quadrature, ascending.
        weights: of these; each probe's add up to 1.
        size: how many eigenvalues there are.
    """

    grid: Tensor
    density: Tensor
    error: Tensor
    width: float
    nodes: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    size: int

    @classmethod
    def of(cls, rules: Sequence[Rule], size: int, points: int, width: float | None) -> Density:
        """The density from the quadratures of all probes."""
        low, high = min(float(n[0]) for n, _ in rules), max(float(n[-1]) for n, _ in rules)
        span = (high - low) or abs(high) or 1.0
        spread = width or span / 100
        grid = torch.linspace(low - 4 * spread, high + 4 * spread, points, dtype=torch.float64)
        curves = []
        for nodes, weights in rules:
            bells = torch.exp(-0.5 * ((grid[:, None] - nodes[None]) / spread) ** 2)
            curves.append(bells @ weights / (spread * (2 * torch.pi) ** 0.5))
        stacked = torch.stack(curves)
        error = stacked.std(0) / len(curves) ** 0.5 if len(curves) > 1 else torch.full_like(grid, torch.nan)
        return cls(grid, stacked.mean(0), error, spread, tuple(n for n, _ in rules), tuple(w for _, w in rules), size)

    def trace_of(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """``tr f(H)``: the number of weights times the mean of f over the distribution.

        Args:
            function: f, elementwise; ``lambda x: x`` gives the trace, ``lambda x: x.clamp(min=0)`` that of the positive
                part, ``torch.square`` the squared Frobenius norm.
        """
        values = [self.size * float((w * function(n)).sum()) for n, w in zip(self.nodes, self.weights)]
        return mean_of(values)
