"""Rules on any torch optimizer: the same as ours where we have it, and nothing changed where a rule does nothing."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

import mooring as mo
from tests.optim.problems import backward, make_net


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, in five lines: an optimizer that torch does not have and that keeps no step count."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                p.sub_(group["lr"] * torch.sign(0.9 * state["exp_avg"] + 0.1 * p.grad))
                state["exp_avg"].lerp_(p.grad, 0.01)


def muon(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Muon([p for p in params if p.ndim == 2 and p.numel()], lr=0.02)


BASES = {
    "Muon": muon,
    "Lion": lambda params: Lion(params, lr=1e-2),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-2),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-2),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def train(net: Any, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for t in range(start, stop):
        backward(net, t)
        optimizer.step()


def weights(net: Any) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()])


@pytest.mark.parametrize(
    ("base", "rules", "ours"),
    [
        (
            lambda p: torch.optim.Adam(p, lr=1e-2),
            [mo.SelectiveProjection(0.7)],
            lambda p: mo.AdamSPD(p, lr=1e-2, strength=0.7),
        ),
        (
            lambda p: torch.optim.Adam(p, lr=1e-2),
            [mo.RadialProjection(delta=0.5), mo.TrustRatio()],
            lambda p: mo.Adam(p, lr=1e-2, rules=[mo.RadialProjection(delta=0.5), mo.TrustRatio()]),
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
            [mo.SelectiveProjection()],
            lambda p: mo.SGDSPD(p, lr=0.05, momentum=0.9),
        ),
    ],
    ids=["AdamSPD", "Adam, projection and trust ratio", "SGDSPD"],
)
def test_equals_the_named_optimizer(base: Any, rules: list, ours: Any) -> None:
    nets = [make_net(), make_net()]
    start = weights(nets[0])
    train(nets[0], mo.wrap(base(nets[0].parameters()), rules), 1, 100)
    train(nets[1], ours(nets[1].parameters()), 1, 100)
    moved = (weights(nets[1]) - start).norm()
    assert (weights(nets[0]) - weights(nets[1])).norm() <= 1e-9 * moved


@every_base
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rules_that_do_nothing_change_no_bit(base: Any, dtype: torch.dtype) -> None:
    nets = [make_net(dtype=dtype), make_net(dtype=dtype)]
    off = [mo.RadialProjection(delta=0.0), mo.SelectiveProjection(0.0)]
    train(nets[0], mo.wrap(base(nets[0].parameters()), off), 1, 12)
    train(nets[1], base(nets[1].parameters()), 1, 12)
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), nets[1].parameters()))


@every_base
def test_selective_projection_keeps_any_base_nearer(base: Any) -> None:
    nets = [make_net(), make_net()]
    start = weights(nets[0])
    train(nets[0], mo.wrap(base(nets[0].parameters()), [mo.SelectiveProjection(1.0)]), 1, 100)
    train(nets[1], base(nets[1].parameters()), 1, 100)
    assert 0 < (weights(nets[0]) - start).norm() < (weights(nets[1]) - start).norm()


@every_base
def test_resumes_bitwise_through_a_file(base: Any) -> None:
    # float32: torch's NAdam keeps a float32 product that a float64 parameter's load would widen.
    nets = [make_net(dtype=torch.float32), make_net(dtype=torch.float32)]
    straight = mo.wrap(base(nets[0].parameters()), [mo.SelectiveProjection()])
    train(nets[0], straight, 1, 30)
    first = mo.wrap(base(nets[1].parameters()), [mo.SelectiveProjection()])
    train(nets[1], first, 1, 15)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = mo.wrap(base(nets[1].parameters()), [mo.SelectiveProjection()])
    second.load_state_dict(torch.load(file, weights_only=True))
    train(nets[1], second, 15, 30)
    assert torch.equal(weights(nets[0]), weights(nets[1]))


def test_a_checkpoint_without_the_anchor_is_refused() -> None:
    net = make_net()
    base = BASES["AdamW"](net.parameters())
    train(net, base, 1, 5)
    with pytest.raises(RuntimeError, match="holds no anchor"):
        mo.wrap(base, [mo.SelectiveProjection()]).step()
    fresh = mo.wrap(BASES["AdamW"](make_net().parameters()), [mo.SelectiveProjection()])
    with pytest.raises(ValueError, match="holds no anchor"):
        fresh.load_state_dict(base.state_dict())


def test_one_learning_rate_and_one_state() -> None:
    net = make_net()
    base = BASES["AdamW"](net.parameters())
    wrapped = mo.wrap(base, [mo.SelectiveProjection()])
    scheduler = torch.optim.lr_scheduler.LambdaLR(wrapped, lambda t: 0.5**t)
    train(net, wrapped, 1, 3)
    scheduler.step()
    assert base.param_groups[0]["lr"] == 0.5e-2
    assert wrapped.param_groups is base.param_groups and wrapped.state is base.state
    wrapped.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))]})
    assert base.param_groups[-1]["strength"] == 1.0
    assert "step of AdamW -> selective projection" in repr(wrapped)


def test_a_dry_run_captures_nothing() -> None:
    net = make_net()
    wrapped = mo.wrap(BASES["AdamW"](net.parameters()), [mo.SelectiveProjection()])
    wrapped.param_groups[0]["lr"] = 0.0
    train(net, wrapped, 1, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    pretrained = net.mix.weight.detach().clone()
    wrapped.param_groups[0]["lr"] = 1e-2
    train(net, wrapped, 2, 4)
    assert torch.equal(wrapped.state[net.mix.weight]["anchor"], pretrained)


def test_deepcopy_keeps_groups_and_state_shared() -> None:
    net = make_net()
    wrapped = mo.wrap(BASES["AdamW"](net.parameters()), [mo.SelectiveProjection()])
    train(net, wrapped, 1, 4)
    other = copy.deepcopy(wrapped)
    assert other.state is other.base.state and other.base is not wrapped.base
    assert repr(other) == repr(wrapped)


def test_closure_is_run_once() -> None:
    net = make_net()
    wrapped = mo.wrap(BASES["AdamW"](net.parameters()), [mo.SelectiveProjection()])
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        backward(net, 1)
        calls.append(1)
        return 3.0

    assert wrapped.step(closure) == 3.0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([mo.CoupledDecay(0.1)], "CoupledDecay acts inside the moments"),
        ([mo.StableDecay(0.1)], "StableDecay acts inside the moments"),
        ([mo.DecoupledDecay(0.1)], "AdamW has an option weight_decay itself"),
        ([mo.SelectiveProjection(), mo.RadialProjection()], r"list them as \[RadialProjection"),
    ],
)
def test_rules_that_cannot_work_are_refused(rules: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mo.wrap(BASES["AdamW"]([torch.nn.Parameter(torch.ones(2, 2))]), rules)


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"base must be a torch.optim.Optimizer, got dict"):
        mo.wrap({}, [])  # type: ignore[arg-type]


def test_decay_toward_the_anchor_for_a_base_without_decay() -> None:
    net = make_net()
    wrapped = mo.wrap(Lion(net.parameters(), lr=0.0), [mo.DecoupledDecay(1.0, toward="anchor")])
    train(net, wrapped, 1, 2)
    wrapped.param_groups[0]["lr"] = 0.1
    start = weights(net)
    train(net, wrapped, 2, 60)
    free = make_net()
    train(free, Lion(free.parameters(), lr=0.1), 2, 60)
    assert (weights(net) - start).norm() < (weights(free) - start).norm()
