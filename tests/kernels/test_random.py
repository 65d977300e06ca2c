"""Numbers that belong to an element: every way of cutting a tensor sees the same ones, and they are what they say."""

from __future__ import annotations

import math
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mooring.kernels import choice, random

N = 1_000_000
MASK = (1 << 64) - 1
every_law = pytest.mark.parametrize("law", random.LAWS)


def fresh(shape: Any, law: str) -> Tensor:
    return torch.empty(shape, dtype=torch.int32 if law == "bits" else torch.float32)


def drawn(shape: Any, law: str, *parts: int | str, backend: str | None = None) -> Tensor:
    return random.fill(fresh(shape, law), random.key(*parts), law, backend=backend)


def word(seed: int, counter: int) -> int:
    """SplitMix64 with a second word of key, written again with Python's integers."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & MASK
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
        return x ^ x >> 31

    one, two = mix(seed), mix(seed ^ 0x94D049BB133111EB)
    x = (one + counter * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9 + two) & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def halves(seed: int, counter: int) -> tuple[int, int]:
    x = word(seed, counter)
    return x & 0xFFFFFFFF, x >> 32


def signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def logarithm(half: int) -> float:
    return -2 * math.log(((half & 0x7FFFFFFF) | 1) / 2**31)


def expected(law: str, seed: int, i: int) -> float:
    """One element's number from the textbook formula in float64."""
    if law == "bits":
        return word(seed, i // 4) >> 16 * (i % 4) & 0xFFFF
    half = halves(seed, i // 2)[i % 2]
    if law == "uniform":
        return math.sqrt(3) * signed(half) / 2**31
    if law == "laplace":
        return math.copysign(logarithm(half) / 2 / math.sqrt(2), signed(half))
    lower, upper = halves(seed, i // 2)
    angle = math.pi / 4 * (1 + signed(upper) / 2**31)
    if i % 2:
        return math.copysign(math.sqrt(logarithm(lower)) * math.sin(angle), -1 if upper & 1 else 1)
    return math.copysign(math.sqrt(logarithm(lower)) * math.cos(angle), signed(lower))


@every_law
def test_numbers_are_those_of_the_formula(law: str) -> None:
    seed, n = random.key("formula"), 3000
    got = random.fill(fresh(n, law), seed, law, backend="eager")
    wanted = torch.tensor([expected(law, seed, i) for i in range(n)], dtype=torch.float64)
    # A few roundings of float32, and 1.1e-6 of the polynomial in a radius of at most 6.6.
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0 if law == "bits" else 4e-6)


@st.composite
def rectangles(draw: Any) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    whole = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=4)))
    cuts = []
    for n in whole:
        begin = draw(st.integers(0, n - 1))
        cuts.append((begin, draw(st.integers(begin + 1, n))))
    return whole, cuts


@every_law
@pytest.mark.parametrize("backend", choice.backends())
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rectangle=rectangles(), seed=st.integers(0, 2**64 - 1), long=st.sampled_from([1, 5, 1 << 12]))
def test_a_piece_holds_the_numbers_of_the_whole(law: str, backend: str, rectangle: Any, seed: int, long: int) -> None:
    whole, cuts = rectangle
    everything = random.fill(fresh(whole, law), seed, law, backend="eager")
    window = tuple(slice(a, b) for a, b in cuts)
    part = fresh([b - a for a, b in cuts], law)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random._BLOCK, "cpu", 37)
        patch.setattr(random, "SMALL", long)
        random.fill(part, seed, law, whole, tuple(a for a, _ in cuts), backend)
    assert torch.equal(part, everything[window])


