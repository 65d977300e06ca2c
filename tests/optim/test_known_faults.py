"""Faults of released implementations, each of which must never appear here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened
from torch.utils._python_dispatch import TorchDispatchMode

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
    """The momentum of a radial gradient leads along both rows; the next gradient is tangent in one, zero in the other.

    By rows all of that momentum is removed. The tensor view would keep most of it, since its parts nearly cancel there.
    """
    p = ones(2, 2)
    optimizer = mo.SGDP([p], lr=0.1, momentum=0.5)
    for g in ([[1.0, 1.0], [-2.0, -2.0]], [[1.0, -1.0], [0.0, 0.0]]):
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    expected = torch.tensor([[0.9 - 0.1, 0.9 + 0.1], [1.2, 1.2]], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-7, atol=0)


def test_sgdp_divides_its_decay_by_one_minus_momentum_for_vectors_too() -> None:
    p = ones(4)
    p.grad = torch.zeros_like(p)
    mo.SGDP([p], lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.1 * 0.1 / (1 - 0.9)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "first"), [("SGDP", 0.75), ("SGDS", 1.0), ("SGDSPD", 1.0), ("SGD", 1.0)])
def test_what_the_first_buffer_is(name: str, first: float) -> None:
    """SGDP's buffer starts at zero, so its first step is dampened; everywhere else it starts as the raw gradient."""
    p = ones(4)
    optimizer = BY_NAME[name].build([p], lr=0.1, momentum=0.5, dampening=0.25, weight_decay=0.0)
    for expected in (first, 0.5 * first + 0.75):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.step()
        torch.testing.assert_close(before - p.detach(), torch.full_like(p, 0.1 * expected), rtol=1e-12, atol=0)


def test_project_buffer_keeps_the_projected_buffer_and_the_default_the_papers() -> None:
    released: dict[str, Any] = {"project_buffer": True}
    for options in ({}, released):
        p = ones(1, 2)
        optimizer = mo.SGDP([p], lr=0.1, momentum=0.5, delta=100.0, **options)
        p.grad = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
        optimizer.step()
        kept = optimizer.state[p]["momentum_buffer"]
        expected = [[1.0, -1.0]] if options else [[3.0, 1.0]]
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
def test_eps_stands_outside_the_bias_corrected_root(row: OptimizerRow) -> None:
    """The first step is g / (|g| + eps). With eps added before the correction of the root it is 16 times smaller."""
    p = ones(3)
    p.grad = torch.full_like(p, 1e-3)
    row.build([p], lr=0.1, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.1 * 0.5), rtol=1e-12, atol=0)


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
    whole, top = nn.Parameter(storage), nn.Parameter(storage[:1])
    assert whole.data_ptr() == top.data_ptr()
    optimizer = row.build([whole, top], "default" if row.adaptive else "momentum")
    for p in (whole, top):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert set(optimizer.state) == {whole, top}
    for p in (whole, top):
        shaped = [v for v in optimizer.state[p].values() if torch.is_tensor(v) and v.ndim]
        assert shaped and all(v.shape == p.shape for v in shaped)


@every_row
def test_there_is_no_mode_to_forget(row: OptimizerRow) -> None:
    """Optimizers with train() and eval() save the wrong weights where a wrapper drops the call."""
    optimizer = row.build([ones(2)])
    assert not {"train", "eval"} & set(dir(optimizer))


@every_row
def test_state_allocated_in_advance_changes_no_step(row: OptimizerRow) -> None:
    """Checkpointers drop what is not there yet; `init_state` makes all of it, as the first step would."""

    def trained(in_advance: bool) -> tuple[list[torch.Tensor], list[set[str]]]:
        params = [ones(3, 4), ones(5), ones()]
        optimizer: Any = row.build(params, row.remembering)
        if in_advance:
            optimizer.init_state()
            keys = [set(optimizer.state[p]) for p in params]
            with torch.no_grad():
                for p in params:
                    p.mul_(2)  # pretrained weights are often loaded after that
        else:
            params[0].data, params[1].data, params[2].data = (2 * p.data for p in params)
        for t in range(3):
            for p in params:
                p.grad = torch.full_like(p, math.cos(t))
            optimizer.step()
        return [p.detach() for p in params], keys if in_advance else [set(optimizer.state[p]) for p in params]

    (early, early_keys), (late, late_keys) = trained(True), trained(False)
    assert early_keys == late_keys
    assert all(torch.equal(x, y) for x, y in zip(early, late))


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
    optimizer = mo.AdamS([p], lr=1e-3, weight_decay=1.0, one_parameter=True)
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
    p, late, other = ones(1, value=2.0), ones(1), ones(1)
    groups: list[dict[str, Any]] = [{"params": [p, late]}, {"params": [other], "betas": (0.0, 0.9)}]
    optimizer = mo.AdamS(groups, lr=0.1, betas=(0.0, 0.5), weight_decay=0.2)
    for t in range(3):
        p.grad = torch.full_like(p, 1.0 + t)
        for q, g in ((late, 2.0), (other, 3.0)):
            q.grad = torch.full_like(q, g) if t == 2 else None
        before = p.detach().clone()
        optimizer.step()
    v_p = (0.5 * (0.5 * 0.5 * 1 + 0.5 * 4) + 0.5 * 9) / (1 - 0.5**3)
    v_bar = (v_p + 4.0 + 9.0) / 3
    expected = before * (1 - 0.1 * 0.2 / math.sqrt(v_bar)) - 0.1 * 3 / (math.sqrt(v_p) + 1e-8)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_adams_in_float16_counts_gradients_too_small_for_its_square() -> None:
    """1e-4 squared underflows in float16; the mean is over float32."""
    p = ones(2, 2, dtype=torch.float16)
    p.grad = torch.full_like(p, 1e-4)
    mo.AdamS([p], lr=1e-2, weight_decay=1e-3, one_parameter=True).step()
    torch.testing.assert_close(p.detach().float(), torch.full((2, 2), 1 - 0.1 - 0.01), rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["Adai", "AdaiS"])
