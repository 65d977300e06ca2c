"""Randomness: every purpose has a generator of its own, so that no draw depends on what ran before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(*parts: str | int) -> int:
    """A 63-bit seed from the parts; the same on every machine and in every version of Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded by the parts."""
    return torch.Generator().manual_seed(derive(*parts))


@contextmanager
def own_global_rng(device: torch.device, *parts: str | int) -> Iterator[None]:
    """Seed torch's global generators by the parts, and put them back afterwards.

    Nothing in this package draws from them except the modules' own initialisation; a user's optimizer may.
    """
    accelerators = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=accelerators, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(derive(*parts))
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with this many torch threads: the bits of a convolution may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
