"""What must hold around every pass: true weights outside, statistics, masks, interruptions, checkpoints, arguments."""

from __future__ import annotations

import copy
import pickle
import random as python_random
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from mooring.perturb.frame import Pass, Perturbed
from tests.perturb.table import Net, PerturbedRow, every_kind, every_row, loss_of, make


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(net: nn.Module, values: list[Tensor]) -> bool:
    return all(torch.equal(p.detach(), v) for p, v in zip(net.parameters(), values, strict=True))


def take(optimizer: Perturbed, net: nn.Module, t: int) -> None:
    optimizer.zero_grad()
    for pass_ in optimizer.passes():
        with pass_:
            pass_.backward(loss_of(net, t, next(net.parameters()).dtype))
    optimizer.step()


# --- True weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_row
def test_a_learning_rate_of_zero_moves_nothing(row: PerturbedRow, dtype: torch.dtype) -> None:
    net = make(dtype)
    optimizer = row.build(mo.SGD(net.parameters(), lr=0.0), model=net)
    before = weights(net)
    for t in range(3):
        take(optimizer, net, t)
    assert same(net, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["passes", "closure", "place"])
@every_kind
def test_whatever_is_raised_leaves_the_true_weights(
    row: PerturbedRow, where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the block of any pass, in a closure, and half-way through moving the weights; and the next step is right."""
    net = make(torch.float32)
    optimizer = row.build(mo.AdamW(net.parameters(), lr=0.01), model=net, **WITHOUT_FORWARD.get(row.name, {}))
    take(optimizer, net, 0)
    moved = [stage.place is not None for stage in optimizer._stages()]
    for at, moves in enumerate(moved):
        before, statistics = weights(net), copy.deepcopy(dict(net.named_buffers()))
        with pytest.raises(error):
            if where == "passes":
                for pass_ in optimizer.passes():
                    with pass_:
                        loss = loss_of(net, 1, torch.float32)
                        if pass_.index == at:
                            assert same(net, before) != moves
                            raise error
                        pass_.backward(loss)
            elif where == "closure":

                def closure(current: Pass, at: int = at) -> Tensor:
                    loss = loss_of(net, 1, torch.float32)
                    if current.index == at:
                        raise error
                    loss.backward()
                    return loss

                optimizer.step(closure)
            else:
                _interrupt_while_placing(optimizer, net, error, monkeypatch)
        assert same(net, before)
        if all(moved):
            assert all(torch.equal(buffer, statistics[name]) for name, buffer in net.named_buffers())
    take(optimizer, net, 2)
    assert torch.is_grad_enabled()


WITHOUT_FORWARD: dict[str, Any] = {"NSO": {"clean_forward": False}, "RSAM": {"clean_forward": False}}


def _interrupt_while_placing(
    optimizer: Perturbed, net: nn.Module, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = optimizer._weights.place

    def interrupted(offset: Any, many: Any = None) -> None:
        calls = 0

        def third(member: Any, wide: Tensor) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise error
            return offset(member, wide)

        original(third)

    with monkeypatch.context() as patch:
        patch.setattr(optimizer._weights, "place", interrupted)
        for pass_ in optimizer.passes():
            with pass_:
                pass_.backward(loss_of(net, 1, torch.float32))


@every_row
def test_what_a_broken_step_left_is_cleared_by_the_next(row: PerturbedRow) -> None:
    """A pass raises after others have left gradients; zero_grad and the next step are those of a fresh optimizer."""
    net, other = make(), make()
    broken, fresh = (row.build(mo.SGD(n.parameters(), lr=0.1), model=n) for n in (net, other))
    with pytest.raises(ZeroDivisionError):
        for pass_ in broken.passes():
            with pass_:
                pass_.backward(loss_of(net, 5))
                if pass_.index == pass_.count - 1:
                    raise ZeroDivisionError
    net.load_state_dict(other.state_dict())
    take(broken, net, 0)
    take(fresh, other, 0)
    assert same(net, weights(other))


@pytest.mark.parametrize("clear", ["optimizer", "model"])
@every_row
def test_clearing_gradients_between_passes_loses_none(row: PerturbedRow, clear: str) -> None:
    net, other = make(), make()
    ours, theirs = (row.build(mo.SGD(n.parameters(), lr=0.1), model=n) for n in (net, other))
    take(theirs, other, 0)
    for pass_ in ours.passes():
        ours.zero_grad() if clear == "optimizer" else net.zero_grad()
        with pass_:
            pass_.backward(loss_of(net, 0))
    ours.step()
    assert same(net, weights(other))


def test_a_second_interrupt_while_the_weights_are_put_back_does_not_stop_that(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make()
    optimizer = mo.NSO(mo.SGD(net.parameters(), lr=0.1), sigma=0.1, model=net)
    before = weights(net)
    original = optimizer._weights._copy_back
    calls = []

    def interrupted() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        original()

    monkeypatch.setattr(optimizer._weights, "_copy_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(optimizer, net, 0)
    assert same(net, before)


def test_a_loop_that_was_left_can_be_begun_again() -> None:
    net, other = make(norm=False), make(norm=False)
    left, straight = (mo.NSO(mo.AdamW(n.parameters(), lr=0.01), sigma=0.1, model=n) for n in (net, other))
    for pass_ in left.passes():
        with pass_:
            pass_.backward(loss_of(net, 9))
        break
    with pytest.raises(RuntimeError, match=r"step\(\) needs gradients at perturbed weights"):
        left.step()
    net.load_state_dict(other.state_dict())
    take(left, net, 0)
    take(straight, other, 0)
    assert same(net, weights(other))


# --- Degenerate methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_one", [
    lambda base, net: mo.NSO(base, sigma=0.0, k=3, model=net),
    lambda base, net: mo.NSO(base, sigma=0.1, clean=1.0, model=net),
    lambda base, net: mo.SAM(base, rho=0.0, model=net),
    lambda base, net: mo.RSAM(base, rho=0.0, sigma=0.3, model=net),
], ids=["sigma 0", "clean 1", "rho 0", "rsam rho 0"])  # fmt: skip
def test_nothing_to_perturb_is_the_base_to_the_bit(make_one: Any) -> None:
    ours, theirs = make(torch.float32, dropout=0.3), make(torch.float32, dropout=0.3)
    optimizer = make_one(torch.optim.Adam(ours.parameters(), lr=0.01), ours)
    plain = torch.optim.Adam(theirs.parameters(), lr=0.01)
    assert optimizer.gradients_per_step == 1
    for t in range(5):
        torch.manual_seed(t)
        take(optimizer, ours, t)
        torch.manual_seed(t)
        plain.zero_grad()
        loss_of(theirs, t, torch.float32).backward()
        plain.step()
    assert same(ours, weights(theirs))
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, dict(theirs.named_buffers())[name])


# --- Statistics and masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, "instance"], ids=str)
@every_row
def test_running_statistics_see_the_true_weights_once(row: PerturbedRow, norm: Any) -> None:
    net = make()
    if norm == "instance":
        net.norm = nn.InstanceNorm2d(3, track_running_stats=True).double()
    elif norm is nn.SyncBatchNorm:
        net.norm = Borrowed(3).double()
    reference = copy.deepcopy(net)
    optimizer = row.build(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
    for t in range(3):
        reference.load_state_dict({**net.state_dict(), **dict(reference.named_buffers())})
        with torch.no_grad():
            loss_of(reference, t)
        take(optimizer, net, t)
        for name, buffer in net.named_buffers():
            torch.testing.assert_close(buffer, dict(reference.named_buffers())[name], rtol=1e-13, atol=0)


class Borrowed(nn.Module):
    """A norm layer of somebody else's, with torch's names for its statistics and its own class."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.num_batches_tracked, Tensor)
        self.num_batches_tracked += 1
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=True)  # type: ignore[arg-type]


