"""AdamS and SGDS, stable weight decay: Xie et al., NeurIPS 2023 (arXiv 2011.11152)."""

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
        if not present:
            return
        elements = [x for group, _, _, state in present for x in second_moment(state, group).flatten().tolist()]
        v_bar = math.fsum(elements) / len(elements)
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
        return theta - capped(shrink) * theta - lr * sgd_direction(g, state, group)
