"""Rounding to bfloat16 and float16, against the set of their numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mooring.kernels import rounding

TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def every_number(dtype: torch.dtype) -> Tensor:
    """All 65536 of them, without NaN, in order."""
    found = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    return torch.unique(found[~found.isnan()].float())


def wide(dtype: torch.dtype, n: int = 200_000) -> Tensor:
    """float32 numbers of all sizes that the type has, and of neighbouring ones."""
    generator = torch.Generator().manual_seed(3)
    largest = 4.0 if dtype == torch.float16 else 37.0
    exponent = torch.rand(n, generator=generator) * (largest + 7) - 7
    return torch.randn(n, generator=generator) * 10 ** exponent.clamp(max=largest - 0.5)


@TYPES
def test_stochastic_rounding_picks_a_neighbour_with_the_right_chance(dtype: torch.dtype) -> None:
    """For every x exactly: it goes up for as many of the 2^16 bit patterns as its place between the neighbours says."""
    numbers = every_number(dtype).double()
    numbers = numbers[numbers.isfinite()]
    bits = torch.arange(65536, dtype=torch.int32)
    for x in wide(dtype, 60).tolist():
        rounded = rounding.stochastic(torch.full((65536,), x), dtype, bits).double()
        exact = float(torch.tensor(x))
        above = int(torch.searchsorted(numbers, torch.tensor(exact, dtype=torch.float64)))
        low, high = float(numbers[above - 1]), float(numbers[above])
        assert set(rounded.tolist()) <= {low, high}
        share = float((rounded == high).double().mean())
        assert abs(share - (exact - low) / (high - low)) <= 2.0**-15, x


@TYPES
def test_what_the_type_holds_is_kept(dtype: torch.dtype) -> None:
    numbers = torch.cat([every_number(dtype), torch.tensor([float("nan")])])
    for bits in (0, 1, 65535):
        rounded = rounding.stochastic(numbers, dtype, torch.full(numbers.shape, bits, dtype=torch.int32)).float()
        assert torch.equal(rounded.nan_to_num(7), numbers.nan_to_num(7))
    rounded, rest = rounding.split(numbers, dtype)
    assert torch.equal(rounded.float().nan_to_num(7), numbers.nan_to_num(7))
    assert not rest.any()
    assert torch.equal(rounding.join(rounded, rest).nan_to_num(7), numbers.nan_to_num(7))


@TYPES
def test_a_number_and_its_compensation_are_the_float32_number(dtype: torch.dtype) -> None:
    x = wide(dtype)
    rounded, rest = rounding.split(x, dtype)
    assert rest.dtype == torch.int16
    nearest = x.to(dtype)
    assert (rounded == nearest).float().mean() > 0.9999  # ties go the other way
    half = (nearest.float().double() - x.double()).abs()
    assert bool(((rounded.float().double() - x.double()).abs() <= half).all())
    joined = rounding.join(rounded, rest)
    if dtype == torch.bfloat16:
        assert torch.equal(joined, x)
    else:
        normal = x.abs() >= 2.0**-14
        assert torch.equal(joined[normal], x[normal])
        assert float((joined - x).abs().max()) <= 2.0**-41  # below it, to 2^-16 of float16's unit 2^-24


def test_bfloat16_halfway_cases_survive() -> None:
    """A tie must leave a compensation that fits into 16 bits, on both sides of zero."""
    x = torch.tensor([1 + 2.0**-8, -1 - 2.0**-8, 1 + 3 * 2.0**-8, 3.0e-39, -3.0e-39])
    assert torch.equal(rounding.join(*rounding.split(x, torch.bfloat16)), x)
