"""How a list of tensors is laid out as matrices of slices, so that a few launches serve thousands of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mooring.kernels.eager import segment_sums

# A tensor of at least this many elements is a block of its own: it is viewed, not copied.
_ALONE = 1 << 16
# Smaller tensors with rows of equal length share a block of at most this many elements.
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Block:
    """Consecutive tensors whose slices have one length.

    Attributes:
        tensors: which tensors of the list.
        slices: which slices, counted over the whole list.
        rows: slices per tensor of this block.
        length: elements per slice.
    """

    tensors: slice
    slices: slice
    rows: list[int]
    length: int


class Layout:
    """Slices of a list of local tensors.

    Args:
        shapes: local shapes.
        row_dims: the dimension along which each tensor's rows are stacked, or None where the tensor is one slice.
        device: where per-slice quantities live.
    """

    def __init__(self, shapes: Sequence[torch.Size], row_dims: Sequence[int | None], device: torch.device) -> None:
        self.row_dims = tuple(row_dims)
        counts, lengths = [], []
        for shape, dim in zip(shapes, row_dims):
            counts.append(1 if dim is None else shape[dim])
            lengths.append(prod(shape) if dim is None else prod(n for i, n in enumerate(shape) if i != dim))
        self.blocks = _runs(counts, lengths)
        self.slices = sum(counts)
        self.one_each = all(n == 1 for n in counts)
        self.counts_and_lengths = counts, lengths
        self.along_other_dims = any(dim not in (None, 0) for dim in row_dims)
        on_host = torch.tensor(counts, dtype=torch.int64)
        self._counts = on_host.to(device)
        self._owner = None if self.one_each else torch.repeat_interleave(on_host).to(device)

    def per_slice(self, x: Tensor) -> Tensor:
        """(T,) -> (S,): each slice gets its tensor's value."""
        return x if self._owner is None or x.ndim == 0 else x[self._owner]

    def per_tensor(self, parts: Sequence[Tensor]) -> Tensor:
        """Add quantities of shape (S,) over each tensor's slices: shape (k, T)."""
        if self.one_each and len(parts) == 1:
            return parts[0].expand(self.slices).unsqueeze(0)
        stacked = torch.stack([p.expand(self.slices) for p in parts])
        return stacked if self.one_each else segment_sums(stacked.T.contiguous(), self._counts).T

    def matrix(self, block: Block, tensors: Sequence[Tensor]) -> Tensor:
        """The block's tensors as one contiguous matrix (rows, length), in logical element order."""
        pieces = [
            _rows_of(t, dim).reshape(n, block.length)
            for t, dim, n in zip(tensors[block.tensors], self.row_dims[block.tensors], block.rows)
        ]
        return pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)

    def split(self, block: Block, matrix: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Undo :meth:`matrix`: views of ``matrix`` with the shapes of the block's tensors."""
        out = []
        for piece, t, dim in zip(torch.split(matrix, block.rows), like[block.tensors], self.row_dims[block.tensors]):
            moved = piece.view(_rows_of(t, dim).shape)
            out.append(moved if dim is None else moved.movedim(0, dim))
        return out


def _rows_of(t: Tensor, dim: int | None) -> Tensor:
    return t if dim in (None, 0) else t.movedim(dim, 0)


def _runs(counts: Sequence[int], lengths: Sequence[int]) -> list[Block]:
    blocks: list[Block] = []
    first, begin = 0, 0
    for i in range(len(counts)):
        size = counts[i] * lengths[i]
        so_far = sum(counts[first : i + 1]) * lengths[first]
        last = i + 1 == len(counts)
        joins = (
            not last
            and lengths[i + 1] == lengths[first]
            and max(size, counts[i + 1] * lengths[i + 1]) < _ALONE
            and so_far + counts[i + 1] * lengths[i + 1] <= _BLOCK_ELEMENTS
        )
        if not joins:
            rows = list(counts[first : i + 1])
            blocks.append(Block(slice(first, i + 1), slice(begin, begin + sum(rows)), rows, lengths[first]))
            first, begin = i + 1, begin + sum(rows)
    return blocks
