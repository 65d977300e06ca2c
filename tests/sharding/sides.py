"""The same weights on one process and split over several: making both sides of a test, stepping and comparing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

from mooring import RadialProjection, SelectiveProjection
from mooring.step.move import Slices
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


class Margins:
    """How near the decisions inside the block came to falling the other way: a relative distance, infinity for none.

    Of the cosine test, the distance of a cosine to its limit: of the largest row's, and of the tensor's where the rows
    fail. Of selective projection, the cosine of gradient and drift, and the growth over the terms it is made of.
    Where a quantity is exactly zero, as the drift before the first step, it is so on both sides.
    """

    def __init__(self) -> None:
        self.smallest = math.inf

    def _see(self, distances: torch.Tensor, where: torch.Tensor) -> None:
        seen = distances[where]
        if seen.numel():
            self.smallest = min(self.smallest, float(seen.min()))

    def __enter__(self) -> Margins:
        self._methods = RadialProjection.decide, SelectiveProjection.decide, SelectiveProjection.reads
        project, contract, reads = self._methods

        def projecting(rule: RadialProjection, x: Slices, totals: list[torch.Tensor]) -> None:
            if x.shared["scale_invariant"] == "test":
                self._cosines(x, totals)
            project(rule, x, totals)

        def contracting(rule: SelectiveProjection, x: Slices, totals: list[torch.Tensor]) -> None:
            self._contraction(x, totals)
            contract(rule, x, totals)

        RadialProjection.decide = projecting  # type: ignore[method-assign]
        SelectiveProjection.decide = contracting  # type: ignore[method-assign]
        SelectiveProjection.reads = lambda rule, live: reads(rule, live) | {"gg"}  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        methods = RadialProjection, SelectiveProjection, SelectiveProjection
        for cls, name, method in zip(methods, ("decide", "decide", "reads"), self._methods):
            setattr(cls, name, method)

    def _cosines(self, x: Slices, totals: list[torch.Tensor]) -> None:
        fails, gg, gp, pp, _ = totals
        delta, eps = x.option("delta"), x.option("eps")
        rows = (
            x.dot("g", "p").abs()
            / (x.dot("g", "g") * x.dot("p", "p")).sqrt()
            / x.per_slice(delta)
            * (x.per_slice(x.row_length).sqrt())
        )
        rows = torch.where(x.per_slice(eps).square() < torch.minimum(x.dot("g", "g"), x.dot("p", "p")), rows, 0.0)
        owner = x.per_slice(torch.arange(len(gg)))
        largest = torch.zeros_like(gg).scatter_reduce(0, owner, rows, "amax")
        tensor = gp.abs() / (gg * pp).sqrt() / delta * x.numel.sqrt()
        tested = x.matrix & (gg > 0) & (pp > 0)
        self._see((largest - 1).abs(), tested)
        self._see((tensor - 1).abs(), tested & (fails > 0))

    def _contraction(self, x: Slices, totals: list[torch.Tensor]) -> None:
        gd, dd, ss, sd = totals
        owner = x.per_slice(torch.arange(len(gd)))
        gg = torch.zeros_like(gd).index_add(0, owner, x.dot("g", "g"))
        self._see(gd.abs() / (gg * dd).sqrt(), gg * dd > 0)
        self._see((ss - 2 * sd).abs() / (ss + 2 * sd.abs()), (gd > 0) & (ss > 0))


@dataclass(frozen=True)
class Followed:
    """What was seen while both sides took their steps.

    Attributes:
        error: the largest error after any step, of this process's part of any weight: over the distance that the whole
            weight has moved, or for bfloat16 in units in the last place.
        collectives: the most that a step took, but for the first.
        first: what the first took.
        margin: see `Margins`.
        dispatched: what was dispatched on DTensors in the last step, when state was there.
    """

    error: float
    collectives: int
    first: int
    margin: float
    dispatched: list[str]


Build = Callable[..., torch.optim.Optimizer]


def build_of(row: OptimizerRow) -> Build:
    """The row's optimizer, in the variant that makes the cosine test pass at times."""
    return partial(row.build, variant="delta .5" if "delta .5" in row.variants else "default")


