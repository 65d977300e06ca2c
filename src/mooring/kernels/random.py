"""Random numbers that belong to an element of a tensor, whoever holds it.

The number of an element follows from a key and from its place in the whole tensor, and from nothing else: word ``c`` of
a key is a mix of 64 bits of ``(key, c)``, and a word serves two or four neighbouring elements. So a process that holds
a piece of a tensor draws its own elements, every replica and every sharding sees the same numbers, and nothing has to
be stored to draw them again.

The words are those of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, "Fast splittable pseudorandom number generators",
with Stafford's constants "Mix13", as in Vigna's public domain version), and a second word of key is added in the
middle, so that streams whose counters happen to overlap differ all the same.

What is made of the words takes integer operations and additions, multiplications, divisions and square roots of
float32, each rounded as IEEE 754 says, and no function of a mathematical library. So numbers are the same to the bit
whatever the processor, on any device whose operations are those of IEEE 754, and in the compiled kernels of
``kernels/cpu/noise.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from mooring.kernels import choice

_MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB

# The longest vector that is worked on. An accelerator draws a large block as fast as a small one; on a CPU it should
# stay in the cache, and be long enough for the work to outweigh some seventy calls.
_BLOCK = {"cpu": 3 << 14}
_BLOCK_ELSEWHERE = 1 << 22

# -2 ln(u): u = m 2^e with m in [sqrt(1/2), sqrt(2)), and -2 ln(1 + f) = f * polynomial(f), to 1.1e-6 of itself.
UPPER_HALF = 0x4EB504F3  # the bits of sqrt(1/2), with the exponent of 2^31 added
ROOT_HALF = 0x3F3504F3
MINUS_TWO_LN2 = -1.3862943649291992
LOG = (
    -2.000001907348633, 1.000022292137146, -0.6662901639938354, 0.4981948733329773, -0.4099266231060028,
    0.37335720658302307, -0.23792213201522827,
)  # fmt: skip
# cos(x) and sin(x) / x over sqrt(2), in x^2 and for |x| <= pi / 4, to 3.3e-8.
TURN = 3.65729529994141e-10  # pi / 4 / 2^31
COS = (0.7071067690849304, -0.35355228185653687, 0.029454123228788376, -0.0009602088248357177)
SIN = (0.7071067690849304, -0.11785101145505905, 0.005891625303775072, -0.00013789869262836874)
LAPLACE = 0.3535533845424652  # of -2 ln(u): variance one
UNIFORM = 8.065489942588044e-10  # sqrt(3) / 2^31
_SIGN, _REST = -(1 << 31), (1 << 31) - 1


def key(*parts: int | str, after: int = 0) -> int:
    """Mix integers and strings into 64 bits (splitmix64 over the parts; strings as FNV-1a).

    The same on every machine and in every process, unlike ``hash``. ``after`` is a key whose parts come before these.
    """
    state = after
    for part in parts:
        state = _mix(state ^ (_fnv(part) if isinstance(part, str) else part & _MASK))
    return state


def stream(seed: int) -> tuple[int, int]:
    """The two words of key, 64 bits each, that :func:`key`'s number stands for."""
    return _mix(seed), _mix(seed ^ MIX2)


