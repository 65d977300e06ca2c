"""Stable weight decay: Xie et al., NeurIPS 2023 (arXiv 2011.11152)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from mooring.rules.decay import DecoupledDecay
from mooring.step.move import Slices


class StableDecay(DecoupledDecay):
    """Decoupled decay measured in effective steps: ``scale`` is what the moments multiply the learning rate by.

    With Adam's moments ``scale = 1/sqrt(v̄)``, v̄ the mean of v̂ over *all* elements of *all* parameters that have a
    gradient, in all groups; no decay where v̄ = 0. With a momentum buffer ``scale = (1-dampening)/(1-momentum)``.

    Costs one pass over the gradients (4 bytes per float32 element) with Adam's moments, nothing with momentum.
    """

    scope = "model"
    needs_stable_scale = True

    @override
    def scale(self, x: Slices) -> Tensor | None:
        return x.stable_scale()

    @override
    def report(self, x: Slices, totals: list[Tensor]) -> dict[str, Tensor]:
        return {**super().report(x, totals), "scale": x.stable_scale()}

    @override
    def scale_text(self) -> str:
        return " x the stable scale"
