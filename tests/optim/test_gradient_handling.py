"""Clipping, unscaling and skipping inside the step, against torch doing the same outside of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from mooring.step.gradients import Screen
from tests.optim.problems import TinyNet, backward, make_net
from tests.optim.table import BY_NAME, OptimizerRow, every_row

Step = Callable[[TinyNet, torch.optim.Optimizer, int], None]


def two_groups(net: TinyNet) -> list[dict[str, Any]]:
    params = list(net.parameters())
    return [{"params": params[:4]}, {"params": params[4:], "lr": 3e-3}]


def train(net: TinyNet, optimizer: torch.optim.Optimizer, steps: int, step: Step) -> None:
    for t in range(1, steps + 1):
        backward(net, t)
        step(net, optimizer, t)


def plain(net: TinyNet, optimizer: torch.optim.Optimizer, t: int) -> None:
    optimizer.step()


def distance(net: nn.Module, other: nn.Module, start: nn.Module) -> float:
    def flat(model: nn.Module) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in model.parameters()])

    return float((flat(net) - flat(other)).norm() / (flat(other) - flat(start)).norm())


def states(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [(k, v) for s in optimizer.state.values() for k, v in sorted(s.items()) if torch.is_tensor(v)]


def assert_same(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Bitwise: weights and all state."""
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        for p, q in zip(a["params"], b["params"], strict=True):
            assert torch.equal(p, q)
    for (name, x), (other, y) in zip(states(ours), states(theirs), strict=True):
        assert name == other
        assert torch.equal(x.cpu().double(), y.cpu().double()), name


# --- Clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.05, 0.5, 1e6])
@every_row
def test_clips_as_torch_does_before_the_step(row: OptimizerRow, limit: float) -> None:
    ours, theirs, start = make_net(), make_net(), make_net()
    inside, outside = row.build(two_groups(ours), max_grad_norm=limit), row.build(two_groups(theirs))
    clipped = 0
    for t in range(1, 31):
        backward(ours, t)
        before = [None if p.grad is None else p.grad.clone() for p in ours.parameters()]
        inside.step()
        for p, g in zip(ours.parameters(), before):
            assert p.grad is None if g is None else torch.equal(p.grad, g), "p.grad is the user's"  # type: ignore[arg-type]
        backward(theirs, t)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        outside.step()
        clipped += int(norm > limit)
        if norm > 0:
            torch.testing.assert_close(inside.grad_norm, norm, rtol=1e-13, atol=0)  # type: ignore[attr-defined]
    assert {0.05: clipped > 15, 0.5: 0 < clipped < 30, 1e6: clipped == 0}[limit]
    error = distance(ours, theirs, start)
    print(f"relative error {error:.2g}")
    assert error <= 1e-11


@every_row
def test_a_limit_that_is_never_reached_changes_no_bit(row: OptimizerRow) -> None:
    ours, theirs = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    limited, free = row.build(two_groups(ours), max_grad_norm=1e9), row.build(two_groups(theirs))
    train(ours, limited, 12, plain)
    train(theirs, free, 12, plain)
    assert_same(limited, free)
    assert free.grad_norm is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["AdamW", "AdamS", "AdamSPD", "SGDP"])
def test_the_limit_is_on_what_was_accumulated(name: str) -> None:
    ours, theirs, start = make_net(), make_net(), make_net()
    row = BY_NAME[name]
    parts, whole = row.build(ours.parameters(), max_grad_norm=0.1), row.build(theirs.parameters(), max_grad_norm=0.1)
    for t in range(1, 9):
        accumulated = [torch.zeros_like(p) for p in ours.parameters()]
        for part in (t, t + 3):
            backward(theirs, part)
            for total, p in zip(accumulated, theirs.parameters()):
                total += 0 if p.grad is None else p.grad
        for p, total in zip(theirs.parameters(), accumulated):
            p.grad = total
        whole.step()
        backward(ours, t)
        kept = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in ours.parameters()]
        backward(ours, t + 3)
        for p, g in zip(ours.parameters(), kept):
            p.grad = g if p.grad is None else p.grad.add_(g)
        parts.step()
    assert distance(ours, theirs, start) <= 1e-12