def fill(
    out: Tensor,
    seed: int,
    law: str,
    whole: tuple[int, ...] | None = None,
    offset: tuple[int, ...] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Fill a piece of a tensor with the numbers that belong to its elements.

    Args:
        out: the piece, contiguous, shape = the rectangle this process holds; float32 or float64, int32 for bits.
        seed: 64 bits from :func:`key`, one per tensor and draw.
        law: a key of :data:`LAWS`.
        whole: shape of the whole tensor; None where ``out`` is all of it.
        offset: where the piece begins in it, per dimension.
        backend: ``"eager"`` leaves compiled kernels alone; None takes what serves. The numbers are the same.

    Returns:
        ``out``. Real numbers are drawn in float32, and widened for float64.

    Raises:
        ValueError: for memory with gaps.
    """
    if out.numel() == 0:
        return out
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()} for shape {tuple(out.shape)}")
    if out.device.type == "meta":
        return out
    if out.dtype == torch.float64:
        return out.copy_(fill(torch.empty_like(out, dtype=torch.float32), seed, law, whole, offset, backend))
    starts, run = runs(tuple(out.shape), whole, offset)
    if choice.serves(out.device, "jobs", backend):
        from mooring.kernels.cpu import many

        many.draw([out], [seed], law, [(starts, run)])
        return out
    flat, block = out.view(-1), _BLOCK.get(out.device.type, _BLOCK_ELSEWHERE)
    if run > SMALL or len(starts) == 1:
        for i, first in enumerate(starts.tolist()):
            _run(flat[i * run : (i + 1) * run], seed, law, first, block)
    else:
        _short_runs(flat.view(-1, run), seed, law, starts, block)
    return out


SMALL = 1 << 12  # tensors of at most so many elements are drawn together; longer runs one by one


def fill_all(
    outs: Sequence[Tensor],
    seeds: Sequence[int],
    law: str,
    places: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    backend: str | None = None,
) -> None:
    """The same as :func:`fill` for many tensors; small ones on one device are drawn together.

    Args:
        outs: the pieces.
        seeds: one for each.
        law: a key of :data:`LAWS`.
        places: the shape of the whole tensor and where the piece begins in it, for each.
        backend: as in :func:`fill`.
    """
    fits = [out.dtype in (torch.float32, torch.int32) and out.is_contiguous() and out.numel() > 0 for out in outs]
    if all(fits) and all(choice.serves(device, "jobs", backend) for device in {out.device for out in outs}):
        from mooring.kernels.cpu import many

        many.draw(outs, seeds, law, [runs(tuple(out.shape), *place) for out, place in zip(outs, places)])
        return
    small: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, int]]] = {}
    for out, seed, (whole, offset) in zip(outs, seeds, places):
        if 0 < out.numel() <= SMALL and whole == tuple(out.shape) and out.is_contiguous():
            small.setdefault((out.device, out.dtype), []).append((out, seed))
        else:
            fill(out, seed, law, whole, offset, backend)
    for (device, _), pairs in small.items():
        if device.type == "meta":
            continue
        block, filled = _BLOCK.get(device.type, _BLOCK_ELSEWHERE), 0
        chunk: list[tuple[Tensor, int]] = []
        for pair in pairs:
            if chunk and filled + pair[0].numel() > block:
                _together(chunk, law)
                chunk, filled = [], 0
            chunk.append(pair)
            filled += pair[0].numel()
        _together(chunk, law)


def _together(pairs: list[tuple[Tensor, int]], law: str) -> None:
    make, per, _ = LAWS[law]
    device = pairs[0][0].device
    lengths = [-(-out.numel() // per) for out, _ in pairs]
    total = sum(lengths)
    starts = [0, *accumulate(lengths)][:-1]
    # What is added to a word's number times GAMMA: that of the first word of its tensor is 0.
    keys = [stream(seed) for _, seed in pairs]
    numbers = [_signed(one - start * GAMMA) for (one, _), start in zip(keys, starts)]
    table = torch.tensor([numbers, [_signed(two) for _, two in keys], lengths], device=device)
    one, two = table[:2].repeat_interleave(table[2], dim=1, output_size=total)
    values = torch.split(make(_mixed(one.add_(_counters(total, device)), two)), [n * per for n in lengths])
    torch._foreach_copy_([out.view(-1) for out, _ in pairs], [v[: out.numel()] for v, (out, _) in zip(values, pairs)])


def runs(shape: tuple[int, ...], whole: tuple[int, ...] | None, offset: tuple[int, ...] | None) -> tuple[Tensor, int]:
    """The places in the whole tensor where a rectangle's runs of neighbours begin, int64, and how long each run is."""
    starts = torch.zeros(1, dtype=torch.int64)
    if whole is None or offset is None or whole == shape:
        return starts, prod(shape)
    strides = [prod(whole[i + 1 :]) for i in range(len(whole))]
    cut = len(shape)  # the first dimension of a run: all behind it are held as a whole
    while cut > 0 and (cut == len(shape) or shape[cut] == whole[cut]):
        cut -= 1
    starts += sum(o * s for o, s in zip(offset, strides))
    for n, stride in zip(shape[:cut], strides):
        starts = (starts.unsqueeze(1) + torch.arange(n) * stride).flatten()
    return starts, prod(shape[cut:])


def _run(out: Tensor, seed: int, law: str, first: int, block: int) -> None:
    make, per, folds = LAWS[law]
    block = block * folds // per * per
    begin, end = first - first % per, first + out.numel()
    counters = _counters(min(block, end - begin + per) // per + 1, out.device)
    for at in range(begin, end, block):
        stop = min(at + block, end)
        values = make(words(counters[: -(-(stop - at) // per)], seed, at // per))
        a = max(at, first)
        out[a - first : stop - first].copy_(values[a - at : stop - at])


def _short_runs(out: Tensor, seed: int, law: str, starts: Tensor, block: int) -> None:
    """Many runs at a time: each element's word is drawn for it alone, and the element's number taken."""
    make, per, _ = LAWS[law]
    count = max(1, block // (out.shape[1] * per))
    along = torch.arange(out.shape[1], device=out.device)
    for i in range(0, len(starts), count):
        places = starts[i : i + count].to(out.device).unsqueeze(1) + along
        values = make(words(places.flatten().div(per, rounding_mode="floor").mul_(_signed(GAMMA)), seed, 0))
        picked = values.view(-1, per).gather(1, (places % per).view(-1, 1))
        out[i : i + count].copy_(picked.view(-1, out.shape[1]))


def words(multiples: Tensor, seed: int, first: int) -> Tensor:
    """Words ``first``, ``first + 1``, ... of a key, int64.

    Args:
        multiples: 0, GAMMA, 2 GAMMA, ... as int64 that wraps around.
        seed: 64 bits.
        first: the number of the first word.
    """
    one, two = stream(seed)
    return _mixed(multiples + _signed(one + first * GAMMA), _signed(two))


def _mixed(x: Tensor, two: Tensor | int) -> Tensor:
    """SplitMix64's function of ``x``, with a word of key added in the middle; in place."""
    scratch = torch.empty_like(x)

    def shifted(by: int) -> Tensor:  # without the copies of the sign
        torch.bitwise_right_shift(x, by, out=scratch)
        return scratch.bitwise_and_((1 << (64 - by)) - 1)

    x.bitwise_xor_(shifted(30)).mul_(_signed(MIX1)).add_(two)
    x.bitwise_xor_(shifted(27)).mul_(_signed(MIX2))
    return x.bitwise_xor_(shifted(31))


def _counters(n: int, device: torch.device) -> Tensor:
    size = 1 << max(n - 1, 255).bit_length()  # few sizes, so that few are kept
    return _multiples(size, device)[:n]


@lru_cache(maxsize=16)
def _multiples(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device).mul_(_signed(GAMMA))


# From words to numbers. Every operation is one rounding, in the order in which kernels/cpu/noise.py has it.


def _normal(x: Tensor) -> Tensor:
    """Two normal numbers per word (Box and Muller 1958): radius from the lower half, direction from the upper.

    Signs are the first bit of the lower half and the last of the upper one.
    """
    lower = x.to(torch.int32)  # cut off
    upper = (x >> 32).to(torch.int32)
    # torch's own square root on a CPU is not the nearest number; what it divides one by here is.
    squares = _minus_two_log(lower)
    inverse = squares.rsqrt_() if squares.device.type == "cpu" else squares.sqrt_().reciprocal_()
    angle = upper.float().mul_(TURN)
    square = angle * angle
    even, odd = _polynomial(square, COS), _polynomial(square, SIN).mul_(angle)
    first = (even - odd).div_(inverse)
    second = even.add_(odd).div_(inverse)
    first.view(torch.int32).bitwise_xor_(lower.bitwise_and_(_SIGN))
    second.view(torch.int32).bitwise_xor_(upper.bitwise_left_shift_(31))
    return torch.view_as_real(torch.complex(first, second)).view(-1)


def _laplace(x: Tensor) -> Tensor:
    """Two numbers per word: a logarithm and a sign of each half."""
    half = x.view(torch.int32)
    out = _minus_two_log(half).mul_(LAPLACE)
    out.view(torch.int32).bitwise_xor_(half & _SIGN)
    return out


def _uniform(x: Tensor) -> Tensor:
    """Two numbers per word, in [-sqrt(3), sqrt(3)]."""
    return x.view(torch.int32).float().mul_(UNIFORM)


def _sixteen_bits(x: Tensor) -> Tensor:
    """Four times sixteen bits per word, as int32."""
    return x.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)


def _minus_two_log(bits: Tensor) -> Tensor:
    """``-2 ln(u)``, u the odd number in the lower 31 bits over 2^31: at most 43, and 0 where it rounds to one."""
    t = (bits & _REST).bitwise_or_(1).float().view(torch.int32) - UPPER_HALF
    exponent = (t >> 23).float().mul_(MINUS_TWO_LN2)
    f = t.bitwise_and_(0x7FFFFF).add_(ROOT_HALF).view(torch.float32).sub_(1)
    return _polynomial(f, LOG).mul_(f).add_(exponent)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    last, *rest = reversed(coefficients)
    y = x * last
    for c in rest[:-1]:
        y.add_(c).mul_(x)
    return y.add_(rest[-1])


class Law(NamedTuple):
    """What is made of words.

    Attributes:
        make: words to numbers.
        per: how many numbers of each word.
        folds: numbers per element of the vectors worked on.
    """

    make: Callable[[Tensor], Tensor]
    per: int
    folds: int = 1


LAWS = {
    "normal": Law(_normal, 2, 2),
    "laplace": Law(_laplace, 2),
    "uniform": Law(_uniform, 2),
    "bits": Law(_sixteen_bits, 4),
}
"""The first three have mean 0 and variance 1; ``"bits"`` are integers in [0, 2^16)."""


def _signed(x: int) -> int:
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


def _mix(x: int) -> int:
    x = (x + GAMMA) & _MASK
    x = ((x ^ (x >> 30)) * MIX1) & _MASK
    x = ((x ^ (x >> 27)) * MIX2) & _MASK
    return x ^ (x >> 31)


@lru_cache(maxsize=1 << 16)  # names of parameters come back at every step
def _fnv(text: str) -> int:
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & _MASK
    return state
