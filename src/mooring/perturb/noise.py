"""Noise on weights: three laws, each of variance ``scale ** 2``, regenerated wherever it is needed and never stored."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mooring.kernels import random
from mooring.kernels.eager import row_sums
from mooring.perturb import compiled
from mooring.perturb.weights import Member, Pair
from mooring.step.batch import compute_dtype
from mooring.step.shards import all_sum, sharding

LAWS = ("normal", "laplace", "uniform")
"""Laplace has heavier tails; the uniform law lies on [-sqrt(3), sqrt(3)] times the scale."""


def draw(member: Member, law: str, seed: int, scale: float = 1.0) -> Tensor:
    """The noise that belongs to this process's part of a parameter, in the compute type.

    Args:
        member: the parameter.
        law: one of ``LAWS``.
        seed: 64 bits from :func:`mooring.kernels.random.key`; equal seeds give equal noise, whatever the sharding.
        scale: the standard deviation; where it is negative, the mirror image to the bit.
    """
    part, where = member.local(), member.where
    out = torch.empty(part.shape, dtype=compute_dtype(part.dtype), device=part.device)
    random.fill(out, seed, law, where.whole, where.offset, member.group.get("backend"))
    return out if scale == 1 else out.mul_(scale)


def shake(pairs: list[Pair], law: str, noise: Callable[[Member], tuple[int, float]]) -> list[Pair]:
    """Place parameters at their saved values plus noise: in kernels, or small ones drawn together.

    Args:
        pairs: parameters and saved values.
        law: one of ``LAWS``.
        noise: the seed and the standard deviation for a parameter; it stays where that is 0.

    Returns:
        The others.
    """
    pairs = compiled.shake(pairs, law, noise)
    small = [(m, saved, *noise(m)) for m, saved in pairs if saved.numel() <= random.SMALL]
    small = [entry for entry in small if entry[3] != 0]
    if small:
        members, saved, seeds, scales = zip(*small)
        out = [torch.empty(x.shape, dtype=compute_dtype(x.dtype), device=x.device) for x in saved]
        places = [(where.whole, where.offset) for where in (m.where for m in members)]
        random.fill_all(out, seeds, law, places, members[0].group.get("backend"))
        for member, x, u, scale in zip(members, saved, out, scales):
            member.local().copy_(u.mul_(scale).add_(x) if not x.is_complex() else x + u.mul_(scale))
    return [pair for pair in pairs if pair[1].numel() > random.SMALL]


def row_sizes(member: Member, wide: Tensor) -> Tensor:
    """The root mean square of each row, of the whole tensor where it has no rows; shaped to multiply ``wide``."""
    return _norms(member, wide, _rows(member)) / math.sqrt(_length(member, _rows(member)))


def filter_norms(member: Member, wide: Tensor) -> Tensor | None:
    """The norm of each kernel of a tensor of four dimensions, of each row of a matrix; None for others."""
    if member.p.ndim == 4:
        kernels: Tensor = torch.linalg.vector_norm(wide.double(), dim=(2, 3), keepdim=True)
        return kernels.to(wide.dtype)
    return _norms(member, wide, 0) if member.p.ndim == 2 else None


def _rows(member: Member) -> int | None:
    return int(member.group.get("row_dim", 0)) if member.p.ndim >= 2 else None


def _length(member: Member, dim: int | None) -> float:
    n = member.p.numel()
    return float(n if dim is None else n // max(member.p.shape[dim], 1))


def _norms(member: Member, wide: Tensor, dim: int | None) -> Tensor:
    split = sharding(member.p, 0 if dim is None else dim)
    by_row = wide.reshape(1, -1) if dim is None else wide.movedim(dim, 0).flatten(1)
    axes = split.axes if dim is None else split.within
    [squares] = all_sum([(row_sums((by_row * by_row).contiguous()), axes)])
    norms = squares.sqrt().to(wide.dtype)
    if dim is None:
        return norms.reshape(())
    return norms.reshape([-1 if i == dim else 1 for i in range(wide.ndim)])
