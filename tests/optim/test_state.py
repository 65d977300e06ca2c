"""State: bitwise resume by every way of saving, torch's checkpoints in and out, old checkpoints, dtypes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from tests.optim.table import (
    BY_NAME,
    OptimizerRow,
    adam_rows,
    anchored_rows,
    every_row,
    every_variant,
    momentum_rows,
)
from tests.reference import swd

SHAPES = [(5, 4), (3, 2, 2, 2), (6,), ()]


def make_params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(21)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def clones(params: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def train(optimizer: torch.optim.Optimizer, start: int, stop: int) -> list[Tensor]:
    """Steps start..stop with gradients that depend on the step alone; some parameters miss some steps."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(start, stop):
        generator = torch.Generator().manual_seed(500 + t)
        for j, p in enumerate(params):
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.grad = None if (t + j) % 5 == 0 else g
        optimizer.step()
    return [p.detach() for p in params]


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def same_bits(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def groups_of(params: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": list(params[:2])}, {"params": list(params[2:]), "lr": 3e-3}]


@pytest.mark.parametrize("stop", [0, 1, 7])
@every_variant
def test_resume_is_bitwise(row: OptimizerRow, variant: str, stop: int) -> None:
    params = make_params()
    optimizer = row.build(groups_of(params), variant)
    train(optimizer, 0, stop)
    others = clones(params)
    resumed = row.build(groups_of(others), variant)
    resumed.load_state_dict(through_torch_save(optimizer.state_dict()))
    assert same_bits(train(resumed, stop, stop + 8), train(optimizer, stop, stop + 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_row
def test_resume_is_bitwise_in_every_dtype(row: OptimizerRow, dtype: torch.dtype) -> None:
    """torch casts loaded state to the weights' dtype; the moments of half-precision weights must survive that."""
    params = make_params(dtype)
    variant = "default" if row.adaptive else "momentum"
    optimizer = row.build(groups_of(params), variant)
    train(optimizer, 0, 6)
    resumed = row.build(groups_of(clones(params)), variant)
    resumed.load_state_dict(through_torch_save(optimizer.state_dict()))
    ours = optimizer.state_dict()["state"]
    for index, state in resumed.state_dict()["state"].items():
        assert set(state) == set(ours[index])
        for key, value in state.items():
            if torch.is_tensor(value):
                assert value.dtype == ours[index][key].dtype, key
                assert torch.equal(value, ours[index][key]), key
    assert same_bits(train(resumed, 6, 12), train(optimizer, 6, 12))


def copied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return copy.deepcopy(optimizer)


def pickled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    twin: torch.optim.Optimizer = pickle.loads(pickle.dumps(optimizer))
    return twin


@pytest.mark.parametrize("how", [copied, pickled])
@pytest.mark.parametrize("stop", [0, 5])
@every_row
def test_copies_continue_bitwise(
    row: OptimizerRow, stop: int, how: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
) -> None:
    optimizer = row.build(groups_of(make_params()))
    train(optimizer, 0, stop)
    twin = how(optimizer)
    before = [p.detach().clone() for p in make_params()] if stop == 0 else None
    ends = train(twin, stop, stop + 6)
    if before is not None:
        assert same_bits([p.detach() for g in optimizer.param_groups for p in g["params"]], before), (
            "a copy shared weights"
        )
    assert same_bits(ends, train(optimizer, stop, stop + 6))


@every_row
def test_state_holds_tensors_of_the_parameters_shape_or_scalars_and_nothing_foreign(row: OptimizerRow) -> None:
    """Sharded checkpoints know how to cut nothing else; groups hold plain values that a checkpoint can compare."""
    params = make_params()
    optimizer = row.build(groups_of(params), "default" if row.adaptive else "momentum")
    train(optimizer, 0, 3)
    assert set(optimizer.state) <= set(params)
    for p, state in optimizer.state.items():
        for key, value in state.items():
            assert isinstance(key, str)
            if torch.is_tensor(value):
                assert value.shape in (p.shape, torch.Size([])), key
                assert value.data_ptr() != p.data_ptr(), key
            else:
                assert isinstance(value, (int, float, dict)), key
    for group in optimizer.state_dict()["param_groups"]:
        for key, value in group.items():
            plain = isinstance(value, (bool, int, float, str, type(None)))
            pair = isinstance(value, tuple) and all(isinstance(x, float) for x in value)
            assert plain or pair or key == "params", f"{key}={value!r}"


@every_row
def test_all_state_of_a_parameter_is_there_from_its_first_step(row: OptimizerRow) -> None:
    """A key that appears later (or for some parameters only) breaks flat checkpoints."""
    optimizer = row.build(make_params(), row.remembering)
    train(optimizer, 1, 2)
    first = {len(state): set(state) for state in optimizer.state.values() if state}
    train(optimizer, 2, 8)
    later = [set(state) for state in optimizer.state.values()]
    assert len(first) == 1
    assert all(keys == later[0] for keys in later)
    assert later[0] == next(iter(first.values()))


@adam_rows
def test_an_adamw_checkpoint_goes_in_and_comes_back(row: OptimizerRow) -> None:
    """torch's AdamW -> ours -> torch's AdamW: same keys, same bits, and training goes on at every station."""
    params = make_params()
    theirs = torch.optim.AdamW(params, lr=1e-2)
    train(theirs, 0, 7)
    saved = through_torch_save(theirs.state_dict())
    # An anchored method that captures could not know the pretrained weights: that is an error, see below.
    ours = row.build(clones(params), weight_decay=0.0, **({"anchor": "zero"} if row.anchored else {}))
    ours.load_state_dict(saved)
    for p, q in zip(params, ours.param_groups[0]["params"]):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(torch.as_tensor(ours.state[q][key]), torch.as_tensor(theirs.state[p][key])), key
    assert ours.param_groups[0]["lr"] == 1e-2
    train(ours, 7, 12)
    back = torch.optim.AdamW(clones(ours.param_groups[0]["params"]), lr=1e-2)
    back.load_state_dict(through_torch_save(ours.state_dict()))
    for p, q in zip(ours.param_groups[0]["params"], back.param_groups[0]["params"]):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(torch.as_tensor(ours.state[p][key]), torch.as_tensor(back.state[q][key])), key
    train(back, 12, 15)


@momentum_rows
def test_an_sgd_checkpoint_goes_in_and_comes_back(row: OptimizerRow) -> None:
    params = make_params()
    theirs = torch.optim.SGD(params, lr=1e-2, momentum=0.9)
    train(theirs, 0, 7)
    ours = row.build(clones(params), "momentum", **({"anchor": "zero"} if row.anchored else {}))
    ours.load_state_dict(through_torch_save(theirs.state_dict()))
    for p, q in zip(params, ours.param_groups[0]["params"]):
        assert torch.equal(theirs.state[p]["momentum_buffer"], ours.state[q]["momentum_buffer"])
    train(ours, 7, 12)
    back = torch.optim.SGD(clones(ours.param_groups[0]["params"]), lr=1e-2, momentum=0.9)
    back.load_state_dict(through_torch_save(ours.state_dict()))
    for p, q in zip(ours.param_groups[0]["params"], back.param_groups[0]["params"]):
        assert torch.equal(ours.state[p]["momentum_buffer"], back.state[q]["momentum_buffer"])
    train(back, 12, 15)


def test_adamw_resumed_from_torch_follows_torch() -> None:
    params = make_params(torch.float64)
    theirs = torch.optim.AdamW(params, lr=1e-2)
    train(theirs, 0, 7)
    ours = mo.AdamW(clones(params), lr=1e-2)
    ours.load_state_dict(through_torch_save(theirs.state_dict()))
    for x, y in zip(train(ours, 7, 20), train(theirs, 7, 20)):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)


def adams_reference(params: Sequence[nn.Parameter], state: Mapping[Any, dict[str, Any]]) -> swd.AdamS:
    """The reference, continuing from moments that another optimizer left."""
    reference = swd.AdamS([{"params": params, "lr": 1e-2, "weight_decay": 5e-3}])
    for p, mine in zip(params, reference.states[0]):
        if state.get(p):
            m, v = state[p]["exp_avg"].clone(), state[p]["exp_avg_sq"].clone()
            mine.update(t=int(state[p]["step"]), m=m, v=v, v_max=v.clone())
    return reference


def train_with_reference(optimizer: torch.optim.Optimizer, reference: swd.AdamS, start: int, stop: int) -> None:
    for t in range(start, stop):
        ends = train(optimizer, t, t + 1)
        reference.step([[p.grad for p in optimizer.param_groups[0]["params"]]])
        for x, y in zip(ends, reference.groups[0]["params"]):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_adams_takes_over_an_adamw_checkpoint_with_the_right_mean() -> None:
    """An AdamW checkpoint has no running sum of v; it must be found from v itself, also after a detour through AdamW.

    The detour is the trap: AdamW keeps state keys that it does not know, so a saved sum comes back stale.
    """
    params = make_params(torch.float64)
    theirs = torch.optim.AdamW(params, lr=1e-2)
    train(theirs, 0, 6)
    ours = mo.AdamS(clones(params), lr=1e-2, weight_decay=5e-3)
    ours.load_state_dict(through_torch_save(theirs.state_dict()))
    ours.param_groups[0].update(lr=1e-2, weight_decay=5e-3)
    mine = ours.param_groups[0]["params"]
    train_with_reference(ours, adams_reference(mine, ours.state), 6, 10)

    detour = torch.optim.AdamW(clones(mine), lr=1e-2)
    detour.load_state_dict(through_torch_save(ours.state_dict()))
    train(detour, 10, 30)
    back = mo.AdamS(clones(detour.param_groups[0]["params"]), lr=1e-2, weight_decay=5e-3)
    back.load_state_dict(through_torch_save(detour.state_dict()))
    back.param_groups[0].update(lr=1e-2, weight_decay=5e-3)
    train_with_reference(back, adams_reference(back.param_groups[0]["params"], back.state), 30, 34)


@every_row
def test_a_checkpoint_from_before_an_option_existed(row: OptimizerRow) -> None:
    """Each missing group key takes the value this optimizer was built with, so the step never meets a KeyError."""
    optimizer = row.build(make_params())
    train(optimizer, 0, 3)
    for key in optimizer.defaults:
        saved = through_torch_save(optimizer.state_dict())
        for group in saved["param_groups"]:
            del group[key]
        other = row.build(clones(optimizer.param_groups[0]["params"]))
        other.load_state_dict(saved)
        assert (
            other.param_groups[0][key]
            == other.defaults[key]
            == {**row.reference.defaults, **row.hyper()}.get(key, other.defaults[key])
        )
        train(other, 3, 4)


@every_row
def test_unknown_group_keys_are_kept_and_ignored(row: OptimizerRow) -> None:
    """Trainers write their own keys (`foreach`, `fused`, `initial_lr`, ...) into groups."""
    plain, extra = row.build(make_params()), row.build(make_params())
    for group in extra.param_groups:
        group.update(foreach=None, fused=True, initial_lr=1.0, layer="head")
    assert same_bits(train(plain, 0, 3), train(extra, 0, 3))
    assert extra.state_dict()["param_groups"][0]["layer"] == "head"


@every_row
def test_options_of_other_methods_are_ignored(row: OptimizerRow) -> None:
    """One set of groups serves every method, so each meets options that only others have."""
    plain = row.build(make_params())
    others: dict[str, Any] = {
        "betas": (0.3, 0.4), "eps": 1.0, "amsgrad": True, "nesterov": True, "momentum": 0.3, "dampening": 0.2,
        "delta": 5.0, "wd_ratio": 0.3, "strength": 3.0, "row_dim": 1, "anchor": "capture",
        "scale_invariant": "row",
    }  # fmt: skip
    foreign = {key: value for key, value in others.items() if key not in plain.defaults}
    extra = row.build([{"params": make_params(), **foreign}])
    assert same_bits(train(plain, 0, 4), train(extra, 0, 4))
    assert [set(state) for state in plain.state.values()] == [set(state) for state in extra.state.values()]


@anchored_rows
def test_resuming_without_the_anchor_is_an_error(row: OptimizerRow) -> None:
    """A new capture in mid-training would silently moor the weights to the wrong place."""
    optimizer = row.build(make_params(), "default")
    train(optimizer, 0, 4)
    saved = through_torch_save(optimizer.state_dict())
    for state in saved["state"].values():
        assert torch.is_tensor(state.pop("anchor"))
    resumed = row.build(clones(optimizer.param_groups[0]["params"]))
    with pytest.raises((RuntimeError, ValueError), match="anchor"):
        resumed.load_state_dict(saved)
        train(resumed, 4, 5)


@pytest.mark.parametrize("anchor", ["zero", None])
@anchored_rows
def test_resuming_needs_no_anchor_where_none_is_kept(row: OptimizerRow, anchor: str | None) -> None:
    optimizer = row.build(make_params(), anchor=anchor)
    train(optimizer, 0, 4)
    assert not any("anchor" in state for state in optimizer.state.values())
    resumed = row.build(clones(optimizer.param_groups[0]["params"]), anchor=anchor)
    resumed.load_state_dict(through_torch_save(optimizer.state_dict()))
    assert same_bits(train(resumed, 4, 8), train(optimizer, 4, 8))


@anchored_rows
def test_the_anchor_is_the_weights_at_the_first_step_with_a_learning_rate(row: OptimizerRow) -> None:
    """Not at construction: trainers load, move and cast weights after that. Not in a dry run or a warm-up from 0."""
    params = make_params()
    optimizer = row.build(params, lr=0.0)
    train(optimizer, 1, 2)
    with torch.no_grad():
        for p in params:
            p.add_(1.0)
    pretrained = [p.detach().clone() for p in params]
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    train(optimizer, 2, 9)
    for p, start in zip(params, pretrained):
        anchor = optimizer.state[p]["anchor"]
        assert torch.equal(anchor.to(start.dtype), start)
        assert not torch.equal(p.detach(), start)


def test_rows_share_torchs_names_for_what_torch_has() -> None:
    for row in BY_NAME.values():
        params = make_params()
        optimizer = row.build(params, row.remembering)
        train(optimizer, 1, 4)
        names = {"momentum_buffer"} if row.momentum else {"step", "exp_avg", "exp_avg_sq"}
        assert names | ({"max_exp_avg_sq"} if row.adam else set()) <= set(optimizer.state[params[1]])
        own = {"anchor", "exp_avg_sq_sum", "exp_avg_sq_sum_step", "step", "max_exp_avg_sq", "beta1_prod"}
        assert set(optimizer.state[params[1]]) <= names | own
