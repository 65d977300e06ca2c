"""Where a parameter is split: local tensors, global shapes, and the process groups that hold the other pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mooring.kernels.eager import row_sums
from mooring.step.scalars import on_device


@dataclass(frozen=True)
class Sharding:
    """How one parameter is split.

    Attributes:
        rows: process groups over which whole rows are distributed.
        within: process groups over which a row itself is split.
    """

    rows: tuple[Any, ...] = ()
    within: tuple[Any, ...] = ()

    @property
    def groups(self) -> tuple[Any, ...]:
        """All process groups that hold different elements of the parameter."""
        return self.rows + self.within


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
    rows: list[Any] = []
    within: list[Any] = []
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
        (rows if p.ndim < 2 or dim == row_dim else within).append(mesh.get_group(mesh_dim))
    return Sharding(tuple(rows), tuple(within))


def all_sum(requests: list[tuple[Tensor, tuple[Any, ...]]]) -> list[Tensor]:
    """Add float64 tensors over process groups, one flattened collective for each distinct set of groups.

    Args:
        requests: (tensor, groups) pairs. Every process of the groups must pass the same shapes in the same order.

    Returns:
        The sums, in the order of the requests.
    """
    results: list[Tensor] = [tensor for tensor, _ in requests]
    by_groups: dict[tuple[Any, ...], list[int]] = {}
    for i, (_, groups) in enumerate(requests):
        if groups:
            by_groups.setdefault(groups, []).append(i)
    for groups, members in by_groups.items():
        flat = torch.cat([requests[i][0].reshape(-1) for i in members])
        for group in groups:
            dist.all_reduce(flat, group=group)
        pieces = torch.split(flat, [requests[i][0].numel() for i in members])
        for i, piece in zip(members, pieces):
            results[i] = piece.view(requests[i][0].shape)
    return results


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
    place = sorted(range(len(order)), key=lambda i: order[i])
    joined = torch.cat([part.to(device, non_blocking=True) for part in parts])
    return row_sums(joined[on_device(place, device, torch.int64)].unsqueeze(0))[0]


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
