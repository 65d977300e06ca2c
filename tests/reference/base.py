"""The two ordinary optimizers, AdamW and SGD with momentum, and what every naive reference shares.

A reference keeps float64 copies of the weights and loops over parameters (and, where a method asks for it, over rows).
It is written to be read beside the formula, never to be fast. It also records two things a test wants to know:
`branches`, how often each decision of a method was taken, and `margins`, how near the nearest decision was to going the
other way (relative to its threshold), because two correct programs may disagree only where that margin is rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

State = dict[str, Any]
Group = dict[str, Any]


class Reference:
    """Loops over groups and parameters; a method overrides `step_one`, or `step` if it needs all of them at once."""

    defaults: ClassVar[dict[str, Any]] = {}
    coupled: ClassVar[bool] = False
    """Whether weight_decay is a part of the gradient that the moments see."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups: list[Group] = []
        for group in groups:
            unknown = set(group) - set(self.defaults) - {"params"}
            if unknown:
                raise TypeError(f"{type(self).__name__} knows no {sorted(unknown)}")
            copies = [
                p.detach().to(torch.float64).clone(memory_format=torch.contiguous_format) for p in group["params"]
            ]
            self.groups.append({**self.defaults, **group, "params": copies})
        self.states: list[list[State]] = [[{} for _ in group["params"]] for group in self.groups]
        self.branches: Counter[str] = Counter()
        self.margins: list[float] = [math.inf]

    def step(self, grads: Sequence[Sequence[Tensor | None]]) -> None:
        """One step; `grads[i][j]` is the gradient of parameter j of group i, or None where it has none."""
        for group, j, g, state in self.present(grads):
            group["params"][j] = self.step_one(group["params"][j], g, state, group)

    def present(self, grads: Sequence[Sequence[Tensor | None]]) -> Iterator[tuple[Group, int, Tensor, State]]:
        """(group, position in it, gradient in float64, state) of every parameter that takes part in this step."""
        for group, states, group_grads in zip(self.groups, self.states, grads, strict=True):
            for j, (g, state) in enumerate(zip(group_grads, states, strict=True)):
                if g is None or g.numel() == 0:
                    continue
                yield group, j, -g.to(torch.float64) if group["maximize"] else g.to(torch.float64), state

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        """The new weights of one parameter."""
        raise AssertionError("a method says what its step is")


def norm(x: Tensor) -> float:
    """Euclidean norm of all elements; math.sqrt of an exactly rounded sum, so that differences of norms keep digits."""
    return math.sqrt(math.fsum((x * x).flatten().tolist()))


def dot(x: Tensor, y: Tensor) -> float:
    """Inner product over all elements, summed exactly."""
    return math.fsum((x * y).flatten().tolist())


def adam_moments(g: Tensor, state: State, group: Group) -> None:
    """m, v and (for amsgrad) the running maximum of v, none of them bias corrected; the parameter's own step count."""
    beta1, beta2 = group["betas"]
    if not state:
        state.update(t=0, m=torch.zeros_like(g), v=torch.zeros_like(g), v_max=torch.zeros_like(g))
    state["t"] += 1
    state["m"] = beta1 * state["m"] + (1 - beta1) * g
    state["v"] = beta2 * state["v"] + (1 - beta2) * g * g
    state["v_max"] = torch.maximum(state["v_max"], state["v"])


def second_moment(state: State, group: Group) -> Tensor:
    """v hat: v (amsgrad: its running maximum) divided by the current 1 - beta2^t."""
    v: Tensor = state["v_max"] if group.get("amsgrad") else state["v"]
    corrected: Tensor = v / (1 - group["betas"][1] ** state["t"])
    return corrected


def adam_direction(g: Tensor, state: State, group: Group) -> Tensor:
    """u = m hat / (sqrt(v hat) + eps); with Nesterov m is replaced by beta1 m + (1 - beta1) g, same correction."""
    beta1, _ = group["betas"]
    m = state["m"]
    if group.get("nesterov"):
        m = beta1 * m + (1 - beta1) * g
    m_hat = m / (1 - beta1 ** state["t"])
    u: Tensor = m_hat / (torch.sqrt(second_moment(state, group)) + group["eps"])
    return u


def sgd_direction(g: Tensor, state: State, group: Group) -> Tensor:
    """torch's SGD: the first buffer is the raw gradient, and without momentum dampening plays no part."""
    mu = group["momentum"]
    if mu == 0:
        return g
    if "buffer" not in state:
        state["buffer"] = g.clone()
    else:
        state["buffer"] = mu * state["buffer"] + (1 - group["dampening"]) * g
    u: Tensor = g + mu * state["buffer"] if group["nesterov"] else state["buffer"]
    return u


def capped(shrink: float) -> float:
    """A decay may remove all of a weight but never turn its sign."""
    return min(shrink, 1.0)


class AdamW(Reference):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False, "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        lr = group["lr"]
        adam_moments(g, state, group)
        theta = theta - capped(lr * group["weight_decay"]) * theta
        new: Tensor = theta - lr * adam_direction(g, state, group)
        return new


class Adam(Reference):
    """torch's Adam: the decay is a part of the gradient."""

    coupled = True
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "nesterov": False,
        "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        coupled = g + group["weight_decay"] * theta
        adam_moments(coupled, state, group)
        new: Tensor = theta - group["lr"] * adam_direction(coupled, state, group)
        return new


class SGD(Reference):
    coupled = True
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        coupled = g + group["weight_decay"] * theta
        new: Tensor = theta - group["lr"] * sgd_direction(coupled, state, group)
        return new
