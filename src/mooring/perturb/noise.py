"""Noise on weights: three laws, each of variance ``scale ** 2``, regenerated wherever it is needed and never stored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mooring.kernels import random
from mooring.kernels.eager import row_sums
from mooring.perturb.weights import Member
from mooring.step.batch import compute_dtype
from mooring.step.shards import all_sum, sharding


def normal(out: Tensor, generator: torch.Generator, scale: float) -> None:
    """The normal law."""
    out.normal_(0.0, abs(scale), generator=generator)
    if scale < 0:
        out.neg_()  # so that plus and minus are mirror images to the bit


def laplace(out: Tensor, generator: torch.Generator, scale: float) -> None:
    """Laplace with variance ``scale ** 2``."""
    u = out.uniform_(-1.0, 1.0, generator=generator)
    # |u| < 1 except for the lower end itself, where the logarithm would be infinite.
    size = torch.log1p(-u.abs().clamp_(max=1 - torch.finfo(out.dtype).eps)).mul_(-scale / math.sqrt(2))
    out.copy_(torch.sign(u).mul_(size))


def uniform(out: Tensor, generator: torch.Generator, scale: float) -> None:
    """Uniform on [-sqrt(3), sqrt(3)) times the scale."""
    out.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator).mul_(scale)


LAWS = {"normal": normal, "laplace": laplace, "uniform": uniform}


def draw(member: Member, law: str, seed: int, scale: float = 1.0) -> Tensor:
    """The noise that belongs to this process's part of a parameter, in the compute type.

    Args:
        member: the parameter.
        law: a key of ``LAWS``.
        seed: 64 bits from :func:`mooring.kernels.random.key`; equal seeds give equal noise, whatever the sharding.
        scale: the standard deviation; where it is negative, the mirror image.
    """
    part, where = member.local(), member.where
    out = torch.empty(part.shape, dtype=compute_dtype(part.dtype), device=part.device)
    make = LAWS[law]
    return random.fill(out, seed, lambda block, generator: make(block, generator, scale), where.whole, where.offset)


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
