"""AdamS, SGDS, Adai and AdaiS, stable weight decay: Xie et al., NeurIPS 2023 (arXiv 2011.11152)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.reference.base import (
    Group,
    Reference,
    State,
    adam_direction,
    adam_moments,
    capped,
    second_moment,
    sgd_direction,
)


def mean_of(parts: Sequence[Tensor]) -> float:
    """The mean over all elements of all tensors; 0 for none."""
    elements = [x for part in parts for x in part.flatten().tolist()]
    return math.fsum(elements) / len(elements) if elements else 0.0


class AdamS(Reference):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4, "amsgrad": False, "maximize": False,
    }  # fmt: skip

    def step(self, grads: Sequence[Sequence[Tensor | None]]) -> None:
        """All moments first, because every parameter's decay needs the mean over all of them."""
        present: list[tuple[Group, int, Tensor, State]] = []
        for group, states, group_grads in zip(self.groups, self.states, grads, strict=True):
            for j, (g, state) in enumerate(zip(group_grads, states, strict=True)):
                if g is None or g.numel() == 0:
                    continue
                g = g.to(torch.float64)
                if group["maximize"]:
                    g = -g
                adam_moments(g, state, group)
                present.append((group, j, g, state))
        v_bar = mean_of([second_moment(state, group) for group, _, _, state in present])
        for group, j, g, state in present:
            theta, lr = group["params"][j], group["lr"]
            shrink = 0.0 if v_bar == 0 else lr * group["weight_decay"] / math.sqrt(v_bar)
            self.branches["capped" if shrink > 1 else "uncapped"] += 1
            group["params"][j] = theta - capped(shrink) * theta - lr * adam_direction(g, state, group)


class SGDS(Reference):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        lr = group["lr"]
        shrink = lr * group["weight_decay"] * (1 - group["dampening"]) / (1 - group["momentum"])
        new: Tensor = theta - capped(shrink) * theta - lr * sgd_direction(g, state, group)
        return new


class Adai(Reference):
    """Adaptive inertia. The decay is coupled here and decoupled in AdaiS."""

    coupled = True
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 0.1, "betas": (0.1, 0.99), "eps": 1e-3, "weight_decay": 0, "maximize": False,
    }  # fmt: skip

    def step(self, grads: Sequence[Sequence[Tensor | None]]) -> None:
        present: list[tuple[Group, int, Tensor, State]] = []
        for group, states, group_grads in zip(self.groups, self.states, grads, strict=True):
            for j, (g, state) in enumerate(zip(group_grads, states, strict=True)):
                if g is None or g.numel() == 0:
                    continue
                g = -g.to(torch.float64) if group["maximize"] else g.to(torch.float64)
                if self.coupled:
                    g = g + group["weight_decay"] * group["params"][j]
                if not state:
                    state.update(t=0, m=torch.zeros_like(g), v=torch.zeros_like(g), pi=torch.ones_like(g))
                state["t"] += 1
                state["v"] = group["betas"][1] * state["v"] + (1 - group["betas"][1]) * g * g
                present.append((group, j, g, state))
        v_bar = mean_of([second_moment(state, group) for group, _, _, state in present])
        for group, j, g, state in present:
            theta, lr = group["params"][j], group["lr"]
            ratio = second_moment(state, group) / v_bar if v_bar > 0 else torch.zeros_like(g)
            b = (1 - group["betas"][0] * ratio).clamp(0, 1 - group["eps"])
            state["pi"] = state["pi"] * b
            state["m"] = b * state["m"] + (1 - b) * g
            u = state["m"] / (1 - state["pi"])
            shrink = 0.0 if self.coupled else capped(lr * group["weight_decay"])
            group["params"][j] = theta - shrink * theta - lr * u


class AdaiS(Adai):
    coupled = False
