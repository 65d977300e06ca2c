"""A tiny real network with every kind of parameter, and a schedule of missing and zero gradients."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 7
BATCHES = 16


class TinyNet(nn.Module):
    """Embedding, a linear map into LayerNorm (scale invariant as a whole), conv into BN (by row), 1-D and 0-D weights.

    The last word of the vocabulary never occurs, so one row of the embedding has a zero gradient for ever. Biases that
    a norm layer cancels are left out: their gradient is rounding noise, and no two programs agree about noise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.mix = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.empty = nn.Parameter(torch.empty(0, 3))

    def forward(self, words: Tensor) -> Tensor:
        x = self.norm(self.mix(self.embedding(words)))
        x = torch.tanh(self.bn(self.conv(x[:, None])))
        out: Tensor = torch.tanh(self.scale * self.head(x.mean(dim=(2, 3))))
        return out


def make_net(seed: int = 0, dtype: torch.dtype = torch.float64) -> TinyNet:
    """The net with weights away from their symmetric starting values (norm weights 1, biases 0)."""
    torch.manual_seed(seed)
    net = TinyNet().to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, dtype=torch.float64).to(dtype))
    return net


def batch(t: int) -> tuple[Tensor, Tensor]:
    """Batch number t: noise around a rule, so that gradients stay noisy."""
    return _batch(t % BATCHES)


@cache
def _batch(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + index)
    words = torch.randint(0, VOCABULARY - 1, (8, 4), generator=generator)
    noise = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    target = torch.stack([(words[:, 0] > 2).double(), (words.sum(1) % 3).double() - 1], dim=1)
    return words, target + 0.5 * noise


def backward(net: TinyNet, t: int) -> None:
    """Gradients at step t, then the schedule: some missing (one of them from the first step), some exactly zero."""
    net.zero_grad(set_to_none=True)
    words, target = batch(t)
    loss = ((net(words) - target.to(net.scale.dtype)) ** 2).mean()
    loss.backward()
    net.empty.grad = torch.zeros_like(net.empty)
    if t % 7 == 0:
        net.conv.weight.grad = None
        net.scale.grad = None
    if t % 11 == 5:
        net.mix.weight.grad = torch.zeros_like(net.mix.weight)
        net.norm.bias.grad = torch.zeros_like(net.norm.bias)
    if t % 50 == 20:
        for p in net.parameters():
            p.grad = torch.zeros_like(p) if p.grad is not None else None
    if t % 50 == 30:
        net.zero_grad(set_to_none=True)


def train_elsewhere(data: bytes, start: int, stop: int, file: str) -> None:
    """In a spawned process: step a pickled (net, optimizer), which share their parameters, and save the weights."""
    net, optimizer = pickle.loads(data)
    for t in range(start, stop):
        backward(net, t)
        optimizer.step()
    torch.save([p.detach() for p in net.parameters()], file)


def make_groups(net: TinyNet, hyper: dict[str, Any]) -> list[dict[str, Any]]:
    """Four groups: different lr, decay and (for Adam) beta2; one of them empty. Matrices in the first two."""
    second: dict[str, Any] = {"lr": hyper["lr"] * 0.5}
    if "weight_decay" in hyper:
        second["weight_decay"] = hyper["weight_decay"] * 2
    if "betas" in hyper:
        second["betas"] = (hyper["betas"][0], hyper["betas"][1] * 0.9)
    matrices = [net.embedding.weight, net.mix.weight, net.empty]
    vectors = [p for p in net.parameters() if p.dim() < 2]
    return [
        {"params": matrices},
        {"params": [net.conv.weight, net.head.weight, net.unused], **second},
        {"params": vectors, "lr": hyper["lr"] * 2},
        {"params": []},
    ]


def gradients(groups: Sequence[dict[str, Any]]) -> list[list[Tensor | None]]:
    return [[p.grad for p in group["params"]] for group in groups]