def test_the_forward_for_the_statistics_can_be_left_out_or_given() -> None:
    calls: list[str] = []
    for options, forward in (({"clean_forward": False}, False), ({}, True), ({}, False)):
        net = make()
        before = copy.deepcopy(dict(net.named_buffers()))
        optimizer = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.1), sigma=0.1, model=net, **options)  # type: ignore[arg-type]
        calls.clear()

        def closure(net: Net = net, optimizer: Perturbed = optimizer) -> Tensor:
            calls.append("closure")
            optimizer.zero_grad()
            loss = loss_of(net, 0)
            loss.backward()
            return loss

        def ahead(net: Net = net) -> None:
            calls.append("forward")
            assert not torch.is_grad_enabled()
            loss_of(net, 0)

        optimizer.step(closure, forward=ahead if forward else None)
        moved = not torch.equal(net.norm.running_mean, before["norm.running_mean"])  # type: ignore[arg-type]
        assert moved == (not options)
        assert calls == ["forward"] * forward + ["closure"] * (2 + (not options and not forward))


def test_gradients_of_the_step_before_stay_out_where_a_forward_comes_first() -> None:
    """The closure clears the gradients in its first pass, which is the second of the step after a forward."""
    ends = []
    for forward in (False, True):
        net = make()
        optimizer = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.1), sigma=0.1, model=net)
        for t in range(3):

            def closure(net: Net = net, optimizer: Perturbed = optimizer, t: int = t) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(net, t)
                loss.backward()
                return loss

            optimizer.step(closure, (lambda net=net, t=t: loss_of(net, t)) if forward else None)
        ends.append(weights(net))
    assert all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


