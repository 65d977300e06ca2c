"""Rules around optimizers with 8-bit state: the step is theirs, what rules make of it is exact, checkpoints resume."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import mooring as mo

pytestmark = pytest.mark.hosts

SHAPES = [(64, 128), (40, 3, 3, 3), (64,)]  # the first is large enough for bitsandbytes to quantise its state


def bitsandbytes_adam(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import Adam8bit

    optimizer: torch.optim.Optimizer = Adam8bit(params, lr=1e-2)
    return optimizer


def torchao_adam(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from torchao.optim import Adam8bit

    return Adam8bit(params, lr=1e-2)


every_base = pytest.mark.parametrize("base", [bitsandbytes_adam, torchao_adam])


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    """torchao compiles its step, which needs a C++ compiler; run as written it does the same."""
    with torch.compiler.set_stance("force_eager"):
        yield


def make() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def gradients(t: int, params: list[torch.nn.Parameter], start: list[torch.Tensor]) -> list[torch.Tensor]:
    """Noise, and a pull that turns every five steps, so that the rule has something to hold back."""
    generator = torch.Generator().manual_seed(100 + t)
    pull = 0.3 * (-1) ** (t // 5)
    return [torch.randn(p.shape, generator=generator) + pull * (p.detach() - a) for p, a in zip(params, start)]


def contracted(before: torch.Tensor, after: torch.Tensor, anchor: torch.Tensor, g: torch.Tensor) -> torch.Tensor | None:
    """Selective projection with strength 1 in float64, of the step from `before` to `after`; None where it rests."""
    d, new = before.double() - anchor.double(), after.double() - anchor.double()
    if not -(g.double() * d).sum() < 0 or new.norm() <= d.norm():
        return None
    return anchor.double() + new * d.norm() / new.norm()


@every_base
def test_the_rule_acts_on_what_the_step_did(base: Any) -> None:
    """A twin takes the bare steps, from our weights; without decay its state depends on the gradients alone."""
    params, twins = make(), make()
    anchors = [p.detach().clone() for p in params]
    wrapped, bare = mo.wrap(base(params), [mo.SelectiveProjection(1.0)]), base(twins)
    held = 0
    for t in range(15):
        before = [p.detach().clone() for p in params]
        for p, q, g in zip(params, twins, gradients(t, params, anchors)):
            q.data.copy_(p)
            p.grad, q.grad = g, g.clone()
        bare.step()
        wrapped.step()
        for p, q, old, anchor in zip(params, twins, before, anchors):
            assert p.grad is not None
            expected = contracted(old, q.detach(), anchor, p.grad)
            if expected is None:
                assert torch.equal(p, q)
                continue
            held += 1
            unit = torch.nextafter(p.detach().abs(), torch.tensor(torch.inf)) - p.detach().abs()
            moved = (expected - q.detach().double()).abs() + (q.detach() - old).double().abs()
            assert ((p.detach().double() - expected).abs() <= 0.5 * unit + 16 * 2.0**-24 * moved).all()
    assert held > 5
    assert set(wrapped.state[params[0]]) == {*bare.state[twins[0]], "anchor"}


@every_base
def test_resume_is_bitwise(base: Any) -> None:
    params = make()
    start = [p.detach().clone() for p in params]
    straight = mo.wrap(base(params), [mo.SelectiveProjection(1.0)])

    def train(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], first: int, last: int) -> None:
        for t in range(first, last):
            for p, g in zip(weights, gradients(t, weights, start)):
                p.grad = g
            optimizer.step()

    train(straight, params, 0, 8)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = mo.wrap(base(copies), [mo.SelectiveProjection(1.0)])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(resumed.state[p]["anchor"], a) for p, a in zip(copies, start))
    train(straight, params, 8, 16)
    train(resumed, copies, 8, 16)
    assert all(torch.equal(p, q) for p, q in zip(params, copies))
