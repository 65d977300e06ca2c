"""Where a parameter is split: local tensors, global shapes, and the processes that hold the other pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mooring.kernels.eager import row_sums
from mooring.step.scalars import on_device

Axis = tuple[Any, int]
"""A dimension of a device mesh: the mesh and the number of the dimension."""


class WithinRows(tuple[Axis, ...]):
    """Mesh dimensions that split rows: sums over them have a value for each row that a process holds a part of."""

    __slots__ = ()


Request = tuple[Tensor, tuple[Axis, ...]]
"""What is to be summed, and the mesh dimensions along which other processes hold the rest."""


@dataclass(frozen=True)
class Sharding:
    """How one parameter is split.

    Attributes:
        rows: mesh dimensions over which whole rows are distributed.
        within: mesh dimensions over which a row itself is split.
    """

    rows: tuple[Axis, ...] = ()
    within: WithinRows = field(default_factory=WithinRows)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All mesh dimensions along which processes hold different elements of the parameter."""
        return (*self.rows, *self.within)


WHOLE = Sharding()


def _dtensor_class() -> type | None:
    if not dist.is_available():
        return None
    from torch.distributed.tensor import DTensor

    return DTensor


_DTENSOR = _dtensor_class()


def is_sharded(x: Tensor) -> bool:
    """Whether ``x`` is a DTensor."""
    return _DTENSOR is not None and isinstance(x, _DTENSOR)


def local(x: Tensor) -> Tensor:
    """This process's piece of ``x``; it shares memory with ``x``."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def local_part(x: Tensor) -> tuple[slice, ...] | None:
    """Where this process's piece lies in the whole tensor, one slice per dimension; None if it is the whole."""
    if not is_sharded(x):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)  # type: ignore[attr-defined]
    return tuple(slice(start, start + n) for start, n in zip(offset, shape))


def like_shard(piece: Tensor, x: Tensor) -> Tensor:
    """This process's piece of a tensor that is split as ``x`` is, as that tensor."""
    if not is_sharded(x):
        return piece
    from torch.distributed.tensor import DTensor

    mesh, placements = x.device_mesh, x.placements  # type: ignore[attr-defined]
    return DTensor.from_local(piece, mesh, placements, run_check=False, shape=x.shape, stride=x.stride())


def whole(x: Tensor) -> Tensor:
    """The complete tensor; a collective where ``x`` is sharded."""
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]


def sharding(p: Tensor, row_dim: int) -> Sharding:
    """Read a parameter's placements.

    Sums run over the mesh dimensions that shard, never over replicas.

    Raises:
        ValueError: for a pending (Partial) placement, whose value does not exist yet.
    """
    if not is_sharded(p):
        return WHOLE
    rows: list[Axis] = []
    within: list[Axis] = []
    mesh = p.device_mesh  # type: ignore[attr-defined]
    for mesh_dim, placement in enumerate(p.placements):  # type: ignore[attr-defined]
        if placement.is_partial():
            raise ValueError(
                f"parameter of shape {tuple(p.shape)} has placement {placement}; expected Shard or Replicate"
            )
        dim = getattr(placement, "dim", None)
        if dim is None or mesh.size(mesh_dim) == 1:
            continue
        dim = dim % max(p.ndim, 1)
        # A vector is one row, so splitting it splits the row; its sums are only ever read for the whole tensor.
        (rows if p.ndim < 2 or dim == row_dim else within).append((mesh, mesh_dim))
    return Sharding(tuple(rows), WithinRows(within))


def all_sum(requests: list[Request]) -> list[Tensor]:
    """Add tensors of one type over the processes that hold different elements: one flattened collective for each mesh.

    Where the tensors of a mesh are split along different dimensions of it, the collective runs over all of these
    dimensions, and of processes that hold copies of a tensor the first one adds: so one is enough, and copies get the
    same bits. Sums of rows that are split have collectives of their own, because other processes hold other numbers
    of rows. Meshes are not joined with one another: :class:`mooring.step.processes.Processes` does that.

    Args:
        requests: (tensor, mesh dimensions) pairs; without dimensions the tensor is its own sum. Every process along
            the dimensions must pass the same shapes in the same order, and every process of the mesh too unless the
            dimensions are `WithinRows`.

    Returns:
        The sums, in the order of the requests.
    """
    flats = flatten(requests)
    for flat in flats:
        add_up(flat.values, flat.mesh, flat.dims)
    return unflatten(requests, flats)


