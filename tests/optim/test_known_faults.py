"""Faults of released implementations, each of which must never appear here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened

import mooring as mo
from tests.optim.table import BY_NAME, OptimizerRow, adam_rows, anchored_rows, every_row

PROJECTING = pytest.mark.parametrize("name", ["AdamP", "SGDP"])


def ones(*shape: int, value: float = 1.0, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, value, dtype=dtype))


# --- AdamP and SGDP ----------------------------------------------------------------------------------------------


@PROJECTING
def test_a_channels_last_convolution_trains(name: str) -> None:
    """`view` on a channels_last weight raises."""
    net = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = BY_NAME[name].build(net.parameters())
    net(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)).sum().backward()
    optimizer.step()
    assert net.weight.is_contiguous(memory_format=torch.channels_last)


@PROJECTING
def test_a_zero_gradient_does_not_cut_the_decay(name: str) -> None:
    """Its cosine is 0, which must not be read as "scale invariant"."""
    p = ones(3, 4)
    p.grad = torch.zeros_like(p)
    BY_NAME[name].build([p], lr=0.1, weight_decay=0.5, wd_ratio=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.95), rtol=1e-12, atol=0)


@PROJECTING
def test_the_cosine_has_an_absolute_value(name: str) -> None:
    """Without it a gradient along -theta (cosine -1) would pass the test and be projected away entirely."""
    p = ones(3, 4)
    p.grad = -torch.ones_like(p)
    BY_NAME[name].build([p], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1.1), rtol=1e-6, atol=0)


@PROJECTING
def test_each_norm_of_the_cosine_is_clamped_on_its_own(name: str) -> None:
    """|g| = 1e-12 < eps, along theta: cos = 1e-12/eps = 1e-4, below the threshold, so the step is projected.

    Clamping the product of the norms instead would give cos = 1 and no projection.
    """
    p = ones(1, 100, value=1e4)
    g = torch.full_like(p, 1e-13)
    p.grad = g.clone()
    BY_NAME[name].build([p], lr=0.1, weight_decay=0.5, wd_ratio=0.0).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1e4), rtol=1e-10, atol=0)


@PROJECTING
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_eps_does_not_underflow_into_nan(name: str, dtype: torch.dtype) -> None:
    """1e-8 is 0 in float16: zero gradients or zero weights then gave 0/0."""
    p, q, r = ones(3, 4, dtype=dtype), ones(3, 4, value=0.0, dtype=dtype), ones(2, 2, dtype=dtype)
    optimizer = BY_NAME[name].build([p, q, r])
    for _ in range(3):
        p.grad, q.grad = torch.zeros_like(p), torch.ones_like(q)
        r.grad = torch.tensor([[0.0, 0.0], [0.0, 6e-8]], dtype=dtype)
        optimizer.step()
    for x in (p, q, r):
        assert torch.isfinite(x).all()


@every_row
def test_flat_shards_do_not_lose_their_method_silently(row: OptimizerRow) -> None:
    """FSDP version 1 turns weights into 1-D pieces, which would take every step as vectors do: no projection, local
    norms, a mean per shard. Methods that need no sums serve them; the others refuse.
    """
    p = ones(12)
    _set_fsdp_flattened(p)
    if row.scope == "pointwise":
        optimizer = row.build([p])
        p.grad = torch.ones_like(p)
        optimizer.step()
    else:
        with pytest.raises(ValueError, match=r"parameter 0.*FSDP version 1.*fully_shard"):
            row.build([p])


def test_one_zero_row_does_not_stop_the_row_view() -> None:
    p = ones(2, 2)
    p.grad = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    optimizer = mo.SGDP([p], lr=0.1, weight_decay=1.0, wd_ratio=0.0)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([[0.9, 1.1], [1.0, 1.0]], dtype=torch.float64))


def test_sgdp_divides_its_decay_by_one_minus_momentum_for_vectors_too() -> None:
    p = ones(4)
    p.grad = torch.zeros_like(p)
    mo.SGDP([p], lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.1 * 0.1 / (1 - 0.9)), rtol=1e-12, atol=0)


def test_project_buffer_keeps_the_projected_buffer_and_the_default_the_papers() -> None:
    for project_buffer in (False, True):
        p = ones(1, 2)
        optimizer = mo.SGDP([p], lr=0.1, momentum=0.5, delta=100.0, project_buffer=project_buffer)
        p.grad = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
        optimizer.step()
        kept = optimizer.state[p]["momentum_buffer"]
        expected = [[1.0, -1.0]] if project_buffer else [[3.0, 1.0]]
        torch.testing.assert_close(kept, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)


# --- State that a step must not corrupt --------------------------------------------------------------------------


@adam_rows
@pytest.mark.parametrize("amsgrad", [False, True])
def test_moments_are_not_bias_corrected_in_place(row: OptimizerRow, amsgrad: bool) -> None:
    p = ones(2, 3)
    optimizer = row.build([p], betas=(0.9, 0.99), weight_decay=0.0, amsgrad=amsgrad)
    m = v = v_max = 0.0
    for t in range(6):
        g = (-2.0) ** (t % 3)
        p.grad = torch.full_like(p, g)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        v_max = max(v, v_max)
        state = optimizer.state[p]
        torch.testing.assert_close(state["exp_avg"], torch.full_like(p, m), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state["exp_avg_sq"], torch.full_like(p, v), rtol=1e-12, atol=1e-14)
        if amsgrad:
            torch.testing.assert_close(state["max_exp_avg_sq"], torch.full_like(p, v_max), rtol=1e-12, atol=1e-14)
        assert float(state["step"]) == t + 1


@adam_rows
def test_step_counts_belong_to_parameters(row: OptimizerRow) -> None:
    """A parameter that joins late is corrected for its own age: its first Adam step has size lr."""
    p, late = ones(3), ones(3)
    optimizer = row.build([p, late], lr=0.1, weight_decay=0.0)
    for t in range(10):
        p.grad = torch.ones_like(p)
        late.grad = torch.ones_like(late) if t == 9 else None
        optimizer.step()
    assert float(optimizer.state[late]["step"]) == 1
    torch.testing.assert_close(late.detach(), torch.full_like(late, 0.9), rtol=1e-6, atol=0)


@every_row
def test_optimizers_do_not_share_state_through_addresses(row: OptimizerRow) -> None:
    """State keyed by data_ptr collides between views of one storage; it is keyed by the Parameter."""
    storage = torch.ones(4, 4, dtype=torch.float64)
    whole_view, same_view = nn.Parameter(storage[:2]), nn.Parameter(storage[:2].clone())
    optimizer = row.build([whole_view, same_view], "default" if row.adaptive else "momentum")
    for p in (whole_view, same_view):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert set(optimizer.state) == {whole_view, same_view}


# --- AdamS -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_with_zero_or_no_gradients(amsgrad: bool) -> None:
    """The mean is 0 (or of nothing): no decay, no division by zero."""
    p, q = ones(3), ones(2, 2)
    optimizer = mo.AdamS([p, q], lr=0.1, weight_decay=0.5, amsgrad=amsgrad)
    optimizer.step()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.tolist() == [1.0] * 3
    assert q.tolist() == [[1.0] * 2] * 2
    p.grad = torch.full_like(p, 1e-30)
    optimizer.step()
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_adams_never_turns_a_weight_over(dtype: torch.dtype) -> None:
    """A tiny mean gradient makes lr * decay / sqrt(v bar) larger than 1: the weight is removed, not flipped."""
    p = ones(5, value=3.0, dtype=dtype)
    optimizer = mo.AdamS([p], lr=1e-3, weight_decay=1.0)
    p.grad = torch.full_like(p, 1e-6)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, -1e-3), rtol=2e-2, atol=0)


def test_adams_mixes_amsgrad_groups() -> None:
    p, q = ones(2, value=2.0), ones(3)
    groups: list[dict[str, Any]] = [{"params": [p], "amsgrad": True}, {"params": [q]}]
    optimizer = mo.AdamS(groups, lr=0.1, betas=(0.0, 0.5), eps=0.0, weight_decay=0.2)
    for g in (4.0, 1.0):
        p.grad, q.grad = torch.full_like(p, g), torch.full_like(q, g)
        before = p.detach().clone()
        optimizer.step()
    # By hand, step 2: v = .5 * 8 + .5 = 4.5, its maximum 8; both divided by 1 - .5^2.
    v_bar = (2 * 8 / 0.75 + 3 * 4.5 / 0.75) / 5
    expected = before * (1 - 0.1 * 0.2 / math.sqrt(v_bar)) - 0.1 / math.sqrt(8 / 0.75)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_adams_mean_uses_each_tensors_own_age_and_beta2() -> None:
    p, q = ones(1, value=2.0), ones(1)
    groups: list[dict[str, Any]] = [{"params": [p]}, {"params": [q], "betas": (0.0, 0.9)}]
    optimizer = mo.AdamS(groups, lr=0.1, betas=(0.0, 0.5), weight_decay=0.2)
    for t in range(3):
        p.grad = torch.full_like(p, 1.0 + t)
        q.grad = torch.full_like(q, 2.0) if t == 2 else None
        before = p.detach().clone()
        optimizer.step()
    v_p = (0.5 * (0.5 * 0.5 * 1 + 0.5 * 4) + 0.5 * 9) / (1 - 0.5**3)
    v_bar = (v_p + 4.0) / 2
    expected = before * (1 - 0.1 * 0.2 / math.sqrt(v_bar)) - 0.1 * 3 / (math.sqrt(v_p) + 1e-8)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_adams_in_float16_counts_gradients_too_small_for_its_square() -> None:
    """1e-4 squared underflows in float16; the mean is over float32."""
    p = ones(2, 2, dtype=torch.float16)
    p.grad = torch.full_like(p, 1e-4)
    mo.AdamS([p], lr=1e-2, weight_decay=1e-3).step()
    torch.testing.assert_close(p.detach().float(), torch.full((2, 2), 1 - 0.1 - 0.01), rtol=2e-3, atol=0)


@pytest.mark.parametrize("lr_decay", [1.5, 3.0, 1e4])
@pytest.mark.parametrize("name", ["AdamW", "AdamP", "AdamS", "SGDP", "SGDS", "AdamSPD", "SGDSPD"])
def test_no_decay_removes_more_than_the_weight(name: str, lr_decay: float) -> None:
    row = BY_NAME[name]
    p = ones(3, value=2.0)
    p.grad = torch.full_like(p, 1.0)
    options: dict[str, Any] = {"anchor": "zero", "strength": 0.0} if row.anchored else {}
    row.build([p], lr=0.01, weight_decay=lr_decay / 0.01, **options).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, -0.01), rtol=1e-6, atol=0)


# --- SPD ---------------------------------------------------------------------------------------------------------


@anchored_rows
def test_anchors_are_in_the_state_not_in_the_groups(row: OptimizerRow) -> None:
    p, q = ones(2, 2), ones(3)
    optimizer = row.build([{"params": [p]}, {"params": [q], "anchor": None}])
    for x in (p, q):
        x.grad = torch.ones_like(x)
    optimizer.step()
    for group in optimizer.param_groups:
        for key, value in group.items():
            assert key == "params" or not torch.is_tensor(value)
            assert key == "params" or not isinstance(value, (list, dict))
    assert torch.equal(optimizer.state[p]["anchor"], torch.ones_like(p))
    assert "anchor" not in optimizer.state[q]


@anchored_rows
def test_no_state_is_kept_that_nothing_reads(row: OptimizerRow) -> None:
    p = ones(4, 4)
    optimizer = row.build([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    large = {key for key, value in optimizer.state[p].items() if torch.is_tensor(value) and value.numel() > 1}
    assert large == ({"exp_avg", "exp_avg_sq", "anchor"} if row.adaptive else {"anchor"})


@anchored_rows
def test_parameters_filtered_or_reordered_keep_their_own_anchor(row: OptimizerRow) -> None:
    """Anchors that travel in a parallel list were mispaired as soon as a parameter was skipped."""
    params = [ones(2, value=float(k)) for k in range(4)]
    optimizer = row.build([{"params": params[2:]}, {"params": params[:2]}])
    for t in range(5):
        for k, p in enumerate(params):
            p.grad = torch.ones_like(p) if (t + k) % 2 else None
        optimizer.step()
    for k, p in enumerate(params):
        assert optimizer.state[p]["anchor"].tolist() == [float(k)] * 2


@anchored_rows
def test_a_new_head_is_free(row: OptimizerRow) -> None:
    """A head that starts at random must not be held to its random start."""
    body, head, plain = ones(2, 2), ones(3), ones(3)
    groups = [{"params": [body]}, {"params": [head], "anchor": None}]
    optimizer = row.build(groups, lr=0.05, strength=3.0, weight_decay=0.0)
    free = row.build([plain], lr=0.05, strength=0.0, weight_decay=0.0)
    for t in range(20):
        g = math.cos(t)
        for p in (body, head, plain):
            p.grad = torch.full_like(p, g)
        optimizer.step()
        free.step()
    assert torch.equal(head, plain)
    assert not torch.equal(body.detach()[0, 0], head.detach()[0])


def test_strength_is_not_multiplied_by_the_learning_rate() -> None:
    """Strength 1 is the projection onto the previous radius at every learning rate."""
    for lr in (1e-1, 1e-4):
        p = ones(2, value=0.0)
        optimizer = mo.SGDSPD([p], lr=lr, momentum=0.5)
        for g in (torch.tensor([1.0, 0.0]), torch.tensor([-0.1, 0.3])):
            before = p.detach().norm()
            p.grad = g.double()
            optimizer.step()
        # <g, d> > 0 at the second step and the buffer still leads outward: held at the first radius.
        assert float(p.detach().norm()) == pytest.approx(float(before), rel=1e-12)


@anchored_rows
def test_a_strength_beyond_one_reflects_as_released(row: OptimizerRow) -> None:
    """lambda r > 1 takes the weight through the anchor; it is not capped."""
    p = ones(1, value=0.0)
    moments = {"betas": (0.5, 0.5)} if row.adaptive else {"momentum": 0.9}
    optimizer = row.build([p], lr=1.0, strength=4.0, weight_decay=0.0, **moments)
    p.grad = torch.full_like(p, 1.0)
    optimizer.step()
    first = float(p.detach())
    assert first == pytest.approx(-1.0, rel=1e-6)
    p.grad = torch.full_like(p, -0.01)
    optimizer.step()
    u = 0.9 * 1.0 - 0.01 if not row.adaptive else (0.25 - 0.005) / 0.75 / math.sqrt((0.25 + 0.5e-4) / 0.75)
    gamma = 1.0 + u
    assert float(p.detach()) == pytest.approx(-(gamma - 4.0 * (gamma - 1.0)), rel=1e-6)
    assert float(p.detach()) > 0
