"""AdamSPD and SGDSPD, selective projection decay: Tian, Huang, Kira, NeurIPS 2024 (arXiv 2411.01713)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.reference.base import Group, Reference, State, adam_direction, adam_moments, capped, dot, norm, sgd_direction


class Contracting(Reference):
    """The selective contraction itself."""

    def contract(self, theta: Tensor, after: Tensor, a: Tensor, g: Tensor, group: Group) -> Tensor:
        """From `theta` the plain step leads to `after`; the new weights."""
        c = -dot(g, theta - a)
        before_radius, after_radius = norm(theta - a), norm(after - a)
        scale = norm(g) * before_radius
        if scale > 0:
            self.margins.append(abs(c) / scale)
        if not c < 0 or after_radius == 0:
            self.branches["inactive"] += 1
            return after
        r = max(0.0, after_radius - before_radius) / after_radius
        self.branches["contracted" if r > 0 else "active, not moving away"] += 1
        new: Tensor = after - group["strength"] * r * (after - a)
        return new


class Selective(Contracting):
    """Decay toward the anchor, then the step, then the contraction; shared by both."""

    def move(self, theta: Tensor, g: Tensor, u: Tensor, state: State, group: Group) -> Tensor:
        """The new weights, u being the plain optimizer's direction."""
        lr = group["lr"]
        if "anchor" not in state and lr != 0 and group["anchor"] == "capture":
            state["anchor"] = theta.clone()
        if "anchor" not in state and group["anchor"] == "zero":
            state["anchor"] = torch.zeros_like(theta)
        a = state.get("anchor")
        if a is None:
            # Either a free group (decayed as AdamW decays: there is no pretrained value to return to), or lr is 0.
            new: Tensor = theta - capped(lr * group["weight_decay"]) * theta - lr * u
            return new
        after = theta - capped(lr * group["weight_decay"]) * (theta - a) - lr * u
        return self.contract(theta, after, a, g, group)


class AdamSPD(Selective):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
        "strength": 1.0, "anchor": "capture", "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        moments = state.setdefault("moments", {})
        adam_moments(g, moments, group)
        return self.move(theta, g, adam_direction(g, moments, group), state, group)


class SGDSPD(Selective):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False,
        "strength": 1.0, "anchor": "capture", "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        return self.move(theta, g, sgd_direction(g, state, group), state, group)
