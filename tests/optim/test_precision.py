"""float32, bfloat16 and float16 weights against the float64 reference, one step at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from tests.optim.precision import Scale, step_bound, ulp
from tests.optim.table import OptimizerRow, every_row, every_variant
from tests.reference import spd

SHAPES = [torch.Size(s) for s in ((6, 40), (4, 3, 3, 3), (50,), (), (1, 9))]
STEPS = 12
LOW = [torch.float32, torch.bfloat16, torch.float16]


def draw(generator: torch.Generator, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    return [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in SHAPES]


@pytest.mark.parametrize("dtype", LOW, ids=str)
@every_variant
def test_one_step_is_as_good_as_float32_allows(row: OptimizerRow, variant: str, dtype: torch.dtype) -> None:
    """Before each step the reference takes over our (rounded) weights, so that only one step's error is judged."""
    generator = torch.Generator().manual_seed(11)
    params = [nn.Parameter(x) for x in draw(generator, dtype)]
    optimizer = row.build(params, variant)
    reference = row.reference([{**row.hyper(variant), "params": params}])
    scale, group = Scale(SHAPES), reference.groups[0]
    worst = 0.0
    for t in range(STEPS):
        before = [p.detach().double() for p in params]
        group["params"] = [b.clone() for b in before]
        for p, g in zip(params, draw(generator, dtype, 0.1)):
            p.grad = g
        scale.see(params, group["weight_decay"] if row.reference.coupled else 0.0)
        optimizer.step()
        reference.step([[p.grad for p in params]])
        for j, (p, b, expected) in enumerate(zip(params, before, group["params"])):
            assert p.dtype == dtype
            direction = scale.direction(j, reference.states[0][j], group)
            bound = step_bound(b, expected, direction, group, t, dtype)
            excess = (p.detach().double() - expected).abs() / bound
            worst = max(worst, float(excess.max()))
            assert (excess <= 1).all(), f"step {t}, shape {tuple(p.shape)}: {float(excess.max()):.3g} times the bound"
    print(f"{row.name} {variant} {dtype}: {worst:.2f} of the bound, nearest decision {min(reference.margins):.2g}")
    assert min(reference.margins) > 3e-6, "a decision lies within rounding: choose another seed"


@every_row
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_moments_of_half_precision_weights_are_float32(row: OptimizerRow, dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.randn(4, 4).to(dtype)), nn.Parameter(torch.randn(4).to(dtype))]
    optimizer = row.build(params, "momentum" if not row.adaptive else "default")
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p in params:
        moments = {k: v for k, v in optimizer.state[p].items() if k.startswith(("exp_avg", "momentum")) and v.dim()}
        assert moments
        assert {v.dtype for v in moments.values()} == {torch.float32}


@every_row
def test_one_group_may_mix_dtypes(row: OptimizerRow) -> None:
    """float64, float32 and bfloat16 weights side by side, as after casting all but the norm layers."""
    generator = torch.Generator().manual_seed(13)
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float32, torch.float64]
    params = [nn.Parameter(x.to(d)) for x, d in zip(draw(generator, torch.float64), dtypes)]
    optimizer = row.build(params)
    reference = row.reference([{**row.hyper(), "params": params}])
    scale, group = Scale(SHAPES), reference.groups[0]
    for t in range(6):
        before = [p.detach().double() for p in params]
        group["params"] = [b.clone() for b in before]
        for p, g in zip(params, draw(generator, torch.float64, 0.1)):
            p.grad = g.to(p.dtype)
        scale.see(params, group["weight_decay"] if row.reference.coupled else 0.0)
        optimizer.step()
        reference.step([[p.grad for p in params]])
        for j, (p, b, expected) in enumerate(zip(params, before, group["params"])):
            bound = step_bound(b, expected, scale.direction(j, reference.states[0][j], group), group, t, p.dtype)
            assert ((p.detach().double() - expected).abs() <= bound).all(), f"step {t}, {p.dtype}"


@every_row
def test_small_bfloat16_steps_are_rounded_once_and_to_nearest(row: OptimizerRow) -> None:
    """Weights of 1 and steps of a tenth of a bf16 unit must stay put, steps of 0.6 units must move by one unit."""
    unit = float(ulp(torch.tensor(1.0), torch.bfloat16))
    for share, expected in ((0.1, 1.0), (0.6, 1 - unit / 2)):
        p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        p.grad = torch.ones_like(p)
        # The unit below 1 is half the unit above it.
        lr = share * unit / 2
        free: dict[str, Any] = {"anchor": None} if row.anchored else {}
        row.build([p], lr=lr, weight_decay=0.0, **free).step()
        assert p.detach().float().tolist() == [expected] * 3


def test_spd_contraction_keeps_its_digits_at_a_small_learning_rate() -> None:
    """r is a difference of nearly equal norms: formed from norms in float32 it would be wrong in its third digit.

    Weights near 0 and anchors near 1 make that visible, since the rounding of the weights is then no excuse. The
    buffer still leads away from the anchor while the new gradient already points back: the method contracts.
    """
    lr, generator = 1e-5, torch.Generator().manual_seed(2)
    start = 1 + 0.2 * torch.randn(64, 64, generator=generator)
    p = nn.Parameter(start.clone())
    optimizer = mo.SGDSPD([p], lr=lr, momentum=0.9)
    p.grad = 1 + 0.5 * torch.randn(64, 64, generator=generator)
    buffer = p.grad.double()
    optimizer.step()
    with torch.no_grad():
        p.copy_(1e-4 * torch.randn(64, 64, generator=generator))
    before = p.detach().double()
    p.grad = -0.1 * torch.rand(64, 64, generator=generator)
    reference = spd.SGDSPD([{"params": [before], "lr": lr, "momentum": 0.9}])
    reference.states[0][0].update(anchor=start.double(), buffer=buffer)
    reference.step([[p.grad]])
    optimizer.step()
    assert reference.branches == {"contracted": 1}
    error = (p.detach().double() - reference.groups[0]["params"][0]).abs().max()
    assert error < 1e-5 * lr * buffer.abs().max()
