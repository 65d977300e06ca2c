"""The processes that one optimizer steps with: sums that travel together over several meshes, and sums over stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mooring.kernels.eager import row_sums
from mooring.step.scalars import on_device
from mooring.step.shards import Axis, Flat, Request, add_up, flatten, plane, sharding, unflatten

# Numbers per tensor for which a slot has room: the five sums of the cosine test with the scan's, and two to spare.
_ROOM = 8


class Processes:
    """What an optimizer knows of the processes beside it.

    **Several meshes.** Weights of one model may lie on a mesh and on slices of it: FSDP over tensor parallelism keeps
    those that are not tensor-parallel on the slice along which FSDP splits. A slice's sums then travel in the
    collective of the larger mesh, in a slot for each position along the rest of that mesh, where the slices may hold
    different tensors, as experts do. How large slots have to be, the processes of the larger mesh agree on before its
    first collective, in one small one: the most tensors that any of them has on such a slice, times room for 8 numbers.
    Who has nothing, or nothing at this step, leaves the slot zero, and what does not fit goes by itself; so the size of
    a collective never depends on what another position does.

    **Several stages.** With ``group``, sums over the whole model are sums over its processes too: those that hold
    the other stages of a pipeline. Each writes a slot of its own, so the sum is formed in the order of the stages, to
    the same bits on all of them.

    Args:
        group: a process group whose ranks hold different parameters of one model, or None.

    Raises:
        TypeError: for a group that is none.
    """

    def __init__(self, group: Any = None) -> None:
        if group is not None and group != LOST and not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"process_group must be a torch.distributed.ProcessGroup or None, got {group!r}; "
                'a mesh has one for each dimension, mesh.get_group("pp")'
            )
        self.group: Any = group
        self.home = torch.device("cpu")
        self._tensors: Counter[tuple[Axis, ...]] = Counter()
        self._agreed: dict[tuple[Any, tuple[int, ...]], dict[tuple[int, ...], int]] = {}

    def __reduce__(self) -> Any:
        return Processes, (None if self.group is None else LOST,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        copied = Processes(self.group)
        copied._agreed = dict(self._agreed)
        return copied

    @property
    def several_stages(self) -> bool:
        """Whether sums over the model are sums over processes that hold other parameters."""
        return self.group is not None

    def know(self, params: Sequence[Tensor]) -> None:
        """Look at all parameters of the optimizer, with a gradient or without."""
        if params:
            self.home = params[0].device
        self._tensors = Counter(axes for axes in (sharding(p, 0).axes for p in params if p.numel()) if axes)

    def all_sum(self, requests: list[Request]) -> list[Tensor]:
        """:func:`mooring.step.shards.all_sum`, with sums of a mesh's slices in the collective of the mesh."""
        flats = flatten(requests)
        if not flats:
            return [values for values, _ in requests]
        guests: set[int] = set()
        for host in sorted((f for f in flats if len(f.dims) > 1 and not f.by_rows), key=lambda f: -len(f.dims)):
            if id(host) not in guests:
                guests |= self._carry(host, [f for f in flats if f is not host and id(f) not in guests])
        for flat in flats:
            if id(flat) not in guests:
                add_up(flat.values, flat.mesh, flat.dims)
        return unflatten(requests, flats)

    def _carry(self, host: Flat, others: Sequence[Flat]) -> set[int]:
        """Give a collective slots for the sums of its slices, and fill those that this process has."""
        slots = self._slots(host)
        if not slots:
            return set()
        here = host.mesh.get_coordinate()
        carried: set[int] = set()
        buffers = [host.values]
        places: list[tuple[Flat, int, int]] = []
        for dims, tensors in slots.items():
            rest = [dim for dim in host.dims if dim not in dims]
            sizes = [host.mesh.size(dim) for dim in rest]
            position = 0
            for dim, size in zip(rest, sizes):
                position = position * size + here[dim]
            room = tensors * _ROOM
            slot = host.values.new_zeros(prod(sizes), room)
            begin, ranks = 0, plane(host.mesh, dims)
            for other in others:
                n = other.values.numel()
                alike = (other.values.dtype, other.values.device) == (slot.dtype, slot.device)
                if other.by_rows or id(other) in carried or not alike or begin + n > room:
                    continue
                if plane(other.mesh, other.dims) == ranks:
                    slot[position, begin : begin + n] = other.values
                    places.append((other, sum(b.numel() for b in buffers) + position * room + begin, n))
                    carried.add(id(other))
                    begin += n
            buffers.append(slot.reshape(-1))
        joined = torch.cat(buffers)
        add_up(joined, host.mesh, host.dims)
        host.values = joined[: host.values.numel()]
        for other, begin, n in places:
            other.values = joined[begin : begin + n]
        return carried | {id(host)}

    def _slots(self, host: Flat) -> dict[tuple[int, ...], int]:
        """Along which dimensions of a mesh any process has tensors on a slice, and the most that one has."""
        key = host.mesh, host.dims
        if key not in self._agreed:
            choices = [dims for n in range(1, len(host.dims) + 1) for dims in combinations(host.dims, n)]
            index = {plane(host.mesh, dims): i for i, dims in enumerate(choices)}
            most = [0] * len(choices)
            by_mesh: dict[Any, list[tuple[int, ...]]] = {}
            for axes, n in self._tensors.items():
                by_mesh.setdefault(axes[0][0], []).extend([tuple(dim for _, dim in axes)] * n)
            for mesh, splits in by_mesh.items():
                if mesh == host.mesh:
                    continue
                union = tuple(sorted({dim for split in splits for dim in split}))
                for dims in {*splits, union}:
                    at = index.get(plane(mesh, dims))
                    if at is not None:
                        most[at] += len(splits)
            if host.values.device.type == "meta":  # nothing is sent: what this process has is all that is known
                return {dims: n for dims, n in zip(choices, most) if n}
            agreed = on_device([float(n) for n in most], host.values.device)
            add_up(agreed, *key, op=dist.ReduceOp.MAX)
            self._agreed[key] = {dims: int(n) for dims, n in zip(choices, agreed.tolist()) if n}
        return self._agreed[key]

    def over_model(self, values: Tensor) -> Tensor:
        """Add a float64 vector, complete over this stage's shards, over the stages."""
        if self.group is None:
            return values
        if self.group == LOST:
            raise RuntimeError(
                "process_group: a pickled optimizer does not hold it; set optimizer.process_group to the group of the "
                "processes that hold the other parameters of the model, or to None"
            )
        slots = values.new_zeros(dist.get_world_size(self.group), values.numel())
        slots[dist.get_rank(self.group)] = values
        dist.all_reduce(slots, group=self.group)
        return row_sums(slots.T.contiguous())


LOST = "lost"
"""Stands for a process group that a pickle could not hold."""
