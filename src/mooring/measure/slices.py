"""The loss along straight lines through the weights: in random directions and along the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mooring.kernels import random
from mooring.measure.point import Loss, Offset, Point, Progress
from mooring.perturb.noise import draw, row_sizes
from mooring.perturb.weights import Member

DIRECTIONS = ("random", "filter", "gradient")


@dataclass(frozen=True)
class Slice:
    """The loss along one direction.

    Attributes:
        direction: which kind.
        seed: of the direction where it is random.
        steps: in units of the weights' norm, ascending, 0 in the middle.
        losses: at ``W + step * d`` with ``|d| = |W|`` (of the weights that a ``"filter"`` direction moves).
    """

    direction: str
    seed: int
    steps: tuple[float, ...]
    losses: tuple[float, ...]


def loss_along(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    direction: str = "filter",
    *,
    reach: float = 0.5,
    points: int = 21,
    sizes: Sequence[float] | None = None,
    seed: int = 0,
    params: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> Slice:
    """The loss at ``W + t d`` for t from ``-reach`` to ``reach``.

    - ``"random"``: d normal, scaled to ``|d| = |W|``.
    - ``"filter"``: d normal, every row (output channel) of it scaled to the norm of that row of the weights; vectors
      such as biases and norm gains are not moved. Filter normalisation (Li et al. 2018, arXiv 1712.09913), under which
      networks that differ by the scale of their filters alone look alike.
    - ``"gradient"``: d is the gradient of the loss at W, scaled to ``|d| = |W|``: uphill for t > 0.

    Cost: ``points`` forward passes over the data, and a gradient for its direction; one copy of the weights. Everything
    is left as it was found, the weights to the bit.

    Args:
        model: the module, measured in evaluation mode; parameters with ``requires_grad`` are moved.
        loss: the mean loss over one batch.
        batches: what ``loss`` is given, one after the other.
        direction: one of the above.
        reach: the largest step to both sides, in units of the weights' norm.
        points: odd, so that W itself is among them.
        sizes: how many examples each batch has; equal where not given.
        seed: of a random direction.
        params: the parameters that are moved, if not all.
        progress: told after every point.

    Raises:
        ValueError: for an argument out of range, or along a gradient that is 0.

    Example:
        >>> import torch
        >>> from mooring.measure import loss_along
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> found = loss_along(model, lambda m, x: m(x).square().sum(), [torch.eye(2)], "gradient", points=3, reach=1)
        >>> [round(x / found.losses[1], 4) for x in found.losses]  # (1 + t)^2 along the gradient of a parabola
        [0.0, 1.0, 4.0]
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    if not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise ValueError(f"points must be an odd integer >= 3, got {points!r}")
    if not 0 < reach < math.inf:
        raise ValueError(f"reach must be a finite number > 0, got {reach!r}")
    point = Point(model, loss, batches, sizes, params)
    half = points // 2
    steps = tuple(reach * (i - half) / half for i in range(points))
    losses = []
    with point.measuring():
        along = _direction(point, direction, seed)

        def offset(t: float) -> Offset:
            def moved(member: Member, wide: Tensor) -> Tensor | None:
                d = along(member, wide)
                return None if d is None else d.mul_(t)

            return moved

        for i, t in enumerate(steps):
            point.move(offset(t))
            losses.append(point.value())
            if progress is not None:
                progress(i + 1, points)
    return Slice(direction, seed, steps, tuple(losses))


def _direction(point: Point, kind: str, seed: int) -> Offset:
    """The direction of every parameter, a fresh tensor each time it is asked for."""

    def normal(member: Member, scale: float = 1.0) -> Tensor:
        return draw(member, "normal", random.key("direction", seed, member.name), scale)

    if kind == "filter":

        def by_row(member: Member, wide: Tensor) -> Tensor | None:
            if member.p.ndim < 2:
                return None
            d = normal(member)
            return d.mul_(torch.nan_to_num(row_sizes(member, wide) / row_sizes(member, d)))

        return by_row
    norm = point.norm() or 1.0
    if kind == "random":
        parts = [normal(member) for member in point.members]
        scale = norm / float(point.inner(parts, parts).sum().sqrt())
        del parts
        return lambda member, wide: normal(member, scale)
    gradient = point.gradient()
    size = float(point.inner(gradient, gradient).sum().sqrt())
    if size == 0:
        raise ValueError("the gradient of the loss is 0 here, so it has no direction; take 'random' or 'filter'")
    place = {id(p): g for p, g in zip(point.params, gradient)}
    return lambda member, wide: place[id(member.p)] * (norm / size)
