"""Numbers that belong to an element: every way of cutting a tensor sees the same ones."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mooring.kernels import random


def normal(out: Tensor, generator: torch.Generator) -> None:
    out.normal_(generator=generator)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random._BLOCK, "cpu", 37)


@st.composite
def rectangles(draw: Any) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    whole = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=4)))
    cuts = []
    for n in whole:
        begin = draw(st.integers(0, n - 1))
        cuts.append((begin, draw(st.integers(begin + 1, n))))
    return whole, cuts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rectangles(), st.integers(0, 2**64 - 1))
def test_a_piece_holds_the_numbers_of_the_whole(rectangle: Any, seed: int) -> None:
    whole, cuts = rectangle
    everything = random.fill(torch.empty(whole), seed, normal)
    window = tuple(slice(a, b) for a, b in cuts)
    part = torch.empty([b - a for a, b in cuts])
    random.fill(part, seed, normal, whole, tuple(a for a, _ in cuts))
    assert torch.equal(part, everything[window])


def test_a_block_is_drawn_from_its_own_seed_and_nothing_else() -> None:
    """Written again with torch alone: the blocks of 37, one generator each."""
    before = torch.get_rng_state()
    got = random.fill(torch.empty(5, 20), 11, normal).flatten()
    assert torch.equal(before, torch.get_rng_state()), "the user's generator is not touched"
    blocks = []
    for i, n in enumerate([37, 37, 26]):
        generator = torch.Generator().manual_seed(random._mix(11 ^ random._mix(i)) & (2**63 - 1))
        blocks.append(torch.randn(n, generator=generator))
    assert torch.equal(got, torch.cat(blocks))


def test_keys_differ_and_are_the_same_everywhere() -> None:
    keys = {random.key(a, b, name) for a in range(30) for b in range(30) for name in ("weight", "bias", "x")}
    assert len(keys) == 2700
    assert random.key("rounding", "weight", 3, 5) == 0x32AB59BC08F84A84, "checkpoints resume with the same bits"
    assert all(0 <= k < 2**64 for k in keys)


def test_normal_numbers_have_mean_zero_and_variance_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random._BLOCK, "cpu", 1 << 15)
    x = random.fill(torch.empty(1_000_000), random.key("a test", 1), normal).double()
    y = random.fill(torch.empty(1_000_000), random.key("a test", 2), normal).double()
    n = x.numel()
    assert abs(float(x.mean())) < 5 / n**0.5
    assert abs(float(x.square().mean()) - 1) < 5 * 2**0.5 / n**0.5
    assert abs(float((x * y).mean())) < 5 / n**0.5


def test_what_cannot_be_filled_says_why() -> None:
    with pytest.raises(ValueError, match=r"out must be contiguous, got strides \(1, 3\) for shape \(3, 2\)"):
        random.fill(torch.empty(2, 3).t(), 1, normal)
    assert random.fill(torch.empty(0, 3), 1, normal).numel() == 0
    assert prod(random.fill(torch.empty(3, device="meta"), 1, normal).shape) == 3
