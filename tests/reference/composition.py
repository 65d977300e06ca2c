"""Every stage of a step written once, in the order of the specification, each of them optional.

g_m = g + weight_decay (theta - target)                 coupled decay
u from g_m                                              adam | sgd | adai
u <- u - A <theta_hat, u> theta_hat                     projection, tested with the raw g and theta before decay
s = eta u + min(eta weight_decay scale rho, 1)(theta - target)
s <- s eta |theta| / |s|                                trust ratio
theta~ = theta - s
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
    norm,
    second_moment,
    sgd_direction,
)
from tests.reference.spd import Contracting
from tests.reference.swd import inertia_direction, mean_of


class Composition(Projecting, Contracting):
    """Options beside the moments': `decay` (coupled, decoupled, stable), `toward`, `project`, `trust`, `strength`.

    `strength` None is no selective projection; `anchor` is "capture", "zero" or None (nothing to hold on to, so the
    contraction and a decay toward the anchor do nothing). A subclass names the options that a recipe leaves open in
    `defaults` and sets the others in `fixed`.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "base": "adam", "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "nesterov": False,
        "momentum": 0.0, "dampening": 0.0, "maximize": False,
        "decay": None, "weight_decay": 0.0, "toward": "zero", "anchor": "capture",
        "project": False, "delta": 0.1, "wd_ratio": 0.1, "scale_invariant": "test", "trust": False, "strength": None,
    }  # fmt: skip
    fixed: ClassVar[dict[str, Any]] = {}

    def step(self, grads: Sequence[Sequence[Tensor | None]]) -> None:
        """All moments first, because the mean over the model may be needed; then one parameter after the other."""
        present: list[tuple[Group, int, Tensor, State]] = []
        for own, j, g, state in self.present(grads):
            group = {**Composition.defaults, **self.fixed, **own}
            theta = own["params"][j]
            state.setdefault("moments", {})
            if group["anchor"] == "capture" and group["lr"] != 0:
                state.setdefault("anchor", theta.clone())
            elif group["anchor"] == "zero":
                state.setdefault("anchor", torch.zeros_like(theta))
            state["g_m"] = g
            target = self.target(theta, state, group)
            if group["decay"] == "coupled" and target is not None:
                state["g_m"] = g + group["weight_decay"] * (theta - target)
            if group["base"] != "sgd":
                adam_moments(state["g_m"], state["moments"], group)
            present.append((group, j, g, state))
        adaptive = [(group, state) for group, _, _, state in present if group["base"] != "sgd"]
        v_bar = mean_of([second_moment(state["moments"], group) for group, state in adaptive])
        for group, j, g, state in present:
            group["params"][j] = self.one(group["params"][j], g, state, group, v_bar)

    @staticmethod
    def target(theta: Tensor, state: State, group: Group) -> Tensor | None:
        """What a decay leads to."""
        return state.get("anchor") if group["toward"] == "anchor" else torch.zeros_like(theta)

    def direction(self, state: State, group: Group, v_bar: float) -> Tensor:
        if group["base"] == "adam":
            return adam_direction(state["g_m"], state["moments"], group)
        if group["base"] == "sgd":
            return sgd_direction(state["g_m"], state["moments"], group)
        return inertia_direction(state["g_m"], state["moments"], group, v_bar)

    def one(self, theta: Tensor, g: Tensor, state: State, group: Group, v_bar: float) -> Tensor:
        lr, rho, a = group["lr"], 1.0, state.get("anchor")
        u = self.direction(state, group, v_bar)
        if group["project"]:
            u, projected = self.project(u, theta, g, group)
            rho = group["wd_ratio"] if projected else 1.0
        s = lr * u
        target = self.target(theta, state, group)
        if group["decay"] in ("decoupled", "stable") and target is not None:
            scale = 1.0
            if group["decay"] == "stable" and group["base"] == "sgd":
                scale = (1 - group["dampening"]) / (1 - group["momentum"])
            elif group["decay"] == "stable":
                scale = 1 / math.sqrt(v_bar) if v_bar > 0 else 0.0
            s = s + capped(lr * group["weight_decay"] * scale * rho) * (theta - target)
        state["plain"] = s
        if group["trust"] and norm(theta) > 0 and norm(s) > 0:
            s = s * lr * norm(theta) / norm(s)
        if group["strength"] is None or a is None:
            return theta - s
        return self.contract(theta, theta - s, a, g, group)


class AdamProjectedStableSelective(Composition):
    """AdamP's projection, AdamS's decay toward 0 and SPD's contraction on Adam's moments."""

    fixed: ClassVar[dict[str, Any]] = {"base": "adam", "project": True, "decay": "stable"}
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4, "amsgrad": False, "nesterov": False,
        "delta": 0.1, "wd_ratio": 0.1, "strength": 1.0, "anchor": "capture", "maximize": False,
    }  # fmt: skip


class SGDProjectedSelective(Composition):
    """The projection, decoupled decay toward the anchor and SPD's contraction on torch's momentum buffer."""

    fixed: ClassVar[dict[str, Any]] = {"base": "sgd", "project": True, "decay": "decoupled", "toward": "anchor"}
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "eps": 1e-8,
        "delta": 0.1, "wd_ratio": 0.1, "strength": 1.0, "anchor": "capture", "maximize": False,
    }  # fmt: skip
