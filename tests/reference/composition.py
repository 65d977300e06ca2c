"""Every stage of a step written once, in the order of the specification, each of them optional.

g_m = g + weight_decay (theta - target)                 coupled decay
u from g_m                                              adam | sgd | adai
u <- u - A <theta_hat, u> theta_hat                     projection, tested with the raw g and theta before decay
theta~ = theta - eta u - min(eta weight_decay s rho, 1)(theta - target)
theta~ <- theta - (theta - theta~) eta |theta| / |theta - theta~|            trust ratio
theta+ = theta~ - strength r 1[c<0] (theta~ - a)        selective projection
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.reference.adamp import Projecting
from tests.reference.base import (
    Group,
    State,
    adam_direction,
    adam_moments,
    capped,
    dot,
    norm,
    second_moment,
    sgd_direction,
)


class Composition(Projecting):
    """Options beside the moments': `decay` (coupled, decoupled, stable), `toward`, `project`, `trust`, `strength`."""

    defaults: ClassVar[dict[str, Any]] = {
        "base": "adam", "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "nesterov": False,
        "momentum": 0.0, "dampening": 0.0, "maximize": False,
        "decay": None, "weight_decay": 0.0, "toward": "zero",
        "project": False, "delta": 0.1, "wd_ratio": 0.1, "trust": False, "strength": None,
    }  # fmt: skip

    def step(self, grads: Sequence[Sequence[Tensor | None]]) -> None:
        present: list[tuple[Group, int, Tensor, State]] = []
        for group, states, group_grads in zip(self.groups, self.states, grads, strict=True):
            for j, (g, state) in enumerate(zip(group_grads, states, strict=True)):
                theta = group["params"][j]
                if g is None or theta.numel() == 0:
                    continue
                g = -g.double() if group["maximize"] else g.double()
                state.setdefault("anchor", theta.clone())
                target = state["anchor"] if group["toward"] == "anchor" else torch.zeros_like(theta)
                coupled = group["weight_decay"] if group["decay"] == "coupled" else 0.0
                state["g_m"] = g + coupled * (theta - target)
                if group["base"] != "sgd":
                    adam_moments(state["g_m"], state.setdefault("adam", {}), group)
                present.append((group, j, g, state))
        if not present:
            return
        v_bar = 0.0
        if self.groups[0]["base"] != "sgd":
            elements = [x for gr, _, _, s in present for x in second_moment(s["adam"], gr).flatten().tolist()]
            v_bar = math.fsum(elements) / len(elements)
        for group, j, g, state in present:
            group["params"][j] = self.one(group["params"][j], g, state, group, v_bar)

    def direction(self, state: State, group: Group, v_bar: float) -> Tensor:
        if group["base"] == "adam":
            return adam_direction(state["g_m"], state["adam"], group)
        if group["base"] == "sgd":
            return sgd_direction(state["g_m"], state, group)
        g, adam = state["g_m"], state["adam"]
        share = second_moment(adam, group) / v_bar if v_bar > 0 else torch.zeros_like(g)
        b = (1 - group["betas"][0] * share).clamp(0, 1 - group["eps"])
        state["product"] = state.get("product", torch.ones_like(g)) * b
        state["inertia"] = b * state.get("inertia", torch.zeros_like(g)) + (1 - b) * g
        u: Tensor = state["inertia"] / (1 - state["product"])
        return u

    def one(self, theta: Tensor, g: Tensor, state: State, group: Group, v_bar: float) -> Tensor:
        lr, rho, a = group["lr"], 1.0, state["anchor"]
        u = self.direction(state, group, v_bar)
        if group["project"]:
            # The projection's floor has the default of its rule where the moments' eps means something else.
            u, projected = self.project(u, theta, g, {**group, "eps": 1e-8} if group["base"] == "sgd" else group)
            rho = group["wd_ratio"] if projected else 1.0
        shrink = 0.0
        if group["decay"] in ("decoupled", "stable"):
            scale = 1.0
            if group["decay"] == "stable" and group["base"] == "sgd":
                scale = (1 - group["dampening"]) / (1 - group["momentum"])
            elif group["decay"] == "stable":
                scale = 1 / math.sqrt(v_bar) if v_bar > 0 else 0.0
            shrink = capped(lr * group["weight_decay"] * scale * rho)
        target = a if group["toward"] == "anchor" else torch.zeros_like(theta)
        after = theta - lr * u - shrink * (theta - target)
        if group["trust"] and norm(theta) > 0 and norm(theta - after) > 0:
            after = theta - (theta - after) * lr * norm(theta) / norm(theta - after)
        if group["strength"] is not None and -dot(g, theta - a) < 0:
            before_radius, after_radius = norm(theta - a), norm(after - a)
            if after_radius > 0:
                r = max(0.0, after_radius - before_radius) / after_radius
                after = after - group["strength"] * r * (after - a)
        return after
