"""What trainers and torch's own tools expect of an optimizer: closures, schedulers, tensor learning rates, hooks."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import mooring as mo
from tests.optim.problems import backward, batch, gradients, make_groups, make_net
from tests.optim.table import BY_NAME, OptimizerRow, adam_rows, every_row, every_variant, momentum_rows, named_rows


def snapshot(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


@named_rows
def test_is_a_public_class(row: OptimizerRow) -> None:
    assert issubclass(row.cls, torch.optim.Optimizer)
    assert row.name in mo.__all__
    assert row.name in dir(mo)


@every_row
def test_is_a_torch_optimizer(row: OptimizerRow) -> None:
    net = make_net()
    optimizer = row.build(net.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in net.named_parameters()]
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    backward(net, 1)
    optimizer.step()
    assert seen == ["before", "after"]
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@every_row
def test_step_without_closure_or_gradients_is_legal_and_does_nothing(row: OptimizerRow) -> None:
    net = make_net()
    optimizer, before = row.build(net.parameters()), snapshot(net)
    assert optimizer.step() is None
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))


@every_row
def test_the_closure_runs_once_with_gradients_enabled_and_its_loss_comes_back(row: OptimizerRow) -> None:
    net = make_net()
    optimizer = row.build(net.parameters())
    words, target = batch(0)
    calls: list[bool] = []

    def closure() -> Any:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = ((net(words) - target) ** 2).mean()
        loss.backward()
        return loss.detach()

    before = snapshot(net)
    with torch.no_grad():
        loss: Any = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert calls == [True]
    assert loss is not None and float(loss) > 0
    twin = make_net()
    other = row.build(twin.parameters())
    ((twin(words) - target) ** 2).mean().backward()
    other.step()
    assert any(not torch.equal(p, b) for p, b in zip(net.parameters(), before))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters()))


@every_row
def test_a_grad_scaler_changes_nothing_but_skips_overflows(row: OptimizerRow) -> None:
    """The scale is a power of two, so unscaling is exact; the skipped step must leave weights and state alone."""

    def trained(scaled: bool) -> list[Tensor]:
        net = make_net(dtype=torch.float32)
        optimizer = row.build(net.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000, enabled=scaled)
        words, target = batch(0)
        for t in range(6):
            optimizer.zero_grad()
            scaler.scale(((net(words) - target.float()) ** 2).mean()).backward()
            if t == 3:
                if not scaled:
                    continue
                assert net.scale.grad is not None
                net.scale.grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
        return snapshot(net)

    assert all(torch.equal(x, y) for x, y in zip(trained(True), trained(False)))


@every_variant
def test_gradients_are_left_as_the_user_made_them(row: OptimizerRow, variant: str) -> None:
    net = make_net()
    optimizer = row.build(net.parameters(), variant)
    for t in range(1, 4):
        backward(net, t)
        grads = {p: (p.grad, p.grad.clone()) for p in net.parameters() if p.grad is not None}
        optimizer.step()
        for p, (grad, value) in grads.items():
            assert p.grad is grad
            assert torch.equal(grad, value)


@every_variant
def test_nothing_moves_at_learning_rate_zero(row: OptimizerRow, variant: str) -> None:
    net = make_net()
    hyper = {**row.reference.defaults, **row.hyper(variant), "lr": 0.0}
    optimizer, before = row.build(make_groups(net, hyper), variant, lr=0.0), snapshot(net)
    for t in range(5):
        backward(net, t)
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))


@every_variant
def test_nothing_moves_at_learning_rate_zero_in_mid_training(row: OptimizerRow, variant: str) -> None:
    """With history in the buffers and an anchor far away: a warm restart from 0, or a frozen phase."""
    for dtype in (torch.float32, torch.bfloat16):
        net = make_net(dtype=dtype)
        optimizer = row.build(net.parameters(), variant)
        for t in range(8):
            if t == 5:
                before = snapshot(net)
                for group in optimizer.param_groups:
                    group["lr"] = 0.0
            backward(net, t)
            optimizer.step()
        assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))


@every_row
def test_a_tensor_learning_rate_is_the_same_learning_rate(row: OptimizerRow) -> None:
    def trained(lr: Any) -> list[Tensor]:
        net = make_net()
        optimizer = row.build(net.parameters(), lr=lr)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
        for t in range(8):
            backward(net, t)
            optimizer.step()
            scheduler.step()
        return snapshot(net)

    for dtype in (torch.float64, torch.float32):
        # 2^-6 is exact in either dtype; what the schedule makes of it is not.
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        for x, y in zip(trained(torch.tensor(2.0**-6, dtype=dtype)), trained(2.0**-6)):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def follow_schedule(row: OptimizerRow, variant: str, make: Any, metric: bool = False) -> None:
    """Under a scheduler the optimizer must still equal the reference that is given the same options each step."""
    net, twin = make_net(), make_net()
    optimizer = row.build(net.parameters(), variant)
    reference = row.reference([{**row.hyper(variant), "params": list(twin.parameters())}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = make(optimizer)
        for t in range(30):
            group = optimizer.param_groups[0]
            for key in ("lr", "betas", "momentum"):
                if key in group:
                    reference.groups[0][key] = group[key]
            backward(net, t)
            optimizer.step()
            scheduler.step(1.0) if metric else scheduler.step()
            backward(twin, t)
            reference.step([[p.grad for p in twin.parameters()]])
            with torch.no_grad():
                for p, value in zip(twin.parameters(), reference.groups[0]["params"]):
                    p.copy_(value)
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-9, atol=1e-11)


@every_row
def test_lambda_lr_warming_up_from_zero(row: OptimizerRow) -> None:
    follow_schedule(row, "default", lambda opt: lr_scheduler.LambdaLR(opt, lambda t: min(1.0, t / 10)))


@every_row
def test_reduce_on_plateau(row: OptimizerRow) -> None:
    follow_schedule(row, "default", lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=3), metric=True)


@adam_rows
def test_one_cycle_with_betas(row: OptimizerRow) -> None:
    follow_schedule(row, "default", lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=31))


@momentum_rows
def test_one_cycle_with_momentum(row: OptimizerRow) -> None:
    follow_schedule(row, "momentum", lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=31))


@every_row
def test_groups_can_be_added_later(row: OptimizerRow) -> None:
    net = make_net()
    params = [p for p in net.parameters() if p.dim() > 1]
    optimizer = row.build(params)
    backward(net, 1)
    optimizer.step()
    optimizer.add_param_group({"params": [net.norm.weight], "lr": 0.1})
    before = net.norm.weight.detach().clone()
    backward(net, 2)
    optimizer.step()
    assert not torch.equal(net.norm.weight, before)
    assert set(optimizer.param_groups[0]) == set(optimizer.param_groups[1])


@named_rows
def test_print_shows_the_pipeline(row: OptimizerRow) -> None:
    decay: dict[str, Any] = {} if row.anchored else {"weight_decay": 0.1}
    text = repr(row.build(make_net().parameters(), **decay))
    print(text)
    assert row.name in text
    words = {"AdamP": "project", "SGDP": "project", "AdamS": "stable", "SGDS": "stable", "AdamSPD": "selective",
             "SGDSPD": "selective", "AdamW": "decoupled", "SGD": "momentum", "Adam": "coupled", "Adai": "coupled",
             "AdaiS": "decoupled"}  # fmt: skip
    assert words[row.name] in text.lower()
    assert "lr" in text


# --- No host synchronisation -------------------------------------------------------------------------------------


class Syncs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that would make the host wait for an accelerator."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique", "_unique", "item")

    def __init__(self, allowed: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allowed = {t.untyped_storage().data_ptr() for t in allowed}
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1].split(".")[0]
        boolean_index = name in ("index", "index_put", "index_put_") and any(
            torch.is_tensor(i) and i.dtype == torch.bool for i in args[1]
        )
        if name in self.NAMES or boolean_index:
            tensor = args[0]
            if not (tensor.dim() == 0 and tensor.untyped_storage().data_ptr() in self.allowed):
                self.found.append(f"{name}{tuple(tensor.shape)}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tensor_lr", [False, True])
@every_variant
def test_a_step_never_waits_for_the_device(row: OptimizerRow, variant: str, tensor_lr: bool) -> None:
    """Only 0-dim step counters and learning rates, which live on the CPU, may be read as Python numbers."""
    net = make_net(dtype=torch.float32)
    optimizer = row.build(net.parameters(), variant)
    if tensor_lr:
        optimizer.param_groups[0]["lr"] = torch.tensor(1e-2)
    for t in range(1, 4):
        backward(net, t)
        on_cpu = [s["step"] for s in optimizer.state.values() if torch.is_tensor(s.get("step"))]
        with Syncs([*on_cpu, *([optimizer.param_groups[0]["lr"]] if tensor_lr else [])]) as watch:
            optimizer.step()
        if t > 1:
            assert watch.found == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_variant
def test_a_step_runs_on_a_device_without_values(row: OptimizerRow, variant: str, dtype: torch.dtype) -> None:
    """The meta device has shapes and no numbers: any Python branch on a value, any transfer, would raise."""
    shapes = [(4, 5), (3, 2, 2, 2), (6,), (), (0, 3)]
    params = [nn.Parameter(torch.empty(s, device="meta", dtype=dtype)) for s in shapes]
    optimizer = row.build(params, variant)
    for _ in range(3):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
    for p in params:
        for key, value in optimizer.state[p].items():
            if torch.is_tensor(value) and value.dim():
                assert value.device.type == "meta", key


@every_row
def test_step_keeps_the_name_that_schedulers_patch(row: OptimizerRow) -> None:
    optimizer = row.build(make_net().parameters())
    assert inspect.ismethod(optimizer.step)
    assert optimizer.step.__func__ is not None


@pytest.mark.parametrize("name", ["AdamSPD", "SGDSPD"])
def test_weight_decay_means_decay_to_the_anchor_and_says_so_once(name: str) -> None:
    """Trainers inject weight_decay into every group; here it pulls toward the anchor, and that is announced once."""
    row, net = BY_NAME[name], make_net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = row.cls([{"params": [p], "weight_decay": 0.5} for p in net.parameters()], lr=1e-2, strength=0.0)  # type: ignore[call-arg]
        for t in range(1, 4):
            backward(net, t)
            optimizer.step()
    about = [w for w in caught if issubclass(w.category, UserWarning) and "anchor" in str(w.message)]
    assert len(about) == 1
    assert "weight_decay" in str(about[0].message)
    p = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    single = row.build([p], lr=0.1, strength=0.0, weight_decay=0.5)
    p.grad = torch.zeros_like(p)
    single.step()
    assert p.tolist() == [1.0, 2.0], "at its anchor a weight has nothing to decay to"
    with torch.no_grad():
        p.add_(1.0)
    single.step()
    torch.testing.assert_close(p.detach(), torch.tensor([1.95, 2.95], dtype=torch.float64))


def test_no_announcement_where_there_is_no_decay() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (mo.AdamSPD, mo.SGDSPD):
            net = make_net()
            optimizer = make(net.parameters(), lr=1e-2)
            backward(net, 1)
            optimizer.step()


@every_row
def test_frozen_parameters_and_missing_gradients_stay(row: OptimizerRow) -> None:
    net = make_net()
    net.conv.weight.requires_grad_(False)
    optimizer, before = row.build(net.parameters()), snapshot(net)
    for t in range(1, 4):
        backward(net, t)
        optimizer.step()
    names = [name for name, _ in net.named_parameters()]
    for name, p, b in zip(names, net.parameters(), before):
        if name in ("conv.weight", "unused"):
            assert torch.equal(p, b)
            assert not optimizer.state.get(p)
        elif p.numel():
            assert not torch.equal(p, b), name


@every_row
def test_gradients_of_a_finite_problem_give_finite_weights(row: OptimizerRow) -> None:
    net = make_net(dtype=torch.float32)
    optimizer = row.build(make_groups(net, {**row.reference.defaults, **row.hyper()}))
    for t in range(60):
        backward(net, t)
        optimizer.step()
    assert all(math.isfinite(float(p.detach().sum())) for p in net.parameters())
    assert gradients(optimizer.param_groups)