# --- Gradients that are not finite -------------------------------------------------------------------------------

BROKEN = {3: math.nan, 4: math.inf, 8: -math.inf}


def poisoned(net: TinyNet, optimizer: torch.optim.Optimizer, t: int) -> None:
    if t in BROKEN:
        assert net.head.weight.grad is not None
        net.head.weight.grad[0, 1] = BROKEN[t]
    optimizer.step()


def left_out(net: TinyNet, optimizer: torch.optim.Optimizer, t: int) -> None:
    if t not in BROKEN:
        optimizer.step()


@every_row
def test_a_skipped_step_leaves_no_trace(row: OptimizerRow) -> None:
    ours, theirs = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    skipping = row.build(two_groups(ours), row.remembering, non_finite="skip")
    never = row.build(two_groups(theirs), row.remembering)
    train(ours, skipping, 12, poisoned)
    train(theirs, never, 12, left_out)
    assert_same(skipping, never)
    assert skipping.skipped_steps == len(BROKEN)  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [1, 5])
@every_row
def test_a_device_skips_without_being_asked(row: OptimizerRow, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host may not read the flag, the step is taken and undone: the same bits, from the first step on."""
    monkeypatch.setattr(Screen, "undecided", property(lambda self: self.skip is not None))
    monkeypatch.setattr(Screen, "skip_now", property(lambda self: False))
    monkeypatch.setitem(BROKEN, first, math.nan)
    ours, theirs = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    options = {"max_grad_norm": 5.0, "backend": "eager"}  # the backend of devices that the host does not wait for
    skipping = row.build(two_groups(ours), row.remembering, non_finite="skip", **options)
    monkeypatch.undo()
    never = row.build(two_groups(theirs), row.remembering, **options)
    broken = {**BROKEN, first: math.nan}
    for t in range(1, 13):
        backward(ours, t)
        if t in broken:
            assert ours.head.weight.grad is not None
            ours.head.weight.grad[0, 1] = broken[t]
        with monkeypatch.context() as patch:
            patch.setattr(Screen, "undecided", property(lambda self: self.skip is not None))
            patch.setattr(Screen, "skip_now", property(lambda self: False))
            skipping.step()
        if t not in broken:
            backward(theirs, t)
            never.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(p, q)
    ours_by, theirs_by = list(skipping.state.values()), list(never.state.values())
    for mine, other in zip(ours_by, theirs_by):
        for key, value in other.items():
            assert torch.equal(mine[key].double(), value.double()), key
    assert skipping.skipped_steps == len(broken)  # type: ignore[attr-defined]


@every_row
def test_skipping_and_clipping_run_on_a_device_without_values(row: OptimizerRow) -> None:
    """The meta device has shapes and no numbers: reading the flag, the norm or a step count would raise."""
    shapes = [(4, 5), (3, 2, 2, 2), (6,), (), (0, 3)]
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in shapes]
    optimizer = row.build(params, row.remembering, max_grad_norm=1.0, non_finite="skip")
    for _ in range(3):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
    assert {s["step"].device.type for s in optimizer.state.values() if s["step"].numel() and s} == {"meta", "cpu"}


@pytest.mark.parametrize("limit", [None, 1.0])
def test_not_finite_gradients_go_into_the_weights_as_in_torch(limit: float | None) -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer, other = mo.AdamW(ours.parameters(), max_grad_norm=limit), torch.optim.AdamW(theirs.parameters())
    for net in (ours, theirs):
        net(torch.ones(1, 3)).sum().backward()
        assert net.bias.grad is not None
        net.bias.grad[0] = math.nan
    if limit is not None:
        nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    optimizer.step()
    other.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(p.isnan(), q.isnan())
        assert p.isnan().any() == (limit is not None or p is ours.bias)


# --- GradScaler --------------------------------------------------------------------------------------------------


def scaled_training(
    row: OptimizerRow, use_scaler: bool, unscale: bool = False, overflow: int = 0, **options: Any
) -> tuple[TinyNet, torch.optim.Optimizer, torch.amp.GradScaler]:
    net = make_net(dtype=torch.float32)
    optimizer = row.build(net.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3, enabled=use_scaler)
    for t in range(1, 12):
        backward(net, t)
        scale = scaler.get_scale() if use_scaler else 1.0
        scaler.scale(torch.zeros(1))  # the loss itself is scaled by hand, because `backward` owns it
        for p in net.parameters():
            if p.grad is not None:
                p.grad.mul_(scale)  # a power of two: exact
        if t == overflow:
            if not use_scaler:
                continue
            assert net.norm.weight.grad is not None
            net.norm.weight.grad[2] = math.inf
        if unscale and use_scaler:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return net, optimizer, scaler


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"non_finite": "skip"}], ids=str)
@every_row
def test_a_scaled_loss_takes_the_same_steps(row: OptimizerRow, options: dict[str, Any], unscale: bool) -> None:
    """Through an overflow, which costs one step and halves the scale; stable decay reads the unscaled gradients."""
    scaled, ours, scaler = scaled_training(row, True, unscale=unscale, overflow=6, **options)
    plainly, theirs, _ = scaled_training(row, False, overflow=6, **options)
    assert scaler.get_scale() == 2.0**12 * 2 * 0.5 * 2  # grown at 3, halved at 6, grown at 9
    assert ours._step_supports_amp_scaling == bool(options)  # type: ignore[attr-defined]
    if "max_grad_norm" in options:
        # (g * scale) * (clip / scale) rounds once where g * clip does: the factors are powers of two apart.
        assert distance(scaled, plainly, make_net(dtype=torch.float32)) <= 1e-6
    else:
        assert_same(ours, theirs)


def test_a_scaler_that_asks_nobody_leaves_no_attributes_behind() -> None:
    _, optimizer, _ = scaled_training(BY_NAME["AdamP"], True, max_grad_norm=1.0)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    copy.deepcopy(optimizer)


# --- Arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": 0.0}, r"max_grad_norm must be a number > 0.*got 0\.0"),
        ({"max_grad_norm": -1}, r"max_grad_norm.*got -1"),
        ({"max_grad_norm": math.nan}, r"max_grad_norm.*got nan"),
        ({"max_grad_norm": "1"}, r"max_grad_norm.*got '1'"),
        ({"non_finite": "ignore"}, r"non_finite must be one of 'propagate', 'skip', got 'ignore'"),
        ({"rounding": "up"}, r"rounding must be one of 'nearest', 'stochastic', 'kahan', got 'up'"),
        ({"state_dtype": "float16"}, r"state_dtype must be one of 'float32', 'bfloat16', got 'float16'"),
    ],
)
def test_out_of_range(options: dict[str, Any], message: str) -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message):
        mo.AdamW([p], **options)
    with pytest.raises(ValueError, match=message):
        mo.AdamW([{"params": [p], **options}])


@pytest.mark.parametrize(("name", "value"), [("max_grad_norm", 2.0), ("non_finite", "skip")])
def test_groups_cannot_disagree_on_what_belongs_to_all(name: str, value: Any) -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=f"{name} must be the same in all groups"):
        mo.AdamW([{"params": [p]}, {"params": [q], name: value}])
    optimizer = mo.AdamW([p])
    with pytest.raises(ValueError, match=f"{name} must be the same in all groups"):
        optimizer.add_param_group({"params": [q], name: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q]})
    optimizer.param_groups[1][name] = value
    p.grad = q.grad = torch.ones(2)
    with pytest.raises(ValueError, match=f"{name} must be the same in all groups"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2))


def test_an_unknown_option_names_those_that_exist() -> None:
    with pytest.raises(TypeError, match=r"AdamP\(\).*'clip'.*max_grad_norm, non_finite, rounding, state_dtype"):
        mo.AdamP([nn.Parameter(torch.ones(2))], clip=1.0)  # type: ignore[call-arg]


def test_print_shows_what_differs_from_the_defaults() -> None:
    net = make_net()
    assert "max_grad_norm" not in repr(mo.AdamW(net.parameters()))
    text = repr(mo.AdamW(net.parameters(), max_grad_norm=0.5, non_finite="skip"))
    assert "max_grad_norm=0.5, non_finite=skip" in text
