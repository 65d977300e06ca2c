"""Random numbers that belong to an element of a tensor, whoever holds it.

The flat elements of a whole tensor are cut into blocks, each drawn by torch's own generator from a seed of its own.
So a process that holds a piece of the tensor draws the blocks that it touches and nothing else, every replica and
every sharding sees the same numbers on the same kind of device, and nothing has to be stored to draw them again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

# Elements per block. An accelerator draws a large block as fast as a small one. On a CPU a block stays in the cache,
# and is the longest that torch works on with one thread: waiting for others at every block costs more than they bring.
_BLOCK = {"cpu": 1 << 15}
_BLOCK_ELSEWHERE = 1 << 22
_MASK = (1 << 64) - 1

Draw = Callable[[Tensor, torch.Generator], object]
"""Fills a vector with a generator, in place; what it draws may depend on the length, but not on where it lies."""


def key(*parts: int | str) -> int:
    """Mix integers and strings into 64 bits (splitmix64 over the parts; strings as FNV-1a).

    The same on every machine and in every process, unlike ``hash``.
    """
    state = 0
    for part in parts:
        state = _mix(state ^ (_fnv(part) if isinstance(part, str) else part & _MASK))
    return state


def fill(
    out: Tensor, seed: int, draw: Draw, whole: tuple[int, ...] | None = None, offset: tuple[int, ...] | None = None
) -> Tensor:
    """Fill a piece of a tensor with the numbers that belong to its elements.

    Args:
        out: the piece, contiguous, shape = the rectangle this process holds.
        seed: 64 bits from :func:`key`, one per tensor and draw.
        draw: fills one block; it must depend on nothing but its arguments.
        whole: shape of the whole tensor; None where ``out`` is all of it.
        offset: where the piece begins in it, per dimension.

    Returns:
        ``out``. Blocks that lie in it are drawn in place; one that lies in part elsewhere costs a block of scratch.
    """
    if out.numel() == 0:
        return out
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()} for shape {tuple(out.shape)}")
    shape = tuple(out.shape)
    whole = shape if whole is None else whole
    offset = (0,) * len(shape) if offset is None else offset
    if out.device.type == "meta":
        return out
    total, flat = prod(whole), out.view(-1)
    size = _BLOCK.get(out.device.type, _BLOCK_ELSEWHERE)
    generator = torch.Generator(device=out.device)
    if total == flat.numel() <= size:  # small and whole, as most tensors are: nothing to cut
        draw(flat, _seeded(generator, seed, 0))
        return out
    strides = [prod(whole[i + 1 :]) for i in range(len(whole))]
    first = sum(o * s for o, s in zip(offset, strides))
    last = sum((o + n - 1) * s for o, n, s in zip(offset, shape, strides))
    contiguous = last - first + 1 == out.numel()
    # Where the piece is no run of the whole, what lies outside goes to a place behind the end: no size is read back.
    scratch = flat if contiguous else flat.new_empty(out.numel() + 1)
    for block in range(first // size, last // size + 1):
        begin, end = block * size, min((block + 1) * size, total)
        _seeded(generator, seed, block)
        if contiguous and first <= begin and end <= last + 1:
            draw(flat[begin - first : end - first], generator)
            continue
        values = flat.new_empty(end - begin)
        draw(values, generator)
        if contiguous:
            a, b = max(begin, first), min(end, last + 1)
            flat[a - first : b - first] = values[a - begin : b - begin]
        else:
            scratch[_places(begin, values, shape, offset, strides)] = values
    if not contiguous:
        flat.copy_(scratch[:-1])
    return out


def _places(begin: int, values: Tensor, shape: tuple[int, ...], offset: tuple[int, ...], strides: list[int]) -> Tensor:
    """Where each value of a block belongs in a rectangle; one past its end for those outside."""
    rest = torch.arange(begin, begin + values.numel(), device=values.device)
    inside = torch.ones_like(rest, dtype=torch.bool)
    place = torch.zeros_like(rest)
    for n, o, stride in zip(shape, offset, strides):
        at = rest.div(stride, rounding_mode="floor") - o
        rest = rest.remainder(stride)
        inside &= (at >= 0) & (at < n)
        place = place * n + at
    return torch.where(inside, place, torch.full_like(place, prod(shape)))


def _seeded(generator: torch.Generator, seed: int, block: int) -> torch.Generator:
    return generator.manual_seed(_mix(seed ^ _mix(block)) & 0x7FFF_FFFF_FFFF_FFFF)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@lru_cache(maxsize=1 << 16)  # names of parameters come back at every step
def _fnv(text: str) -> int:
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & _MASK
    return state