@every_law
def test_neither_the_block_nor_the_length_of_a_draw_changes_a_number(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    long = drawn(200_001, law, 1, backend="eager")
    assert torch.equal(drawn(777, law, 1, backend="eager"), long[:777])
    monkeypatch.setitem(random._BLOCK, "cpu", 1001)
    assert torch.equal(drawn(200_001, law, 1, backend="eager"), long)
    assert torch.equal(before, torch.get_rng_state()), "the user's generator is not touched"


@every_law
@pytest.mark.parametrize("backend", choice.backends())
def test_tensors_that_are_drawn_together_get_their_own_numbers(
    law: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "SMALL", 200)
    monkeypatch.setitem(random._BLOCK, "cpu", 500)
    shapes = [(3, 5), (), (0, 2), (7,), (200,), (201,), (20, 9), (1000,), *[(2, 3)] * 90]
    outs, seeds = [fresh(shape, law) for shape in shapes], [random.key("many", i) for i in range(len(shapes))]
    places = [(shape, (0,) * len(shape)) for shape in shapes]
    places[3], places[6] = ((9,), (1,)), ((20, 11), (0, 2))  # pieces
    empty = outs.pop(2), seeds.pop(2), places.pop(2)
    random.fill_all(outs, seeds, law, places, backend)
    random.fill_all([empty[0]], [empty[1]], law, [empty[2]], backend)
    for out, seed, (whole, offset) in zip(outs, seeds, places):
        assert torch.equal(out, random.fill(torch.empty_like(out), seed, law, whole, offset, "eager"))


@every_law
def test_compiled_kernels_draw_the_same_bits(law: str) -> None:
    pytest.importorskip("numba")
    for n in (1, 2, 3, 5, 511, 513, 300_001):
        one, two = drawn(n, law, n, backend="eager"), drawn(n, law, n, backend="numba")
        assert torch.equal(one.view(torch.int32), two.view(torch.int32)), n


def test_float64_gets_the_numbers_of_float32() -> None:
    wide = random.fill(torch.empty(1001, dtype=torch.float64), 5, "normal")
    assert torch.equal(wide, random.fill(torch.empty(1001), 5, "normal").double())


def test_the_operations_are_those_of_ieee_754() -> None:
    """What the promise of equal bits rests on: every float32 operation used is rounded to nearest."""
    x = random.fill(torch.empty(N), 3, "uniform")
    y = random.fill(torch.empty(N), 4, "laplace")
    # float64 holds a product and, rounded once more, a quotient and a root of float32 as good as exactly.
    assert torch.equal(x * y, (x.double() * y.double()).float())
    assert torch.equal(x / y, (x.double() / y.double()).float())
    root = y.abs().double().sqrt().float()
    assert torch.equal(y.abs().rsqrt(), (1 / root.double()).float())
    bits = random.fill(torch.empty(N, dtype=torch.int32), 5, "bits") * 65536 + 12345
    assert torch.equal(bits.float(), bits.double().float())


def test_the_ends_of_the_laws_are_finite() -> None:
    """Radius and angle where their bits are all 0 or all 1."""
    ends = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE]
    words = torch.tensor([signed(b) * 2**32 + a for a in ends for b in ends])
    x = random._normal(words)
    assert x.isfinite().all()
    assert 6.55 < float(x.abs().max()) < 6.57, "sqrt(2 * 31 ln 2)"
    assert random._laplace(words).isfinite().all()
    assert 15.1 < float(random._laplace(words).abs().max()) < 15.3, "31 ln 2 / sqrt 2"
    assert float(random._uniform(words).abs().max()) <= math.sqrt(3) * (1 + 2**-23)


def test_keys_differ_and_are_the_same_everywhere() -> None:
    keys = {random.key(a, b, name) for a in range(30) for b in range(30) for name in ("weight", "bias", "x")}
    assert len(keys) == 2700
    assert random.key("rounding", "weight", 3, 5) == 0x32AB59BC08F84A84, "checkpoints resume with the same bits"
    assert all(0 <= k < 2**64 for k in keys)
    assert random.key("weight", 3, after=random.key("rounding")) == random.key("rounding", "weight", 3)


# The laws. Seeds are fixed, so nothing here fails by chance; bounds are five standard errors.


def near(values: Tensor, mean: float, variance: float) -> bool:
    return abs(float(values.double().mean()) - mean) < 5 * math.sqrt(variance / values.numel())


@pytest.mark.parametrize("law", ["normal", "laplace", "uniform"])
def test_moments_to_the_fourth(law: str) -> None:
    x = drawn(N, law, "moments").double()
    moments = {
        "normal": (1, 3, 15, 105),
        "laplace": (1, 6, 90, 2520),
        "uniform": (1, 9 / 5, 27 / 7, 9),
    }[law]  # of order 2, 4, 6, 8
    assert near(x, 0, 1)
    assert near(x**2, 1, moments[1] - 1)
    assert near(x**3, 0, moments[2])
    assert near(x**4, moments[1], moments[3] - moments[1] ** 2)


def distribution(law: str, x: Tensor) -> Tensor:
    if law == "normal":
        return torch.special.ndtr(x)
    if law == "uniform":
        return (x / math.sqrt(3) + 1) / 2
    tail = torch.exp(-x.abs() * math.sqrt(2)) / 2
    return torch.where(x > 0, 1 - tail, tail)


