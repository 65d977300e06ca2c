"""Conversions between methods: one step of both takes the same fraction."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo

SHAPES = [(4, 3), (5,), ()]


def params(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def give_gradients(weights: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for i, p in enumerate(weights):
        p.grad = (0.1 + i) * torch.randn(p.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("base", [torch.optim.AdamW, mo.AdamW], ids=["torch", "mooring"])
def test_adams_shrinks_as_adamw_does(base: type[torch.optim.Optimizer], amsgrad: bool) -> None:
    """Steps of AdamW, then one more of it and of AdamS from the same state: the same weights."""
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": amsgrad}
    weights = params()
    adamw = base([{"params": weights[:2]}, {"params": weights[2:], "lr": 0.02}], weight_decay=3.0, **options)
    for t in range(5):
        give_gradients(weights, t)
        adamw.step()
    before, state = copy.deepcopy(weights), copy.deepcopy(adamw.state_dict())
    give_gradients(weights, 5)
    adamw.step()

    decay = mo.convert.stable_from_decoupled(3.0, adamw)
    assert decay != pytest.approx(3.0, rel=0.1)
    assert mo.convert.decoupled_from_stable(decay, adamw) == pytest.approx(3.0, rel=1e-14)
    adams = mo.AdamS([{"params": before[:2]}, {"params": before[2:]}], **options)
    for group in state["param_groups"]:
        group["weight_decay"] = decay
    adams.load_state_dict(state)
    give_gradients(before, 5)
    adams.step()
    for p, q in zip(weights, before):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)


def test_sgds_shrinks_as_decoupled_decay_does() -> None:
    ours, theirs = params(), params()
    sgdw = mo.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.5, rules=[mo.DecoupledDecay(0.3)])
    sgds = mo.SGDS(ours, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=mo.convert.stable_from_decoupled(0.3, sgdw))
    for t in range(4):
        for weights, optimizer in ((ours, sgds), (theirs, sgdw)):
            give_gradients(weights, t)
            optimizer.step()
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)


def test_the_mean_is_that_of_the_definition() -> None:
    weights = params()
    optimizer = mo.AdamS(weights, lr=0.01, betas=(0.0, 0.75))
    squares: list[list[Tensor]] = []
    for t in range(3):
        give_gradients(weights, t)
        squares.append([p.grad.square() for p in weights if p.grad is not None])
        optimizer.step()
    elements = [
        (0.25 * a + 0.75 * (0.25 * b + 0.75 * 0.25 * c)) / (1 - 0.75**3) for c, b, a in zip(*squares, strict=True)
    ]
    mean = torch.cat([e.flatten() for e in elements]).mean()
    assert mo.convert.mean_second_moment(optimizer) == pytest.approx(float(mean), rel=1e-12)


def test_decay_to_the_anchor_takes_as_much_as_selective_projection() -> None:
    """On a step that pulls back: SPD's fraction of the distance, found from the weights, is L2-SP's on its step."""
    lr, strength = 0.05, 0.7
    weights, plain = params(), params()
    anchors = [p.detach().clone() for p in weights]
    optimizers = [mo.SGDSPD(weights, lr=lr, strength=strength), mo.SGD(plain, lr=lr)]
    optimizers[0].record(every=1)
    for t in range(6):
        with torch.no_grad():
            for p, q in zip(plain, weights):
                p.copy_(q)
        for group in (weights, plain):
            give_gradients(group, t)
            if t == 5:  # back and far beyond, in all tensors
                for p, a in zip(group, anchors):
                    p.grad = (p.detach() - a) * 80
        for optimizer in optimizers:
            optimizer.step()
    seen = optimizers[0].telemetry()
    assert seen["model/selective_projection/contracted"] == 1
    decay = mo.convert.l2sp_from_strength(strength, seen, lr)
    assert mo.convert.strength_from_l2sp(decay, [seen, seen], lr) == pytest.approx(strength, rel=1e-12)
    with torch.no_grad():
        taken = [1 - float((p - a).norm() / (q - a).norm()) for p, q, a in zip(weights, plain, anchors)]

    held = [nn.Parameter(a.clone()) for a in anchors]
    l2sp = mo.SGD(held, lr=lr, rules=[mo.DecoupledDecay(decay, toward="anchor")])
    for gradient in (torch.ones_like, torch.zeros_like):  # away, then a step of decay alone
        before = [float((p.detach() - a).norm()) for p, a in zip(held, anchors)]
        for p in held:
            p.grad = gradient(p)
        l2sp.step()
    shrink = [1 - float((p.detach() - a).norm()) / b for p, a, b in zip(held, anchors, before)]
    mean = sum(taken) / len(taken)
    assert all(s == pytest.approx(mean, rel=1e-9) for s in shrink)
    assert mean > 0.05


def test_steps_without_a_pull_count_as_zero() -> None:
    share, ratio = "model/selective_projection/contracted", "model/selective_projection/ratio"
    steps = [{share: 0.5, ratio: 0.02}, {share: 0.0}, {share: 1.0, ratio: 0.01}, {share: 0.0}]
    assert mo.convert.l2sp_from_strength(2.0, steps, lr=0.1) == pytest.approx(2.0 * 0.005 / 0.1)


def test_errors_name_what_is_missing() -> None:
    weights = params()
    fresh = mo.AdamW(weights, lr=0.1)
    with pytest.raises(ValueError, match="no parameter has a second moment"):
        mo.convert.stable_from_decoupled(0.1, fresh)
    for p in weights:
        p.grad = torch.zeros_like(p)
    fresh.param_groups[0]["lr"] = 0.2
    fresh.step()
    with pytest.raises(ValueError, match="all its gradients were zero"):
        mo.convert.stable_from_decoupled(0.1, fresh)
    with pytest.raises(ValueError, match="Adagrad has neither betas nor a momentum"):
        mo.convert.stable_from_decoupled(0.1, torch.optim.Adagrad(weights))
    mixed = torch.optim.SGD([{"params": weights[:1], "momentum": 0.9}, {"params": weights[1:]}], lr=0.1)
    with pytest.raises(ValueError, match=r"must be one number > 0, got \[1\.0, 10\.0"):
        mo.convert.stable_from_decoupled(0.1, mixed)
    with pytest.raises(ValueError, match="it lacks 'model/selective_projection/contracted'"):
        mo.convert.l2sp_from_strength(1.0, {"model/weights/norm": 1.0}, lr=0.1)
    quiet = {"model/selective_projection/contracted": 0.0}
    with pytest.raises(ValueError, match="lr must be a finite number > 0, got 0"):
        mo.convert.l2sp_from_strength(1.0, quiet, lr=0)
    with pytest.raises(ValueError, match="no tensor was pulled back"):
        mo.convert.strength_from_l2sp(1.0, quiet, lr=0.1)
