"""The one table of perturbing methods: each with its naive gradient, written from the paper with loops over tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from mooring.kernels import random
from mooring.perturb.frame import Perturbed
from mooring.perturb.noise import draw
from mooring.perturb.weights import Member

Gradient = Callable[[list[Tensor]], list[Tensor]]
"""Weights to gradients."""

SEED = 5


@dataclass(frozen=True)
class PerturbedRow:
    """One method with its options.

    Attributes:
        name: the public name.
        options: its options.
        naive: (weights, gradient, step, options) -> the gradient that the base must see.
        gradients: gradient evaluations per step.
    """

    name: str
    options: Mapping[str, Any]
    naive: Callable[[list[Tensor], Gradient, int, Mapping[str, Any]], list[Tensor]]
    gradients: int

    def build(self, base: torch.optim.Optimizer, **more: Any) -> Perturbed:
        options = {**self.options, **more}
        if self.name in ("NSO", "RSAM"):
            options.setdefault("seed", SEED)
        made: Perturbed = getattr(mo, self.name)(base, **options)
        return made

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{k} {v}" for k, v in self.options.items())])


def noise(weights: list[Tensor], kind: str, step: int, j: int | None, law: str = "normal") -> list[Tensor]:
    """The draw of the library, whose law has tests of its own; everything else here is written again."""
    out = []
    for i, w in enumerate(weights):
        parts: tuple[int | str, ...] = (kind, SEED, step, *(() if j is None else (j, 0)), str(i))
        out.append(draw(Member(w, {}, str(i)), law, random.key(*parts)).reshape(w.shape))
    return out


def rms_by_row(w: Tensor) -> Tensor:
    out = torch.zeros_like(w)
    if w.ndim < 2:
        return out + (w**2).mean().sqrt()
    for r in range(w.shape[0]):
        out[r] = (w[r] ** 2).mean().sqrt()
    return out


def nso(weights: list[Tensor], gradient: Gradient, step: int, o: Mapping[str, Any]) -> list[Tensor]:
    sigma, k, clean = o.get("sigma", 0.01), o.get("k", 1), o.get("clean", 0.0)
    if o.get("schedule") == "linear":
        sigma = sigma * min(1.0, step / (o["schedule_steps"] - 1))
    if o.get("schedule") == "log":
        share = min(1.0, step / (o["schedule_steps"] - 1))
        sigma = 1e-5 ** (1 - share) * sigma**share
    total = [clean * g for g in gradient(weights)] if clean else [torch.zeros_like(w) for w in weights]
    signs = (1, -1) if o.get("two_point", True) else (1,)
    for j in range(k):
        u = noise(weights, "nso", step, j, o.get("noise", "normal"))
        sizes = [rms_by_row(w) if o.get("relative") else torch.ones_like(w) for w in weights]
        for sign in signs:
            there = gradient([w + sign * sigma * x * s for w, x, s in zip(weights, u, sizes)])
            total = [t + (1 - clean) / (len(signs) * k) * g for t, g in zip(total, there)]
    return total


def length(tensors: list[Tensor]) -> float:
    return float(sum((t**2).sum() for t in tensors) ** 0.5)


def sam(weights: list[Tensor], gradient: Gradient, step: int, o: Mapping[str, Any]) -> list[Tensor]:
    g = gradient(weights)
    scale = o.get("rho", 0.05) / (length(g) + 1e-12)
    return gradient([w + scale * x for w, x in zip(weights, g)])


def usam(weights: list[Tensor], gradient: Gradient, step: int, o: Mapping[str, Any]) -> list[Tensor]:
    return gradient([w + o.get("rho", 0.05) * x for w, x in zip(weights, gradient(weights))])


def asam(weights: list[Tensor], gradient: Gradient, step: int, o: Mapping[str, Any]) -> list[Tensor]:
    g = gradient(weights)
    scale = o.get("rho", 0.5) / (length([w.abs() * x for w, x in zip(weights, g)]) + 1e-12)
    return gradient([w + scale * w**2 * x for w, x in zip(weights, g)])


def rsam(weights: list[Tensor], gradient: Gradient, step: int, o: Mapping[str, Any]) -> list[Tensor]:
    shaken = []
    for w, x in zip(weights, noise(weights, "rsam", step, None)):
        size = torch.ones_like(w)
        if w.ndim == 4:
            for a in range(w.shape[0]):
                for b in range(w.shape[1]):
                    size[a, b] = (w[a, b] ** 2).sum().sqrt()
        if w.ndim == 2:
            for a in range(w.shape[0]):
                size[a] = (w[a] ** 2).sum().sqrt()
        shaken.append(o.get("sigma", 0.01) * size * x)
    g = gradient([w + u for w, u in zip(weights, shaken)])
    n = sum((length([a]) + length([u])) ** 2 for a, u in zip(g, shaken)) ** 0.5
    return gradient([w + o.get("rho", 0.05) / (n + 1e-12) * x for w, x in zip(weights, g)])


ROWS = [
    PerturbedRow("NSO", {"sigma": 0.1}, nso, 2),
    PerturbedRow("NSO", {"sigma": 0.1, "k": 3}, nso, 6),
    PerturbedRow("NSO", {"sigma": 0.1, "k": 2, "two_point": False}, nso, 2),
    PerturbedRow("NSO", {"sigma": 0.1, "k": 2, "clean": 0.3}, nso, 5),
    PerturbedRow("NSO", {"sigma": 0.1, "noise": "laplace"}, nso, 2),
    PerturbedRow("NSO", {"sigma": 0.1, "noise": "uniform", "relative": True}, nso, 2),
    PerturbedRow("NSO", {"sigma": 0.2, "schedule": "linear", "schedule_steps": 6}, nso, 2),
    PerturbedRow("NSO", {"sigma": 0.2, "schedule": "log", "schedule_steps": 6}, nso, 2),
    PerturbedRow("SAM", {"rho": 0.1}, sam, 2),
    PerturbedRow("USAM", {"rho": 0.1}, usam, 2),
    PerturbedRow("ASAM", {"rho": 0.4}, asam, 2),
    PerturbedRow("RSAM", {"rho": 0.1, "sigma": 0.1}, rsam, 2),
]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)
# One of each kind of pass, for tests of the frame.
KINDS = [ROWS[0], ROWS[3], ROWS[8], ROWS[11]]
every_kind = pytest.mark.parametrize("row", KINDS, ids=str)


class Net(nn.Module):
    """Convolution into batch norm, dropout, a linear map: statistics, masks, and tensors of 4, 2 and 1 dimensions."""

    def __init__(self, dropout: float = 0.0, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, bias=False)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x)))
        out: Tensor = self.head(self.dropout(x.flatten(1)))
        return out


def make(dtype: torch.dtype = torch.float64, **options: Any) -> Net:
    torch.manual_seed(3)
    return Net(**options).to(dtype)


def data(t: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + t)
    x = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randn(6, 2, generator=generator, dtype=torch.float64).to(dtype)


def loss_of(net: nn.Module, t: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x, y = data(t, dtype)
    loss: Tensor = (net(x) - y).square().mean()
    return loss


def gradient_of(net: nn.Module, t: int) -> Gradient:
    """The gradient as a function of the weights, without touching the net's own."""
    names = [name for name, _ in net.named_parameters()]
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    x, y = data(t)

    def gradient(weights: list[Tensor]) -> list[Tensor]:
        leaves = [w.detach().clone().requires_grad_() for w in weights]
        values = {**dict(zip(names, leaves)), **{k: v.clone() for k, v in buffers.items()}}
        out = torch.func.functional_call(net, values, (x,))
        return list(torch.autograd.grad((out - y).square().mean(), leaves))

    return gradient
