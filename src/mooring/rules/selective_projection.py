"""Selective projection decay: SPD, Tian, Huang and Kira, NeurIPS 2024 (arXiv 2411.01713)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.step.move import Slices, pending_entries
from mooring.step.rule import Rule


class SelectiveProjection(Rule):
    """Pull a tensor back toward its anchor, where the loss is inconsistent with the way it has moved.

    With the anchor a, d = p - a and the plain step's result q̃ = p - s::

        c = -<g, d>
        r = max(0, |q̃ - a| - |d|) / |q̃ - a|                        (0 where the denominator is 0)
        p <- q̃ - strength * r * (q̃ - a)     if c < 0, else q̃

    ``strength`` is dimensionless and not multiplied by the learning rate: 1 projects onto the previous radius, more
    goes inside it, and ``strength * r > 1`` reflects through the anchor, as released. The difference of the squared
    norms is ``<s,s> - 2<s,d>``, formed from Gram entries and never by subtracting norms, which in float32 would lose
    all digits at fine-tuning learning rates.
    """

    scope = "tensor"
    order = 4
    writes = "d"
    needs_anchor = True
    contracts = True

    def __init__(self, strength: float = 1.0) -> None:
        self._strength = strength

    @override
    def options(self) -> dict[str, Any]:
        return {"strength": self._strength}

    @override
    def check(self, group: Mapping[str, Any]) -> None:
        if not group["strength"] >= 0:
            raise ValueError(f"strength must be >= 0, got {group['strength']!r}")

    @override
    def active(self, group: Mapping[str, Any]) -> bool:
        return bool(group["strength"] != 0 and group["anchor"] is not None)

    @override
    def reads(self, live: str) -> set[str]:
        return {"gd", "dd"} | pending_entries(live, "d")

    @override
    def sums(self, x: Slices) -> list[Tensor]:
        return [x.dot("g", "d"), x.dot("d", "d"), x.pending_square(), x.pending_dot("d")]

    @override
    def decide(self, x: Slices, totals: list[Tensor]) -> None:
        contracted, ratio = _contraction(totals)
        amount = torch.where(contracted, x.option("strength") * ratio, torch.zeros_like(ratio))
        x.move.contract(x.per_slice(amount))

    @override
    def report(self, x: Slices, totals: list[Tensor]) -> dict[str, Tensor]:
        contracted, ratio = _contraction(totals)
        return {
            "inconsistent": -totals[0] < 0,
            "contracted": contracted,
            "ratio": torch.where(contracted, ratio, torch.nan),
        }

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        return f"selective projection(strength={group['strength']:g}, anchor={group['anchor']})"


def _contraction(totals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Which tensors are pulled back, and their r, which is meaningless for the others; each (T,)."""
    gd, dd, ss, sd = totals
    growth = torch.clamp(ss - 2 * sd, min=0)  # |q̃ - a|^2 - |d|^2, where positive
    radius = (dd + growth).sqrt()
    return (-gd < 0) & (growth > 0), growth / ((radius + dd.sqrt()) * radius)
