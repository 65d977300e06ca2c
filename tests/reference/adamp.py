"""AdamP and SGDP: Heo et al., ICLR 2021 (arXiv 2006.08217)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.reference.base import Group, Reference, State, adam_direction, adam_moments, capped, dot, norm


def cosine(g: Tensor, theta: Tensor, eps: float) -> float:
    """|cos(g, theta)| with each norm clamped to eps on its own."""
    return abs(dot(g, theta)) / (max(norm(g), eps) * max(norm(theta), eps))


def without_radial_part(u: Tensor, theta: Tensor, eps: float) -> Tensor:
    """u - theta_hat <theta_hat, u>."""
    theta_hat = theta / (norm(theta) + eps)
    return u - theta_hat * dot(theta_hat, u)


class Projecting(Reference):
    """The cosine test, shared by both."""

    def project(self, u: Tensor, theta: Tensor, g: Tensor, group: Group) -> tuple[Tensor, bool]:
        """The (possibly projected) direction and whether it was projected."""
        if group.get("scale_invariant", "test") != "test":
            return self.project_declared(u, theta, group)
        if theta.dim() < 2:
            self.branches["1-D"] += 1
            return u, False
        if not g.any():
            self.branches["zero gradient"] += 1
            return u, False
        eps, delta = group["eps"], group["delta"]
        rows = theta.shape[0]
        theta_rows, g_rows, u_rows = (x.reshape(rows, -1) for x in (theta, g, u))
        length = theta_rows.shape[1]
        worst = max(cosine(g_rows[r], theta_rows[r], eps) for r in range(rows))
        whole = cosine(g, theta, eps)
        if delta > 0:
            self.margins.append(abs(worst * math.sqrt(length) / delta - 1))
        if worst < delta / math.sqrt(length):
            self.branches["rows"] += 1
            projected = torch.stack([without_radial_part(u_rows[r], theta_rows[r], eps) for r in range(rows)])
            return projected.reshape(theta.shape), True
        if delta > 0:
            self.margins.append(abs(whole * math.sqrt(theta.numel()) / delta - 1))
        if whole < delta / math.sqrt(theta.numel()):
            self.branches["tensor"] += 1
            return without_radial_part(u, theta, eps), True
        self.branches["none"] += 1
        return u, False

    def project_declared(self, u: Tensor, theta: Tensor, group: Group) -> tuple[Tensor, bool]:
        """What is declared scale invariant is projected whatever the gradient says; rows are those of matrices."""
        eps, scope = group["eps"], group["scale_invariant"]
        if scope == "tensor":
            return without_radial_part(u, theta, eps), True
        if scope == "row" and theta.dim() >= 2:
            pairs = zip(theta, u, strict=True)
            return torch.stack([without_radial_part(row_u, row, eps) for row, row_u in pairs]), True
        return u, False


class AdamP(Projecting):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "delta": 0.1, "wd_ratio": 0.1,
        "nesterov": False, "scale_invariant": "test", "amsgrad": False, "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        lr = group["lr"]
        adam_moments(g, state, group)
        u, projected = self.project(adam_direction(g, state, group), theta, g, group)
        rho = group["wd_ratio"] if projected else 1
        new: Tensor = theta - capped(lr * group["weight_decay"] * rho) * theta - lr * u
        return new


class SGDP(Projecting):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "eps": 1e-8,
        "delta": 0.1, "wd_ratio": 0.1, "scale_invariant": "test", "project_buffer": False, "maximize": False,
    }  # fmt: skip

    def step_one(self, theta: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        lr, mu = group["lr"], group["momentum"]
        buffer = mu * state.get("buffer", torch.zeros_like(g)) + (1 - group["dampening"]) * g
        state["buffer"] = buffer
        u = g + mu * buffer if group["nesterov"] else buffer
        u, projected = self.project(u, theta, g, group)
        if group["project_buffer"] and not group["nesterov"]:
            state["buffer"] = u
        rho = group["wd_ratio"] if projected else 1
        new: Tensor = theta - capped(lr * group["weight_decay"] * rho / (1 - mu)) * theta - lr * u
        return new