def test_adai_with_zero_gradients(name: str) -> None:
    """The mean of v is 0, and each element's share of it 0/0: it must count as no share, and the step as none."""
    p = ones(3, value=2.0)
    optimizer = BY_NAME[name].build([p], lr=0.1, weight_decay=0.0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.tolist() == [2.0] * 3
    p.grad = torch.ones_like(p)
    optimizer.step()
    # The first factor was b = 1 - eps, the second is 1 - .1: a bias correction of 1 - b1 b2.
    expected = 2 - 0.1 * 0.1 / (1 - 0.999 * 0.9)
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected), rtol=1e-9, atol=0)


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


@pytest.mark.parametrize("anchor", ["capture", "zero"])
@anchored_rows
def test_at_the_anchor_nothing_is_divided_by_zero(row: OptimizerRow, anchor: str) -> None:
    """No distance before the step and none after it: r is 0/0 and must be 0. Then a step that ends on the anchor."""
    p = ones(3, value=0.0)
    optimizer = row.build([p], lr=0.1, anchor=anchor, strength=2.0, weight_decay=0.0)
    for g in (0.0, 0.0, 1.0, -1.0, 0.0):
        p.grad = torch.full_like(p, g)
        optimizer.step()
        assert torch.isfinite(p).all()


# --- Hosts -------------------------------------------------------------------------------------------------------


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute something: not views, nor reads of the step counters on the host."""

    FREE = ("detach", "view", "permute", "_local_scalar_dense")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name.split("::")[1] not in self.FREE
        return func(*args, **(kwargs or {}))


@every_row
def test_small_tensors_and_small_groups_share_their_launches(row: OptimizerRow) -> None:
    """3000 small tensors one by one are 100 times slower than together, and a group for each of them is no reason."""

    def small(n: int) -> list[nn.Parameter]:
        return [ones(3, 4, dtype=torch.float32) if i % 2 else ones(5, dtype=torch.float32) for i in range(n)]

    def work(groups: list[dict[str, Any]]) -> int:
        params = [p for group in groups for p in group["params"]]
        optimizer = row.build(groups, row.remembering)
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            with Work() as done:
                optimizer.step()
        return done.count

    few, many = work([{"params": small(10)}]), work([{"params": small(80)}])
    in_groups = work([{"params": [p], "lr": 1e-3 * (i + 1)} for i, p in enumerate(small(80))])
    print(f"{row.name}: {few} operations")
    assert few == many == in_groups


@every_row
def test_an_optimizer_per_parameter_is_refused_where_the_model_is_read(row: OptimizerRow) -> None:
    """Hosts that step inside the backward pass, or offload, make one optimizer for each parameter; rows and norms of
    whole tensors are right there, a mean or a norm of the model is not.
    """
    make = row.make or row.cls
    reads_model = [{"max_grad_norm": 1.0}, {"non_finite": "skip"}, *([{}] if row.scope == "model" else [])]
    for options in reads_model:
        with pytest.raises(ValueError, match=r"got one parameter, and .*(clip|skip|adam|adai).* reads the whole model"):
            make([ones(2, 2)], lr=0.1, **options)
        make([ones(2, 2)], lr=0.1, one_parameter=True, **options)
        make([ones(2, 2), ones(2, 2)], lr=0.1, **options)
    if row.scope != "model":
        make([ones(2, 2)], lr=0.1)


@pytest.mark.parametrize(
    ("name", "options", "printed"),
    [
        ("AdamW", {}, "0.05 of the weights"),
        ("AdamP", {}, "0.05 of the weights"),
        ("SGDP", {"momentum": 0.9}, "0.05 / (1 - momentum) of the weights"),
        ("SGDS", {"momentum": 0.9}, "0.05 x the stable scale of the weights"),
        ("AdamS", {}, "0.05 x the stable scale of the weights"),
        ("AdamSPD", {}, "0.05 of the distance to the anchor"),
    ],
)
def test_print_says_what_a_decay_takes_from_a_weight(name: str, options: dict[str, Any], printed: str) -> None:
    """Whether a weight decay is multiplied by the learning rate is asked without end; the printed shrink answers."""
    assert printed in repr(BY_NAME[name].build([ones(2, 2)], lr=0.1, weight_decay=0.5, **options))
