"""From float32 to bfloat16 and float16 without losing what small updates say."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF_MIN_NORMAL_EXPONENT = -14
_HALF_DIGITS = 10


def stochastic(x: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """Round to a neighbour in ``dtype``, up with the probability that keeps the mean.

    Args:
        x: float32.
        dtype: bfloat16 or float16.
        bits: int32 of the same shape, uniform in [0, 2^16).

    Returns:
        ``x`` rounded. Values that the type holds are kept; NaN and infinity stay what they are. With
        k = 16 random bits the probability is exact to 2^-16.
    """
    if dtype == torch.bfloat16:
        # bfloat16 is the upper half of float32: add random lower bits and cut them off. The sign is kept apart by the
        # format, so this works on magnitudes.
        raised = (x.view(torch.int32) + bits) & -65536
        return torch.where(x.isfinite(), raised.view(torch.float32), x).to(dtype)
    unit = _half_unit(x)
    scaled = x / unit  # a power of two: exact, and so is the fraction
    below = scaled.floor()
    up = bits.float() / 65536 < scaled - below
    return torch.where(x.isfinite(), (below + up) * unit, x).to(dtype)


def split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Write float32 as a narrow number and what it cannot hold.

    Returns:
        (rounded, compensation): ``rounded`` in ``dtype``, to nearest (ties away from zero for bfloat16), and int16, in
        2^-16 of a unit in the last place of ``rounded``.
    """
    if dtype == torch.bfloat16:
        whole = x.view(torch.int32)
        upper = (whole + 32768) & -65536
        upper = torch.where(x.isfinite(), upper, whole)
        rest = torch.where(x.isfinite(), whole - upper, torch.zeros_like(whole))
        return upper.view(torch.float32).to(dtype), rest.to(torch.int16)
    rounded = x.to(dtype)
    wide = rounded.float()
    rest = ((x - wide) / _half_unit(wide) * 65536).round().clamp(-32768, 32767)
    return rounded, rest.nan_to_num(0.0).to(torch.int16)


def join(rounded: Tensor, compensation: Tensor) -> Tensor:
    """The float32 number that :func:`split` was given; exact for bfloat16, and for float16 where that is normal."""
    wide = rounded.float()
    if rounded.dtype == torch.bfloat16:
        joined = (wide.view(torch.int32) + compensation.to(torch.int32)).view(torch.float32)
        return torch.where(wide.isfinite(), joined, wide)
    joined = wide + compensation.float() * (_half_unit(wide) / 65536)
    return torch.where(wide.isfinite(), joined, wide)


def _half_unit(x: Tensor) -> Tensor:
    """The distance of float16's numbers at x, as float32."""
    _, exponent = torch.frexp(x)  # x = m * 2^e with 0.5 <= m < 1
    exponent = torch.where(x == 0, torch.full_like(exponent, _HALF_MIN_NORMAL_EXPONENT), exponent - 1)
    exponent = exponent.clamp(min=_HALF_MIN_NORMAL_EXPONENT) - _HALF_DIGITS
    return torch.ldexp(torch.ones_like(x), exponent)
