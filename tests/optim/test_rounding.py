"""Narrow weights and narrow moments, against the same steps in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from mooring.kernels import rounding
from tests.optim.problems import TinyNet, backward, make_net
from tests.optim.table import OptimizerRow, every_row

NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def twins(row: OptimizerRow, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """A narrow net and a float32 net with the same weights, each with its optimizer."""
    narrow = make_net(dtype=dtype)
    broad = make_net(dtype=torch.float32)
    with torch.no_grad():
        for p, q in zip(narrow.parameters(), broad.parameters()):
            q.copy_(p)
    return (narrow, row.build(narrow.parameters(), **options)), (broad, row.build(broad.parameters()))


def same_gradients(source: TinyNet, target: TinyNet) -> None:
    for p, q in zip(source.parameters(), target.parameters()):
        q.grad = None if p.grad is None else p.grad.to(q.dtype)


@every_row
def test_compensated_bfloat16_is_float32(row: OptimizerRow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same gradients, weight and compensation together are the float32 weight, to the bit.

    Of eager steps: compiled ones form the inner products of float32 and of narrow weights in loops of their own.
    """
    monkeypatch.setenv("MOORING_BACKEND", "eager")
    (narrow, ours), (broad, theirs) = twins(row, torch.bfloat16, rounding="kahan")
    for t in range(1, 31):
        backward(narrow, t)
        same_gradients(narrow, broad)
        ours.step()
        theirs.step()
    moved = 0
    for p, q in zip(narrow.parameters(), broad.parameters()):
        if p.numel() and "compensation" in ours.state[p]:
            assert torch.equal(rounding.join(p.detach(), ours.state[p]["compensation"]), q)
            moved += int((p.float() != q).any())
        assert p.dtype == torch.bfloat16
    assert moved > 5


@NARROW
def test_small_updates_do_not_vanish(dtype: torch.dtype) -> None:
    """Updates of 1e-8 on weights of 0.01, whose types have a unit of 8e-6 or more: nearest never moves."""
    steps, update, size = 4096, 1e-8, 1e-2
    ends = {}
    for mode in ("nearest", "stochastic", "kahan"):
        p = nn.Parameter(torch.full((4096,), size, dtype=dtype))
        optimizer = mo.SGD([p], lr=update, rounding=mode)
        p.grad = torch.ones_like(p)
        for _ in range(steps if mode == "kahan" else 64):
            optimizer.step()
        ends[mode] = float(p.detach().double().mean()), optimizer.state[p].get("compensation")
    start = float(torch.tensor(size, dtype=dtype).double())
    assert ends["nearest"][0] == start
    # 64 steps of 4096 weights: the mean moves by 64 updates, within five standard errors of one unit per move.
    unit = start - float(torch.nextafter(torch.tensor(size, dtype=dtype), torch.tensor(0.0, dtype=dtype)).double())
    error = 5 * (unit * 64 * update / 4096) ** 0.5
    assert abs(start - ends["stochastic"][0] - 64 * update) < error
    assert ends["stochastic"][0] < start
    kept = rounding.join(torch.full((4096,), ends["kahan"][0]).to(dtype), ends["kahan"][1])
    wanted = torch.full((), start)
    for _ in range(steps):
        wanted = wanted - update
    torch.testing.assert_close(kept, wanted.expand(4096), rtol=2e-7, atol=0)
    assert start - float(kept[0]) > 0.9 * steps * update


@every_row
def test_stochastic_rounding_follows_float32_in_the_mean(row: OptimizerRow) -> None:
    """One step from one state: the mean over many draws is the float32 step, and every draw is a neighbour of it."""
    (narrow, ours), (broad, theirs) = twins(row, torch.bfloat16, rounding="stochastic")
    for t in range(1, 4):
        backward(narrow, t)
        same_gradients(narrow, broad)
        before = [p.detach().clone() for p in narrow.parameters()]
        state = copy.deepcopy(ours.state_dict())
        with torch.no_grad():
            for p, q in zip(narrow.parameters(), broad.parameters()):
                q.copy_(p)
        ours.step()
        theirs.step()
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in before]
    draws = 200
    for draw in range(draws):
        with torch.no_grad():
            for p, value in zip(narrow.parameters(), before):
                p.copy_(value)
        ours.load_state_dict(state)
        ours.param_groups[0]["draws"] = 100 + draw
        ours.step()
        for sums, p in zip(total, narrow.parameters()):
            sums += p.detach().double()
    for sums, q in zip(total, broad.parameters()):
        unit = 2.0**-7 * q.detach().double().abs().clamp(min=1e-30)
        assert bool(((sums / draws - q.detach().double()).abs() <= unit * 5 * 0.5 / draws**0.5 + 1e-30).all())