@pytest.mark.parametrize("law", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize("lane", [0, 1])
def test_kolmogorov_and_smirnov_see_the_law(law: str, lane: int) -> None:
    """Each of a word's two numbers alone, and not only mixed."""
    x = drawn(2 * N, law, "ks")[lane::2].double().sort().values
    exact, steps = distribution(law, x), torch.arange(N + 1, dtype=torch.float64) / N
    distance = max(float((exact - steps[:-1]).max()), float((steps[1:] - exact).max()))
    assert distance * math.sqrt(N) < 1.95, "the 0.1 % point of Kolmogorov's distribution"


def test_tails_of_the_normal_reach_beyond_five() -> None:
    n = 1 << 25
    x = drawn(n, "normal", "tails").abs()
    for bound in (3.0, 4.0, 5.0):
        wanted = n * math.erfc(bound / math.sqrt(2))  # 19.2 beyond 5
        assert abs(int((x > bound).sum()) - wanted) < 5 * math.sqrt(wanted)
    assert float(x.max()) > 5


@pytest.mark.parametrize("power", [1, 2])
def test_neighbours_blocks_steps_and_tensors_are_uncorrelated(power: int) -> None:
    x = drawn(N, "normal", "nso", 3, 0, 0, 0, "weight").double() ** power
    x -= x.mean()
    limit = 5 * float(x.square().mean()) * math.sqrt(N)
    for lag in (1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 512, 1 << 15, 65408, 98304):
        assert abs(float(x[:-lag] @ x[lag:])) < limit, lag
    others = [(3, 1, 0, 0, "weight"), (3, 0, 1, 0, "weight"), (3, 0, 0, 1, "weight"), (4, 0, 0, 0, "weight"),
              (3, 0, 0, 0, "bias")]  # fmt: skip
    for parts in others:
        y = drawn(N, "normal", "nso", *parts).double() ** power
        assert abs(float(x @ (y - y.mean()))) < limit, parts


def test_keys_that_differ_in_one_bit_draw_unrelated_numbers() -> None:
    x = torch.stack([random.fill(torch.empty(1 << 14), 1 << bit, "normal") for bit in range(64)]).double()
    correlations = x @ x.T / x.shape[1] - torch.eye(64, dtype=torch.float64)
    # 2016 pairs: the largest of so many lies within 5 standard errors; on the diagonal the variance is 2.
    assert float(correlations.abs().max()) < 5 * math.sqrt(2 / x.shape[1])


def test_every_bit_of_key_and_counter_reaches_every_bit_of_a_word() -> None:
    """Half of the words' bits change, each with each, when one bit of what they are made of does."""
    n = 4096

    def bits(seed: int, first: int) -> Tensor:
        # Counters far apart, as 2^40 elements would have them.
        counters = torch.arange(n).mul_(0x10001).add_(first).mul_(random._signed(random.GAMMA))
        x = random.words(counters, seed, 0)
        return torch.stack([(x >> b) & 1 for b in range(64)])

    reference = bits(77, 0)
    changed = [bits(77 ^ 1 << b, 0) for b in range(64)] + [bits(77, 1 << b) for b in range(48)]
    share = torch.stack([(reference ^ other).double().mean(1) for other in changed])
    assert float((share - 0.5).abs().max()) < 5.5 * 0.5 / math.sqrt(n)


def test_bits_are_even() -> None:
    n = 1 << 22
    x = drawn(n, "bits", "even")
    counts = torch.bincount(x, minlength=1 << 16).double()
    degrees = (1 << 16) - 1
    wanted = n / (1 << 16)
    assert abs(float(((counts - wanted) ** 2 / wanted).sum()) - degrees) < 5 * math.sqrt(2 * degrees)
    # The same of the lower bytes of neighbours, inside a word and across words.
    for lag in (1, 4):
        pairs = torch.bincount((x[:-lag] & 255) * 256 + (x[lag:] & 255), minlength=1 << 16).double()
        wanted = (n - lag) / (1 << 16)
        assert abs(float(((pairs - wanted) ** 2 / wanted).sum()) - degrees) < 5 * math.sqrt(2 * degrees)


def test_what_cannot_be_filled_says_why() -> None:
    with pytest.raises(ValueError, match=r"out must be contiguous, got strides \(1, 3\) for shape \(3, 2\)"):
        random.fill(torch.empty(2, 3).t(), 1, "normal")
    assert random.fill(torch.empty(0, 3), 1, "normal").numel() == 0
    assert prod(random.fill(torch.empty(3, device="meta"), 1, "normal").shape) == 3