@dataclass
class Flat:
    """The sums of one mesh as one vector.

    Attributes:
        mesh: the mesh.
        dims: the dimensions of it over which they are to be added, in order.
        by_rows: whether they are sums of split rows, whose number may differ along the mesh's other dimensions.
        members: which requests are in it.
        values: what this process adds; later the sums.
    """

    mesh: Any
    dims: tuple[int, ...]
    by_rows: bool
    members: list[int]
    values: Tensor


def flatten(requests: list[Request]) -> list[Flat]:
    """The requests that need a collective, by the collective that they need."""
    together: dict[tuple[Any, tuple[Axis, ...] | None], list[int]] = {}
    for i, (_, axes) in enumerate(requests):
        if axes:
            together.setdefault((axes[0][0], axes if isinstance(axes, WithinRows) else None), []).append(i)
    flats = []
    for (mesh, rows), members in together.items():
        split = [{dim for _, dim in requests[i][1]} for i in members]
        dims = tuple(sorted(set().union(*split)))
        here = mesh.get_coordinate()
        adds = [all(here[dim] == 0 for dim in dims if dim not in own) for own in split]
        parts = [requests[i][0].reshape(-1) for i in members]
        values = torch.cat([part if add else torch.zeros_like(part) for part, add in zip(parts, adds)])
        flats.append(Flat(mesh, dims, rows is not None, members, values))
    return flats


def unflatten(requests: list[Request], flats: Sequence[Flat]) -> list[Tensor]:
    """The sums, in the order of the requests."""
    results: list[Tensor] = [tensor for tensor, _ in requests]
    for flat in flats:
        pieces = torch.split(flat.values, [requests[i][0].numel() for i in flat.members])
        for i, piece in zip(flat.members, pieces):
            results[i] = piece.view(requests[i][0].shape)
    return results


def add_up(values: Tensor, mesh: Any, dims: tuple[int, ...], op: Any = None) -> None:
    """One collective along some dimensions of a mesh together, in place."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM if op is None else op, group=_group(mesh, dims))


def plane(mesh: Any, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks of this process's plane along some dimensions of a mesh, in order."""
    here = mesh.get_coordinate()
    at = tuple(slice(None) if dim in dims else here[dim] for dim in range(mesh.ndim))
    return tuple(sorted(mesh.mesh[at].flatten().tolist()))


_GROUPS: dict[tuple[Any, tuple[int, ...]], Any] = {}


def _group(mesh: Any, dims: tuple[int, ...]) -> Any:
    """The process group of this process along some dimensions of a mesh together; made once, by its members alone."""
    if len(dims) == 1:
        return mesh.get_group(dims[0])
    ranks = plane(mesh, dims)
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    key = (dist.group.WORLD, ranks)
    if key not in _GROUPS:
        _GROUPS[key] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _GROUPS[key]


def ordered_sum(parts: Sequence[Tensor], positions: Sequence[Sequence[int]]) -> Tensor:
    """Add quantities per tensor over the model, in the order of the parameters.

    The way tensors were batched does not change a bit of the sum.

    Args:
        parts: float64 vectors, one per batch.
        positions: where each tensor of each batch stands among all parameters.

    Returns:
        A 0-dim float64 tensor on the first part's device.
    """
    device = parts[0].device
    order = [i for batch in positions for i in batch]
    joined = parts[0] if len(parts) == 1 else torch.cat([part.to(device, non_blocking=True) for part in parts])
    if order != sorted(order):
        place = sorted(range(len(order)), key=order.__getitem__)
        joined = joined[on_device(place, device, torch.int64)]
    return row_sums(joined.unsqueeze(0))[0]


@dataclass(frozen=True)
class Piece:
    """A rectangle of a tensor that lies on one process.

    Attributes:
        whole: the shape of the whole tensor.
        offset: where the rectangle begins, per dimension.
        shape: its own shape.
    """

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def piece(p: Tensor) -> Piece:
    """Which part of a parameter this process holds; all of it where it is not sharded."""
    whole = tuple(p.shape)
    if not is_sharded(p):
        return Piece(whole, (0,) * len(whole), whole)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)  # type: ignore[attr-defined]
    return Piece(whole, tuple(offset), tuple(shape))