def test_without_a_model_moved_statistics_are_announced_once() -> None:
    net = make()
    optimizer = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.1), sigma=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take(optimizer, net, 0)
        take(optimizer, net, 1)
    assert [str(w.message)[:20] for w in caught] == ["NSO: BatchNorm2d upd"]
    plain = make(norm=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(mo.NSO(torch.optim.SGD(plain.parameters(), lr=0.1), sigma=0.1), plain, 0)


@every_kind
def test_passes_of_one_draw_see_the_same_masks_and_other_draws_do_not(row: PerturbedRow) -> None:
    net = make(dropout=0.5)
    optimizer = row.build(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
    seen: dict[int, list[Any]] = {}
    for pass_ in optimizer.passes():
        with pass_:
            mask = nn.functional.dropout(torch.ones(64), 0.5)
            seen.setdefault(pass_.stage.draws, []).append((mask.tolist(), python_random.random()))
            pass_.backward(loss_of(net, 0))
    for group in seen.values():
        assert all(other == group[0] for other in group)
    firsts = [str(group[0]) for group in seen.values()]
    assert len(set(firsts)) == len(firsts)
    after = torch.rand(1)
    assert after not in torch.tensor([m for g in seen.values() for m in g[0][0]])


def test_the_pair_shares_its_mini_batch_and_draws_may_have_their_own() -> None:
    net = make(norm=False)
    for fresh, wanted in ((False, [True, False, False, False]), (True, [True, False, True, False])):
        nso = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.1), sigma=0.1, k=2, fresh_batches=fresh)
        got = []
        for pass_ in nso.passes():
            with pass_:
                got.append(pass_.new_batch)
                pass_.backward(loss_of(net, 0))
        assert got == wanted


# --- One optimizer -----------------------------------------------------------------------------------------------


@every_row
def test_stop_and_resume_bitwise(row: PerturbedRow) -> None:
    straight, broken = make(torch.float32), make(torch.float32)
    one = row.build(mo.AdamSPD(straight.named_parameters(), lr=0.01), model=straight)
    for t in range(7):
        take(one, straight, t)
    first = row.build(mo.AdamSPD(broken.named_parameters(), lr=0.01), model=broken)
    for t in range(3):
        take(first, broken, t)
    saved = copy.deepcopy((broken.state_dict(), first.state_dict()))
    fresh = make(torch.float32)
    fresh.load_state_dict(saved[0])
    other = {"seed": 99} if row.name in ("NSO", "RSAM") else {}  # the checkpoint's seed counts, and its sigma
    second = row.build(mo.AdamSPD(fresh.named_parameters(), lr=0.01), model=fresh, **other)
    for group in second.param_groups:
        group.update({key: 9.0 for key in ("sigma", "rho") if key in group})
    second.load_state_dict(saved[1])
    for t in range(3, 7):
        take(second, fresh, t)
    assert same(fresh, weights(straight))


@every_kind
def test_no_checkpoint_is_taken_of_perturbed_weights(row: PerturbedRow) -> None:
    """Of the optimizer, its base, the model, a wrapper or a part of it, and from any thread; outside as ever."""
    net = make()
    wrapper = nn.Sequential(net)
    optimizer = row.build(mo.AdamW(net.named_parameters(), lr=0.01), model=wrapper)
    part = next(m for m in net.modules() if m._parameters)
    ways = (optimizer.state_dict, optimizer.base.state_dict, *(m.state_dict for m in (net, wrapper, part)))

    def refused() -> int:
        count = 0
        for way in ways:
            with ThreadPoolExecutor(1) as pool:
                try:
                    pool.submit(way).result()
                except RuntimeError as error:
                    assert f"inside a pass of {row.name}" in str(error)
                    count += 1
        return count

    take(optimizer, net, 0)
    for pass_ in optimizer.passes():
        assert refused() == 0
        with pass_:
            moved = pass_.stage.place is not None
            assert refused() == (len(ways) if moved else 0)
            pass_.backward(loss_of(net, 1))
    optimizer.step()
    assert refused() == 0
    for pass_ in optimizer.passes():
        with suppress(KeyError), pass_:
            if pass_.stage.place is not None:
                raise KeyError
    assert refused() == 0
    assert not any(m._state_dict_pre_hooks for m in wrapper.modules())


def test_a_checkpoint_of_the_base_alone_loads() -> None:
    net = make()
    base = torch.optim.AdamW(net.parameters(), lr=0.01)
    loss_of(net, 0).backward()
    base.step()
    nso = mo.NSO(torch.optim.AdamW(net.parameters(), lr=0.5), sigma=0.2, model=net)
    nso.load_state_dict(base.state_dict())
    assert nso.param_groups[0]["lr"] == 0.01
    assert nso.param_groups[0]["sigma"] == 0.2
    take(nso, net, 1)


