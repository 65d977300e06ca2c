"""What rules read and what they write: a view of the Gram matrix, and the pending affine move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LETTERS = "gpuds"
"""g: gradient handed to the moments, p: weights before the step, u: update direction, d: p - anchor.

s, what the step took from the weights, exists only for reports of recorded steps.
"""


def entry(a: str, b: str) -> str:
    """The canonical two-letter name of the inner product <a, b>."""
    return a + b if LETTERS.index(a) <= LETTERS.index(b) else b + a


@dataclass
class Move:
    """The pending displacement ``s = tau*p + beta*u + kappa*d``, float64 coefficients per slice.

    ``contraction`` is what :meth:`contract` was given, which is in the coefficients already: a backend may move by the
    rest first and pull toward the anchor afterwards.

    ``None`` is a coefficient that no rule has written, which is zero. ``rho``, one value per tensor, multiplies every
    decay that follows the projection; ``buffer`` is subtracted from the momentum buffer, times ``p``.
    """

    beta: Tensor
    tau: Tensor | None = None
    kappa: Tensor | None = None
    rho: Tensor | None = None
    buffer: Tensor | None = None
    contraction: Tensor | None = None

    def terms(self) -> list[tuple[str, Tensor]]:
        """(letter, coefficient) of the written coefficients, in the order in which they are added."""
        pairs = (("u", self.beta), ("p", self.tau), ("d", self.kappa))
        return [(letter, c) for letter, c in pairs if c is not None]

    def add(self, letter: str, c: Tensor) -> None:
        """Add ``c`` to the coefficient of ``p`` or ``d``."""
        name = {"p": "tau", "d": "kappa"}[letter]
        old = getattr(self, name)
        setattr(self, name, c if old is None else old + c)

    def contract(self, amount: Tensor) -> None:
        """Pull the point that the pending displacement leads to toward the anchor: ``q <- q - amount (q - a)``."""
        self.scale(1 - amount)
        self.add("d", amount)
        self.contraction = amount

    def scale(self, factor: Tensor) -> None:
        """Multiply the whole pending displacement."""
        self.beta = self.beta * factor
        self.tau = None if self.tau is None else self.tau * factor
        self.kappa = None if self.kappa is None else self.kappa * factor


@dataclass
class Slices:
    """All that a rule may read of a batch of tensors.

    A *slice* is a row of a tensor where a rule of the recipe works by rows, else the whole tensor. ``S`` slices belong
    to ``T`` tensors; every tensor here is float64 and lives where the rules are evaluated.

    Attributes:
        entries: Gram entries by name, each of shape (S,).
        option: group option by name -> (T,), one value per tensor.
        matrix: (T,) bool, tensors of two or more dimensions.
        numel: (T,), elements of the whole tensor, counted over all shards.
        row_length: (T,), elements of one row, counted over all shards.
        per_slice: takes a (T,) tensor to (S,), the tensor's value at each of its slices.
        stable_scale: what the moments divide the decay by in stable weight decay, (T,) or 0-dim.
        move: the pending displacement; rules change it.
        shared: the group of the first tensor, for options that all tensors have in common.
        count: takes a name and a bool tensor; counts the steps on which any of its values is true, whether the step is
            recorded or not, and without waiting for the device.
        whole: on recorded steps, when rules report: inner products over whole tensors, each of shape (T,).
    """

    entries: dict[str, Tensor]
    option: Callable[[str], Tensor]
    matrix: Tensor
    numel: Tensor
    row_length: Tensor
    per_slice: Callable[[Tensor], Tensor]
    stable_scale: Callable[[], Tensor]
    move: Move
    shared: Mapping[str, Any]
    count: Callable[[str, Tensor], None]
    whole: dict[str, Tensor] = field(default_factory=dict)

    def dot(self, a: str, b: str) -> Tensor:
        """<a, b> per slice, shape (S,)."""
        return self.entries[entry(a, b)]

    def total(self, a: str, b: str) -> Tensor:
        """<a, b> over whole tensors and their shards, shape (T,); only while a recorded step is reported."""
        return self.whole[entry(a, b)]

    def pending_square(self) -> Tensor:
        """<s, s> of the pending displacement per slice, from Gram entries alone."""
        terms = self.move.terms()
        total = torch.zeros_like(self.move.beta)
        for i, (a, ca) in enumerate(terms):
            total = total + ca * ca * self.dot(a, a)
            for b, cb in terms[i + 1 :]:
                total = total + 2 * ca * cb * self.dot(a, b)
        return total

    def pending_dot(self, letter: str) -> Tensor:
        """<s, letter> of the pending displacement per slice, from Gram entries alone."""
        total = torch.zeros_like(self.move.beta)
        for a, c in self.move.terms():
            total = total + c * self.dot(a, letter)
        return total


def pending_entries(live: str, with_letters: str = "") -> set[str]:
    """The entries that ``pending_square`` and ``pending_dot(letter)`` read, for the coefficients in ``live``."""
    letters = set(live) | {"u"}
    return {entry(a, b) for a in letters for b in letters | set(with_letters)}
