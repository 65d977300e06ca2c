"""How far weights are from an anchor: the distance, relative to the anchor's norm, and as an angle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mooring.anchors.names import match, plain
from mooring.kernels.eager import row_sums
from mooring.step.shards import all_sum, is_sharded, local, local_part, sharding, whole

Weights = nn.Module | Mapping[str, Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class LayerDrift:
    """One parameter, or all of them as one vector.

    Attributes:
        name: of the parameter.
        size: how many weights.
        distance: ``|w - a|``, from differences element by element.
        relative: ``|w - a| / |a|``; NaN where the anchor is 0.
        angle: between w and a in radians, 0 to pi; NaN where either is 0.
        norm: ``|w|``.
        anchor_norm: ``|a|``.
    """

    name: str
    size: int
    distance: float
    relative: float
    angle: float
    norm: float
    anchor_norm: float


@dataclass(frozen=True)
class Drift:
    """The drift of a model.

    Attributes:
        layers: one row per parameter, in the model's order.
        total: the same of all of them as one vector, named ``"total"``.
        missing: parameters that the anchor does not have; they are in neither.
    """

    layers: tuple[LayerDrift, ...]
    total: LayerDrift
    missing: tuple[str, ...]


def drift(weights: Weights, anchor: Weights, *, skip_missing: bool = False) -> Drift:
    """How far weights are from an anchor, per parameter and in total. Buffers (running statistics) are not counted.

    Everything is computed in float64. Angles are stable for small ones, where ``acos`` of a cosine keeps no digit below
    1e-8: with ``u = w/|w|`` and ``b = a/|a|`` the angle is ``2 atan2(|u - b|, |u + b|)`` (Kahan 2006).

    Sharded weights (DTensor) give the numbers of the whole on every process; the anchor may be sharded alike or whole.

    Args:
        weights: a module, of which the parameters count, or a state dict, of which the floating-point tensors do except
            running statistics.
        anchor: likewise. Names are matched exactly, then without the segments that wrappers insert.
        skip_missing: leave out parameters that the anchor does not have, such as a new head, instead of raising.

    Raises:
        ValueError: for a parameter that the anchor does not have or has in another shape, or where none is left.

    Example:
        >>> import torch
        >>> from mooring.measure import drift
        >>> found = drift({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.0, 0.0])})
        >>> [round(x, 4) for x in (found.total.distance, found.total.relative, found.total.angle)]
        [1.0, 1.0, 0.7854]
    """
    ours, theirs = _named(weights), _named(anchor)
    keys = match(list(ours), theirs, "the anchor")
    missing = tuple(name for name in ours if name not in keys)
    if missing and not skip_missing:
        raise ValueError(
            f"the anchor has no {', '.join(map(repr, missing[:3]))}{' and others' if len(missing) > 3 else ''}; "
            "skip_missing=True leaves out what it does not have"
        )
    if not keys:
        raise ValueError("the anchor has none of the parameters")
    rows = [_Pair(name, ours[name], theirs[keys[name]]) for name in ours if name in keys]
    squares = _sums(rows, [(pair.w, pair.a, pair.w - pair.a) for pair in map(_Pair.wide, rows)])
    norms = [[math.sqrt(float(x)) for x in row] for row in squares]
    total = [math.sqrt(float(x)) for x in squares.sum(0)]
    # Both angles, a parameter's own and its share of the total's, need the norms first.
    halves = _sums(
        rows,
        [
            (*_apart(pair, own[0], own[1]), *_apart(pair, total[0], total[1]))
            for pair, own in zip(map(_Pair.wide, rows), norms)
        ],
    )
    layers = [
        _row(row.name, row.p.numel(), own, _angle(own, half)) for row, own, half in zip(rows, norms, halves[:, :2])
    ]
    size = sum(row.p.numel() for row in rows)
    return Drift(tuple(layers), _row("total", size, total, _angle(total, halves[:, 2:].sum(0))), missing)


def weight_norm(model: nn.Module) -> float:
    """The Euclidean norm of all parameters as one vector."""
    params = list(model.parameters())
    parts = [local(p.detach()).double().reshape(1, -1).contiguous() for p in params]
    sums = all_sum([(row_sums(x * x), sharding(p, 0).axes) for x, p in zip(parts, params)])
    return math.sqrt(math.fsum(float(x) for x in sums))


@dataclass(frozen=True)
class _Pair:
    """A parameter and its anchor."""

    name: str
    p: Tensor
    anchor: Tensor

    def wide(self) -> _Wide:
        if self.p.shape != self.anchor.shape:
            raise ValueError(
                f"{self.name!r} has shape {tuple(self.p.shape)}, its anchor has shape {tuple(self.anchor.shape)}"
            )
        part = local_part(self.p)
        if is_sharded(self.anchor):
            same = is_sharded(self.p) and self.anchor.placements == self.p.placements  # type: ignore[attr-defined]
            a = local(self.anchor) if same else whole(self.anchor) if part is None else whole(self.anchor)[part]
        else:
            a = self.anchor if part is None else self.anchor[part]
        w = local(self.p).double()
        return _Wide(w, a.to(w.device, torch.float64))


@dataclass(frozen=True)
class _Wide:
    w: Tensor
    a: Tensor


def _named(weights: Weights) -> dict[str, Tensor]:
    if isinstance(weights, nn.Module):
        return {plain(name): p.detach() for name, p in weights.named_parameters() if p.numel()}
    return {
        name: x.detach()
        for name, x in weights.items()
        if x.is_floating_point() and x.numel() and name.rpartition(".")[2] not in _STATISTICS
    }


def _apart(pair: _Wide, norm: float, anchor_norm: float) -> tuple[Tensor, Tensor]:
    u, b = pair.w / (norm or 1.0), pair.a / (anchor_norm or 1.0)
    return u - b, u + b


def _sums(rows: Sequence[_Pair], parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """The sum of squares of every part over all processes, (rows, parts), float64."""
    requests: list[tuple[Tensor, tuple[Any, ...]]] = []
    for row, several in zip(rows, parts):
        flat = [x.reshape(1, -1).contiguous() for x in several]
        requests.append((torch.cat([row_sums(x * x) for x in flat]), sharding(row.p, 0).axes))
    return torch.stack([x.cpu() for x in all_sum(requests)])


def _angle(norms: Sequence[float], half: Tensor) -> float:
    if norms[0] == 0 or norms[1] == 0:
        return math.nan
    return 2 * math.atan2(math.sqrt(float(half[0])), math.sqrt(float(half[1])))


def _row(name: str, size: int, norms: Sequence[float], angle: float) -> LayerDrift:
    norm, anchor_norm, distance = norms
    return LayerDrift(
        name, size, distance, distance / anchor_norm if anchor_norm else math.nan, angle, norm, anchor_norm
    )