@every_kind
def test_groups_state_and_schedules_are_the_bases(row: PerturbedRow) -> None:
    net = make()
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer = row.build(base, model=net)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    take(optimizer, net, 0)
    schedule.step()
    assert base.param_groups[0]["lr"] == 0.05
    extra = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra]})
    assert base.param_groups[1]["noise_draws"] == 1
    assert all(isinstance(v, (int, float, str, bool, type(None), list)) for g in base.param_groups for v in g.values())


@every_row
def test_copies_and_pickles_go_on_alike(row: PerturbedRow) -> None:
    net = make()
    optimizer = row.build(mo.AdamP(net.parameters(), lr=0.01), model=net)
    take(optimizer, net, 0)
    both = [copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))]
    take(optimizer, net, 1)
    for other_net, other in both:
        take(other, other_net, 1)
        assert same(other_net, weights(net))


def test_step_without_gradients_of_its_own_says_what_to_do() -> None:
    net = make()
    nso = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.1))
    nso.step()  # no gradients at all: a checkpointer's dry run
    loss_of(net, 0).backward()
    with pytest.raises(RuntimeError, match=r"step\(closure\).*passes\(\).*mixins"):
        nso.step()
    nso.param_groups[0]["lr"] = 0.0
    before = weights(net)
    nso.step()
    assert same(net, before)


def test_passes_have_to_be_entered_once() -> None:
    net = make()
    nso = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=r"this pass was not taken.*with pass_"):
        for _ in nso.passes():
            loss_of(net, 0).backward()
    with pytest.raises(RuntimeError, match="pass 0 was entered before"):
        for pass_ in nso.passes():
            with pass_:
                pass
            with pass_:
                pass


def test_what_step_returns() -> None:
    h = torch.eye(3, dtype=torch.float64)
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def closure() -> Tensor:
        p.grad = None
        loss = 0.5 * p @ h @ p
        loss.backward()
        return loss

    sam = mo.SAM(torch.optim.SGD([p], lr=0.0), rho=0.1)
    assert float(sam.step(closure)) == 1.5  # the loss at the true weights
    nso = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=0.1)
    value = float(nso.step(closure))
    assert value > 1.5  # the mean of the pair: 1.5 + |U|^2/2
    assert value < 2.0


# --- Arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("NSO", {"sigma": -0.1}, r"sigma must be a finite number >= 0, got -0\.1"),
        ("NSO", {"sigma": float("nan")}, r"sigma.*got nan"),
        ("NSO", {"k": 0}, r"k must be an integer >= 1, got 0"),
        ("NSO", {"k": 1.5}, r"k must be an integer >= 1, got 1\.5"),
        ("NSO", {"clean": 1.2}, r"clean must be in \[0, 1\], got 1\.2"),
        ("NSO", {"noise": "cauchy"}, r"noise must be one of 'normal', 'laplace', 'uniform', got 'cauchy'"),
        ("NSO", {"schedule": "cosine"}, r"schedule must be one of .*got 'cosine'"),
        ("NSO", {"schedule": "linear"}, r"schedule_steps must be given"),
        ("NSO", {"schedule_steps": 10}, r"schedule_steps must be given with schedule='linear' or 'log' and only then"),
        ("NSO", {"schedule": "log", "schedule_steps": 0}, r"schedule_steps must be an integer >= 1, got 0"),
        ("NSO", {"seed": 0.5}, r"seed must be an int, got 0\.5"),
        ("SAM", {"rho": -1}, r"rho must be a finite number >= 0, got -1"),
        ("SAM", {"norm": "layer"}, r"norm must be one of 'global', 'local', got 'layer'"),
        ("ASAM", {"eta": -1}, r"eta must be a finite number >= 0, got -1"),
        ("RSAM", {"sigma": -1}, r"sigma must be a finite number >= 0, got -1"),
    ],
)
def test_wrong_arguments(name: str, options: dict[str, Any], message: str) -> None:
    base = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match=message):
        getattr(mo, name)(base, **options)


def test_wrong_bases() -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match=r"base must be a torch\.optim\.Optimizer, got list"):
        mo.NSO([p])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the class SGD, not called"):
        mo.SAM(torch.optim.SGD)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="base must not perturb by itself, got SAM inside NSO"):
        mo.NSO(mo.SAM(torch.optim.SGD([p], lr=0.1)))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        mo.NSO(torch.optim.SGD([p], lr=0.1), model=[p])  # type: ignore[arg-type]


@every_row
def test_print_names_the_method_its_cost_and_the_base(row: PerturbedRow) -> None:
    text = repr(row.build(mo.AdamP(make().parameters())))
    assert text.startswith(row.name)
    assert f"{row.gradients} gradients per step" in text
    assert "radial projection" in text