@pytest.mark.parametrize(
    "options", [{"rounding": "stochastic"}, {"state_dtype": "bfloat16"}, {"rounding": "kahan"}], ids=str
)
@every_row
def test_resumes_bitwise(row: OptimizerRow, options: dict[str, Any]) -> None:
    net = make_net(dtype=torch.bfloat16)
    optimizer = row.build(net.parameters(), row.remembering, **options)
    for t in range(1, 6):
        backward(net, t)
        optimizer.step()
    other = copy.deepcopy(net)
    resumed = row.build(other.parameters(), row.remembering, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(6, 11):
        for model, opt in ((net, optimizer), (other, resumed)):
            backward(model, t)
            opt.step()
    for p, q in zip(net.parameters(), other.parameters()):
        assert torch.equal(p, q)


@every_row
def test_splitting_into_batches_draws_the_same_bits(row: OptimizerRow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which tensors step together is a decision of the machine; the random bits must not notice."""
    from mooring.optim import plan

    ends = []
    for elements in (1 << 20, 16):
        monkeypatch.setitem(plan._BATCH_ELEMENTS, "cpu", elements)
        net = make_net(dtype=torch.bfloat16)
        optimizer = row.build(net.parameters(), row.remembering, rounding="stochastic", state_dtype="bfloat16")
        for t in range(1, 6):
            backward(net, t)
            optimizer.step()
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends))


@every_row
def test_moments_in_bfloat16_take_half_the_memory_and_follow(row: OptimizerRow) -> None:
    net, other, start = (make_net(dtype=torch.float32) for _ in range(3))
    narrow, broad = (
        row.build(net.parameters(), row.remembering, state_dtype="bfloat16"),
        row.build(other.parameters(), row.remembering),
    )
    for t in range(1, 21):
        backward(net, t)
        same_gradients(net, other)
        narrow.step()
        broad.step()
    kept = {k for s in broad.state.values() for k in s if k.startswith(("exp_avg", "max_", "momentum"))}
    for p, q in zip(net.parameters(), other.parameters()):
        for name in kept & set(narrow.state[p]):
            if narrow.state[p][name].ndim == q.ndim and not name.startswith("exp_avg_sq_sum"):
                assert narrow.state[p][name].dtype == torch.bfloat16
                assert broad.state[q][name].dtype == torch.float32

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    error = (flat(net) - flat(other)).norm() / (flat(other) - flat(start)).norm()
    print(f"relative error {error:.2g}")
    assert error < 0.1


def test_a_bfloat16_second_moment_keeps_moving() -> None:
    """Closed form: with g = 1, v = 1 - b2^t. Rounded to nearest it would stop where (1-b2)(1-v) < v/512."""
    p = nn.Parameter(torch.zeros(4096))
    optimizer = mo.AdamW([p], betas=(0.9, 0.999), lr=1e-3, state_dtype="bfloat16")
    p.grad = torch.ones_like(p)
    stuck = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(2000):
        optimizer.step()
        stuck = (stuck.float() * 0.999 + 0.001).bfloat16()
    exact = 1 - 0.999**2000
    assert float(stuck) < 0.6 * exact
    mean = float(optimizer.state[p]["exp_avg_sq"].double().mean())
    assert abs(mean - exact) < 0.01 * exact


def test_float64_weights_keep_float64() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = mo.AdamW([p], state_dtype="bfloat16", rounding="kahan")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.float64
    assert "compensation" not in optimizer.state[p]


def test_complex_moments_have_no_bfloat16() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"state_dtype: parameter 0 of its group is complex"):
        mo.AdamW([p], state_dtype="bfloat16")
