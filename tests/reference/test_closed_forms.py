"""The references themselves, against torch where torch has the method and against closed forms elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import adamp, base, spd, swd


def run(reference: base.Reference, grads: list[list[Tensor | None]]) -> list[Tensor]:
    for g in grads:
        reference.step([g])
    params: list[Tensor] = reference.groups[0]["params"]
    return params


def sequence(seed: int = 0, steps: int = 40) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (), (2, 2, 2)]

    def draw() -> list[Tensor]:
        return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]

    start, grads = draw(), [list[Tensor | None](draw()) for _ in range(steps)]
    for t in range(0, steps, 5):
        grads[t][1] = None
    return start, grads


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amsgrad": True, "betas": (0.7, 0.8)},
        {"maximize": True, "weight_decay": 0.3},
        {"betas": (0.0, 0.5), "eps": 1e-3},
    ],
    ids=str,
)
def test_adamw_is_torchs(options: dict[str, Any]) -> None:
    check_against_torch(base.AdamW, torch.optim.AdamW, options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"dampening": 0.5, "maximize": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_sgd_is_torchs(options: dict[str, Any]) -> None:
    check_against_torch(base.SGD, torch.optim.SGD, options)


def check_against_torch(
    mine: type[base.Reference], theirs: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    start, grads = sequence()
    params = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = theirs(params, lr=0.01, **options)  # type: ignore[call-arg]
    for step in grads:
        for p, g in zip(params, step):
            p.grad = g
        optimizer.step()
    for ours, p in zip(run(mine([{"params": start, "lr": 0.01, **options}]), grads), params):
        torch.testing.assert_close(ours, p.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_methods_with_their_own_part_off_are_the_plain_ones(amsgrad: bool) -> None:
    start, grads = sequence()
    common = {"params": start, "lr": 0.01, "amsgrad": amsgrad}
    plain = run(base.AdamW([{**common, "weight_decay": 0.0}]), grads)
    for off in (
        adamp.AdamP([{**common, "delta": 0.0}]),
        swd.AdamS([{**common, "weight_decay": 0.0}]),
        spd.AdamSPD([{**common, "strength": 0.0}]),
        spd.AdamSPD([{**common, "anchor": None}]),
    ):
        for x, y in zip(run(off, grads), plain):
            assert torch.equal(x, y), type(off).__name__
    decayed = run(base.AdamW([{**common, "weight_decay": 0.3}]), grads)
    toward_zero = run(spd.AdamSPD([{**common, "weight_decay": 0.3, "strength": 0.0, "anchor": "zero"}]), grads)
    for x, y in zip(toward_zero, decayed):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)


def test_adamp_removes_the_radial_part_by_row_and_by_tensor() -> None:
    theta = torch.tensor([[3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    tangent_by_row = torch.tensor([[0.0, 1.0], [-2.0, 0.0]], dtype=torch.float64)
    by_row = adamp.AdamP([{"params": [theta], "lr": 0.1}])
    by_row.step([[tangent_by_row]])
    # Step 1 of Adam is -lr sign(g) (up to eps); the zero entries of g leave nothing radial to remove.
    expected = theta - 0.1 * tangent_by_row.sign()
    torch.testing.assert_close(by_row.groups[0]["params"][0], expected, rtol=1e-7, atol=0)
    assert by_row.branches == {"rows": 1}
    # Radial within each row, tangent as a whole: <g, theta> = 3*2 - 2*3 = 0, and sign(g) is not tangent.
    radial_by_row = torch.tensor([[2.0, 0.0], [0.0, -3.0]], dtype=torch.float64)
    by_tensor = adamp.AdamP([{"params": [theta], "lr": 0.1, "eps": 1e-12}])
    by_tensor.step([[radial_by_row]])
    u, hat = radial_by_row.sign(), theta / math.sqrt(13)
    expected = theta - 0.1 * (u - hat * float((hat * u).sum()))
    torch.testing.assert_close(by_tensor.groups[0]["params"][0], expected, rtol=1e-10, atol=1e-10)
    assert by_tensor.branches == {"tensor": 1}


def test_sgdp_starts_its_buffer_at_zero() -> None:
    start = torch.zeros(3, dtype=torch.float64)
    g = torch.ones(3, dtype=torch.float64)
    reference = adamp.SGDP([{"params": [start], "lr": 1.0, "momentum": 0.9, "dampening": 0.75}])
    reference.step([[g]])
    assert torch.equal(reference.groups[0]["params"][0], -0.25 * g)
    stable = swd.SGDS([{"params": [start], "lr": 1.0, "momentum": 0.9, "dampening": 0.75}])
    stable.step([[g]])
    assert torch.equal(stable.groups[0]["params"][0], -g)


def test_adams_first_step_by_hand() -> None:
    """v hat = g^2 at step 1, so v bar is the mean square of all gradients."""
    x, y = torch.tensor([2.0, 2.0], dtype=torch.float64), torch.tensor([[5.0]], dtype=torch.float64)
    gx, gy = torch.tensor([3.0, -4.0], dtype=torch.float64), torch.tensor([[5.0]], dtype=torch.float64)
    reference = swd.AdamS([{"params": [x, y], "lr": 0.1, "weight_decay": 0.5, "eps": 0.0}])
    reference.step([[gx, gy]])
    keep = 1 - 0.1 * 0.5 / math.sqrt((9 + 16 + 25) / 3)
    torch.testing.assert_close(reference.groups[0]["params"][0], keep * x - 0.1 * gx.sign())
    torch.testing.assert_close(reference.groups[0]["params"][1], keep * y - 0.1 * gy.sign())


def test_spd_with_strength_one_returns_to_the_previous_radius() -> None:
    start, grads = sequence(steps=60)
    reference = spd.SGDSPD([{"params": start[:1], "lr": 0.05, "anchor": "zero"}])
    radius, contracted = base.norm(start[0]), 0
    for g in grads:
        before, plain = reference.groups[0]["params"][0], g[0]
        assert plain is not None
        moved = before - 0.05 * plain
        reference.step([g[:1]])
        after = base.norm(reference.groups[0]["params"][0])
        outward = float((plain * before).sum()) > 0 and base.norm(moved) > radius
        contracted += outward
        assert after == pytest.approx(radius if outward else base.norm(moved), rel=1e-14)
        radius = after
    assert contracted > 0


def test_missing_and_zero_gradients() -> None:
    theta = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    nothing = torch.zeros_like(theta)
    for reference in (
        adamp.AdamP([{"params": [theta], "weight_decay": 1.0, "lr": 0.1}]),
        adamp.SGDP([{"params": [theta], "weight_decay": 1.0, "lr": 0.1}]),
    ):
        reference.step([[None]])
        assert torch.equal(reference.groups[0]["params"][0], theta)
        reference.step([[nothing]])
        torch.testing.assert_close(reference.groups[0]["params"][0], 0.9 * theta)
    stable = swd.AdamS([{"params": [theta], "weight_decay": 1.0, "lr": 0.1}])
    stable.step([[nothing]])
    assert torch.equal(stable.groups[0]["params"][0], theta)
