"""The same weights on one process and split over several: making both sides of a test, stepping and comparing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

from tests.optim.table import OptimizerRow

Place = tuple[tuple[int, ...], DeviceMesh | None, list[Placement]]
"""A weight's shape and how it lies on a mesh; without a mesh it is a plain tensor on every process."""


def draw(layout: list[Place], seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Normal numbers for every weight of a layout, the same on all processes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape, _, _ in layout]


def spread(x: torch.Tensor, place: Place) -> torch.Tensor:
    """A whole tensor as it lies here; torch cannot distribute a strided shard, so that is cut by hand."""
    _, mesh, placements = place
    if mesh is None:
        return x.clone()
    if not any(isinstance(p, _StridedShard) for p in placements):
        return distribute_tensor(x.clone(), mesh, placements)
    dp, tp = mesh.get_coordinate()  # type: ignore[misc]
    rows = list(torch.chunk(torch.arange(len(x)), 2))  # first over tp, then each part over dp
    mine = list(torch.chunk(rows[tp], 2)) if tp < len(rows) else []
    own = mine[dp] if dp < len(mine) else torch.arange(0)
    return DTensor.from_local(x[own].clone(), mesh, placements, run_check=False, shape=x.shape, stride=x.stride())


def here(x: torch.Tensor) -> torch.Tensor:
    """This process's part."""
    part: torch.Tensor = x.to_local() if isinstance(x, DTensor) else x
    return part


def part_of(x: torch.Tensor, place: Place) -> torch.Tensor:
    """This process's part of a whole tensor."""
    return here(spread(x, place))


def full(x: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = x.full_tensor() if isinstance(x, DTensor) else x
    return whole


class Collectives:
    """Counts the reductions over processes inside the block."""

    def __enter__(self) -> Collectives:
        self.count, self._reduce = 0, dist.all_reduce

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return self._reduce(*args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._reduce


class OnDTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names the operations that are dispatched on DTensors, each of which costs many times a local one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(x, DTensor) for x in args):
            self.names.add(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Followed:
    """What was seen while both sides took their steps.

    Attributes:
        error: the largest error after any step, of this process's part of any weight, over the distance that the whole
            weight has moved.
        collectives: the most that a step took.
        dispatched: what was dispatched on DTensors in the last step, when state was there.
    """

    error: float
    collectives: int
    dispatched: list[str]


def follow(row: OptimizerRow, layout: list[Place], steps: int, poison: int = 0, **options: Any) -> Followed:
    """Step one process's weights and the split ones with the same gradients.

    Args:
        row: the optimizer.
        layout: the weights.
        steps: how many steps.
        poison: at every so many steps one element of one gradient is NaN, and one process takes no step.
        options: more for the optimizers.
    """
    start = draw(layout, 0)
    whole = [nn.Parameter(x.clone()) for x in start]
    split = [nn.Parameter(spread(x, place)) for x, place in zip(start, layout)]
    variant = "delta .5" if "delta .5" in row.variants else "default"
    reference, optimizer = row.build(whole, variant, **options), row.build(split, variant, **options)
    most, worst = 0, 0.0
    for t in range(1, steps + 1):
        gradients = draw(layout, t)
        broken = poison and t % poison == 0
        if broken:
            gradients[1][0, -1] = torch.nan
        for p, q, g, place in zip(whole, split, gradients, layout):
            p.grad, q.grad = g, spread(g, place)
        if not broken:
            reference.step()
        with Collectives() as counted, OnDTensors() as seen:
            optimizer.step()
        most = max(most, counted.count)
        for p, q, x, place in zip(whole, split, start, layout):
            moved = (p.detach() - x).norm()
            worst = max(worst, float((here(q.detach()) - part_of(p.detach(), place)).norm() / moved))
    return Followed(worst, most, sorted(seen.names))