def follow(
    build: Build,
    layout: list[Place],
    steps: int,
    *,
    poison: int = 0,
    dtype: torch.dtype = torch.float64,
    mine: Sequence[int] | None = None,
    without: Mapping[int, Sequence[int]] | None = None,
    process_group: Any = None,
    **options: Any,
) -> Followed:
    """Step one process's weights and the split ones with the same gradients.

    Args:
        build: makes the optimizer.
        layout: the weights.
        steps: how many steps.
        poison: at every so many steps one element of one gradient is NaN, and one process takes no step.
        dtype: of weights and gradients.
        mine: which of the weights this process holds a part of; all by default.
        without: which weights get no gradient, by step from 1.
        process_group: for the split side alone.
        options: more for the optimizers.
    """
    held = range(len(layout)) if mine is None else mine
    start = draw(layout, 0, dtype)
    whole = [nn.Parameter(x.clone()) for x in start]
    split = {i: nn.Parameter(spread(start[i], layout[i])) for i in held}
    reference = build(whole, **options)
    stages = {} if process_group is None else {"process_group": process_group}
    optimizer = build(list(split.values()), **options, **stages)
    counts, worst, margins = [], 0.0, Margins()
    for t in range(1, steps + 1):
        gradients = draw(layout, t, dtype)
        broken = poison and t % poison == 0
        if broken:
            gradients[1].view(-1)[-1] = torch.nan
        for i, p in enumerate(whole):
            none = i in (without or {}).get(t, ())
            p.grad = None if none else gradients[i]
            if i in split:
                split[i].grad = None if none else spread(gradients[i], layout[i])
        if not broken:
            with margins:
                reference.step()
        with Collectives() as counted, OnDTensors() as seen:
            optimizer.step()
        counts.append(counted.count)
        for i, q in split.items():
            ours, theirs = here(q.detach()), part_of(whole[i].detach(), layout[i])
            if dtype == torch.bfloat16:
                worst = max(worst, float((_order(ours) - _order(theirs)).abs().max()) if ours.numel() else 0.0)
            else:
                error = float((ours - theirs).norm() / (whole[i].detach() - start[i]).norm())
                worst = max(worst, math.inf if math.isnan(error) else error)
    return Followed(worst, max(counts[1:]), counts[0], margins.smallest, sorted(seen.names))


def _order(x: torch.Tensor) -> torch.Tensor:
    """Where a bfloat16 number stands among all of them, so that neighbours differ by 1."""
    bits = x.contiguous().view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


# What asks the network for sums: the scan for the mean of v, the projection's test, the contraction's radius.
STAGES = {
    "AdamW": "",
    "Adam": "",
    "SGD": "",
    "SGDS": "",
    "AdamP": "projection",
    "SGDP": "projection",
    "AdamS": "scan",
    "Adai": "scan",
    "AdaiS": "scan",
    "AdamSPD": "contraction",
    "SGDSPD": "contraction",
    "Adam + projection + stable decay + SPD": "scan projection contraction",
    "SGD + projection + decay to the anchor + SPD": "projection contraction",
}


def collectives(stages: str, *, off: str = "", rows_split: int = 0, clipped: bool = False) -> int:
    """How many a step takes, whatever the number of meshes.

    The scan's sums travel with the projection's, and where gradients are clipped they are those of the clipping. Where
    rows are split, in as many ways as given, a test of rows has to have their sums before it can ask for a tensor's.
    """
    asked = set(stages.split()) - {off}
    if clipped:
        asked = (asked - {"scan"}) | {"clip"}
    if {"scan", "projection"} <= asked:
        asked -= {"scan"}
    return len(asked) + rows_split * ("projection" in asked)
