"""All parts of one step together, in the order that the specification fixes:

coupled decay -> moments -> radial projection -> decay (its rho from the projection) -> step -> selective contraction.
The cosine test and the sign of c see the gradient without the coupled term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.reference.adamp import Projecting
from tests.reference.base import Group, State, adam_direction, adam_moments, capped, second_moment, sgd_direction
from tests.reference.spd import Contracting
from tests.reference.swd import mean_of


class Combined(Projecting, Contracting):
    """What the combinations share; a subclass says which moments, which decay and toward what."""

    def move(
        self, theta: Tensor, g: Tensor, u: Tensor, shrink: float, toward: str, state: State, group: Group
    ) -> Tensor:
        """Project, decay, step, contract. `shrink` is the decay before the projection's rho."""
        if "anchor" not in state and group["anchor"] == "capture" and group["lr"] != 0:
            state["anchor"] = theta.clone()
        if "anchor" not in state and group["anchor"] == "zero":
            state["anchor"] = torch.zeros_like(theta)
        a = state.get("anchor")
        u, projected = self.project(u, theta, g, group)
        rho = group["wd_ratio"] if projected else 1
        target = a if toward == "anchor" else torch.zeros_like(theta)
        after = theta - group["lr"] * u
        if target is not None:  # a decay toward an anchor does nothing in a group that has none
            after = after - capped(shrink * rho) * (theta - target)
        return after if a is None else self.contract(theta, after, a, g, group)


class AdamProjectedStableSelective(Combined):
    """AdamP's projection, AdamS's decay toward 0 and SPD's contraction on Adam's moments."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4, "amsgrad": False, "nesterov": False,
        "delta": 0.1, "wd_ratio": 0.1, "strength": 1.0, "anchor": "capture", "maximize": False,
    }  # fmt: skip

    def step(self, grads: Sequence[Sequence[Tensor | None]]) -> None:
        present: list[tuple[Group, int, Tensor, State]] = []
        for group, states, group_grads in zip(self.groups, self.states, grads, strict=True):
            for j, (g, state) in enumerate(zip(group_grads, states, strict=True)):
                if g is None or g.numel() == 0:
                    continue
                g = -g.to(torch.float64) if group["maximize"] else g.to(torch.float64)
                adam_moments(g, state.setdefault("moments", {}), group)
                present.append((group, j, g, state))
        v_bar = mean_of([second_moment(state["moments"], group) for group, _, _, state in present])
        for group, j, g, state in present:
            shrink = 0.0 if v_bar == 0 else group["lr"] * group["weight_decay"] / math.sqrt(v_bar)
            u = adam_direction(g, state["moments"], group)
            group["params"][j] = self.move(group["params"][j], g, u, shrink, "zero", state, group)


class SGDProjectedSelective(Combined):
    """The projection, decoupled decay toward the anchor and SPD's contraction on torch's momentum buffer."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "eps": 1e-8,
        "delta": 0.1, "wd_ratio": 0.1, "strength": 1.0, "anchor": "capture", "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        u = sgd_direction(g, state, group)
        return self.move(theta, g, u, group["lr"] * group["weight_decay"], "anchor", state, group)
