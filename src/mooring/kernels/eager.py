"""The eager backend: inner products and the affine move in plain torch, on any device.

Two promises that every other backend has to keep as well:

- **Sums run over a fixed tree.** Products are added in blocks of at most 4096 elements in the compute type, and the
  blocks in float64. Neither the number of threads nor the way tensors are batched changes a bit, so a gate cannot flip
  between two runs of the same program.
- **One rounding at the end.** The displacement ``s = tau*p + beta*u + kappa*d`` is formed in the compute type and
  subtracted from the weight once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TensorList = list[Tensor] | tuple[Tensor, ...]
BLOCK = 4096
# Below this length torch's own summation order depends on how many rows are summed at once, so short rows are summed
# in float64, where that order cannot reach the float32 coefficients.
_SHORT = 64


def row_sums(x: Tensor) -> Tensor:
    """Sum each row of a matrix over the fixed tree.

    Args:
        x: shape (rows, length), float32 or float64, contiguous.

    Returns:
        float64 tensor of shape (rows,).
    """
    rows, length = x.shape
    if rows == 0 or length == 0:
        return torch.zeros(rows, dtype=torch.float64, device=x.device)
    if length < _SHORT:
        return x.sum(1, dtype=torch.float64)
    if length <= BLOCK:
        return x.sum(1).double()
    blocks = length // BLOCK
    whole = blocks * BLOCK
    total = row_sums(torch.unflatten(x[:, :whole], 1, (blocks, BLOCK)).sum(2).double())
    return total if whole == length else total + x[:, whole:].sum(1).double()


def inner_products(matrices: dict[str, Tensor], pairs: Sequence[str]) -> list[Tensor]:
    """Inner products of rows: for each pair of letters, ``sum_j a[i, j] * b[i, j]``.

    Args:
        matrices: letter -> contiguous matrix of shape (rows, length); all of one shape and dtype.
        pairs: two-letter names, for example ``"gp"``.

    Returns:
        One float64 tensor of shape (rows,) per pair. Costs one product buffer and one pass over two operands per pair.
    """
    if not pairs:
        return []
    scratch = torch.empty_like(next(iter(matrices.values())))
    return [row_sums(torch.mul(matrices[name[0]], matrices[name[1]], out=scratch)) for name in pairs]


def segment_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """Add consecutive rows of a float64 matrix: ``out[t] = sum of the next lengths[t] rows``.

    Args:
        values: shape (sum of lengths, k).
        lengths: int64, shape (segments,), on the same device; zeros allowed.
    """
    if values.shape[0] == 0:
        return values.new_zeros(lengths.shape[0], values.shape[1])
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)


def displacement(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``sum_i c_i * x_i`` with a coefficient per row, in the matrices' own type.

    Products and sums are separate operations, so no fused multiply-add can make one path differ from another.
    """
    (c, x), *rest = terms
    s = x * c.to(x.dtype).unsqueeze(1)
    for c, x in rest:
        s += x * c.to(x.dtype).unsqueeze(1)
    return s


def displacement_lists(terms: Sequence[tuple[list[float], TensorList]]) -> TensorList:
    """The same as :func:`displacement` where every tensor has one coefficient and the host knows it."""
    (c, x), *rest = terms
    s: TensorList = torch._foreach_mul(x, c)
    for c, x in rest:
        torch._foreach_add_(s, torch._foreach_mul(x, c))
    return s
