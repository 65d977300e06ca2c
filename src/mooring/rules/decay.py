"""Decoupled weight decay: Loshchilov and Hutter, ICLR 2019 (arXiv 1711.05101)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.step.move import Slices
from mooring.step.rule import Rule


class DecoupledDecay(Rule):
    """``p <- p - min(lr * weight_decay * scale * rho, 1) * (p - target)``, target 0 or the anchor.

    ``rho`` is what a projection before it asked for (1 without one). A shrink is never more than the whole weight.
    Subclasses change ``scale``. Reads no inner product, so it costs nothing beside the step.

    Args:
        toward: ``"zero"``, or ``"anchor"`` for decay toward the pretrained weights (decoupled L2-SP).
        free_only: act only in groups without an anchor, such as a new head beside an anchored backbone.
    """

    def __init__(self, toward: str = "zero", free_only: bool = False) -> None:
        if toward not in ("zero", "anchor"):
            raise ValueError(f"toward must be 'zero' or 'anchor', got {toward!r}")
        self.toward = toward
        self.free_only = free_only
        self.writes = "p" if toward == "zero" else "d"
        self.needs_anchor = toward == "anchor"

    @override
    def options(self) -> dict[str, Any]:
        return {"weight_decay": 0.0}

    @override
    def check(self, group: Mapping[str, Any]) -> None:
        if not group["weight_decay"] >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {group['weight_decay']!r}")

    @override
    def active(self, group: Mapping[str, Any]) -> bool:
        anchored = group.get("anchor") is not None
        here = anchored if self.toward == "anchor" else not (self.free_only and anchored)
        return bool(here and group["weight_decay"] != 0)

    def scale(self, x: Slices) -> Tensor | None:
        """The factor beside lr * weight_decay, (T,) or 0-dim; None is one."""
        return None

    @override
    def decide(self, x: Slices, totals: list[Tensor]) -> None:
        shrink = x.option("lr") * x.option("weight_decay")
        scale = self.scale(x)
        if scale is not None:
            shrink = shrink * scale
        shrink = x.per_slice(shrink)
        if x.move.rho is not None:
            shrink = shrink * x.move.rho
        x.move.add(self.writes, torch.clamp(shrink, max=1.0))

    def scale_text(self) -> str:
        """How ``scale`` is printed."""
        return ""

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        kind = type(self).__name__.removesuffix("Decay").lower()
        return f"{kind} decay(weight_decay={group['weight_decay']:g}, toward {self.toward})"

    @override
    def shrink(self, group: Mapping[str, Any]) -> str | None:
        amount = f"{float(group['lr']) * group['weight_decay']:.3g}{self.scale_text()}"
        return f"{amount} of the {'weights' if self.toward == 'zero' else 'distance to the anchor'}"
