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


def inertia_direction(g: Tensor, state: State, group: Group, v_bar: float) -> Tensor:
    """Adai's u = m / (1 - pi), its momentum b per element; `state` holds the second moment that `v_bar` is made of."""
    ratio = second_moment(state, group) / v_bar if v_bar > 0 else torch.zeros_like(g)
    b = (1 - group["betas"][0] * ratio).clamp(0, 1 - group["eps"])
    state["pi"] = state.get("pi", torch.ones_like(g)) * b
    state["inertia"] = b * state.get("inertia", torch.zeros_like(g)) + (1 - b) * g
    u: Tensor = state["inertia"] / (1 - state["pi"])
    return u


class AdamS(Reference):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4, "amsgrad": False, "maximize": False,
    }  # fmt: skip

    def step(self, grads: Sequence[Sequence[Tensor | None]]) -> None:
        """All moments first, because every parameter's decay needs the mean over all of them."""
        present = list(self.present(grads))
        for group, _, g, state in present:
            adam_moments(g, state, group)
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
        for group, j, g, state in self.present(grads):
            if self.coupled:
                g = g + group["weight_decay"] * group["params"][j]
            adam_moments(g, state, group)
            present.append((group, j, g, state))
        v_bar = mean_of([second_moment(state, group) for group, _, _, state in present])
        for group, j, g, state in present:
            theta, lr = group["params"][j], group["lr"]
            u = inertia_direction(g, state, group, v_bar)
            shrink = 0.0 if self.coupled else capped(lr * group["weight_decay"])
            group["params"][j] = theta - shrink * theta - lr * u


class AdaiS(Adai):
    coupled = False
