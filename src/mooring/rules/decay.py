"""Weight decay to zero or the anchor: coupled (L2), decoupled (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.step.move import Slices
from mooring.step.rule import Rule

_LETTER = {"zero": "p", "anchor": "d"}


class Decay(Rule):
    """What all decays share: the option ``weight_decay`` and a target.

    Args:
        weight_decay: the default of the group option.
        toward: ``"zero"``, or ``"anchor"`` for decay toward the pretrained weights (L2-SP).
        free_only: act only in groups without an anchor, such as a new head beside an anchored backbone.
    """

    def __init__(self, weight_decay: float = 0.0, toward: str = "zero", free_only: bool = False) -> None:
        if toward not in _LETTER:
            raise ValueError(f"toward must be 'zero' or 'anchor', got {toward!r}")
        self.weight_decay = weight_decay
        self.toward = toward
        self.free_only = free_only
        self.needs_anchor = toward == "anchor"

    @override
    def options(self) -> dict[str, Any]:
        return {"weight_decay": self.weight_decay}

    @override
    def check(self, group: Mapping[str, Any]) -> None:
        if not 0 <= group["weight_decay"] < float("inf"):
            raise ValueError(f"weight_decay must be a finite number >= 0, got {group['weight_decay']!r}")

    @override
    def active(self, group: Mapping[str, Any]) -> bool:
        anchored = group.get("anchor") is not None
        here = anchored if self.toward == "anchor" else not (self.free_only and anchored)
        return bool(here and group["weight_decay"] != 0)


class CoupledDecay(Decay):
    """L2 regularisation: ``g <- g + weight_decay * (p - target)`` before the moments, as torch's SGD and Adam do it.

    Rules that read the gradient (the cosine test, selective projection) see it without this term.
    Costs one pass over the gradient and the weights.
    """

    order = 0

    def __init__(self, weight_decay: float = 0.0, toward: str = "zero", free_only: bool = False) -> None:
        super().__init__(weight_decay, toward, free_only)
        self.couples = _LETTER[toward]

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        return f"coupled decay(weight_decay={group['weight_decay']:g}, toward {self.toward})"


class DecoupledDecay(Decay):
    """``p <- p - min(lr * weight_decay * scale * rho, 1) * (p - target)``, target 0 or the anchor.

    ``rho`` is what a projection before it asked for (1 without one). A shrink is never more than the whole weight.
    Subclasses change ``scale``. Reads no inner product, so it costs nothing beside the step.
    """

    order = 2

    def __init__(self, weight_decay: float = 0.0, toward: str = "zero", free_only: bool = False) -> None:
        super().__init__(weight_decay, toward, free_only)
        self.writes = _LETTER[toward]

    def scale(self, x: Slices) -> Tensor | None:
        """The factor beside lr * weight_decay, (T,) or 0-dim; None is one."""
        return None

    def uncapped(self, x: Slices) -> Tensor:
        """The shrink before its cap at the whole weight, (T,)."""
        shrink = x.option("lr") * x.option("weight_decay")
        scale = self.scale(x)
        if scale is not None:
            shrink = shrink * scale
        return shrink if x.move.rho is None else shrink * x.move.rho

    @override
    def decide(self, x: Slices, totals: list[Tensor]) -> None:
        shrink = self.uncapped(x)
        if self.needs_stable_scale:  # elsewhere the options alone tell
            x.count(f"{self.label}/capped_steps", shrink > 1)
        x.move.add(self.writes, x.per_slice(torch.clamp(shrink, max=1.0)))

    @override
    def report(self, x: Slices, totals: list[Tensor]) -> dict[str, Tensor]:
        shrink = self.uncapped(x)
        return {"shrink": torch.clamp(shrink, max=1.0), "capped": shrink > 1}

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
