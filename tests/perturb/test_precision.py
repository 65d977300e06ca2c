"""Scaled, rounded, compiled, recomputed, accumulated: the same perturbed step in each of torch's machineries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mooring as mo
from mooring.kernels import random
from mooring.perturb.frame import Perturbed
from tests.perturb.table import KINDS, PerturbedRow, data, every_kind, every_row, loss_of, make

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "torch SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "unscales inside": lambda params: mo.AdamW(params, lr=0.01, max_grad_norm=0.5),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def assert_same(net: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def take(optimizer: Perturbed, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    for pass_ in optimizer.passes():
        with pass_:
            pass_.backward(loss())
    optimizer.step()


# --- GradScaler --------------------------------------------------------------------------------------------------


@every_base
@every_row
def test_a_scaled_loss_takes_the_same_steps(row: PerturbedRow, base: Any) -> None:
    """A power of two loses no digit, so what is left of the scale in any pass would be seen in the last bit.

    USAM's and RSAM's ascents depend on the gradient's size; the radius of the others hides a scale, but for the 1e-12
    in their denominators.
    """
    scaled, plain = make(), make()
    one, two = (row.build(base(net.parameters()), model=net) for net in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for t in range(5):
        one.zero_grad()
        for pass_ in one.passes(scaler=scaler):
            with pass_:
                pass_.backward(loss_of(scaled, t))
        scaler.step(one)
        scaler.update()
        take(two, lambda t=t: loss_of(plain, t))  # type: ignore[misc]
    assert scaler.get_scale() == 2.0**14
    for p, q in zip(scaled.parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-11)


@every_base
@every_row
def test_clipping_after_the_loop_sees_the_unscaled_average(row: PerturbedRow, base: Any) -> None:
    clipped, by_hand = make(), make()
    one, two = (row.build(torch.optim.SGD(net.parameters(), lr=0.1), model=net) for net in (clipped, by_hand))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for pass_ in one.passes(scaler=scaler):
        with pass_:
            pass_.backward(loss_of(clipped, 0))
    scaler.unscale_(one)
    norm = nn.utils.clip_grad_norm_(clipped.parameters(), 0.05)
    scaler.step(one)
    for pass_ in two.passes():
        with pass_:
            pass_.backward(loss_of(by_hand, 0))
    grads = [p.grad for p in by_hand.parameters() if p.grad is not None]
    expected = torch.cat([g.flatten() for g in grads]).norm()
    torch.testing.assert_close(norm, expected, rtol=1e-9, atol=0)
    assert expected > 0.05
    for g in grads:
        g.mul_(0.05 / expected)
    two.step()
    for p, q in zip(clipped.parameters(), by_hand.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


@every_base
@every_row
def test_several_losses_in_a_pass_are_their_sum(row: PerturbedRow, base: Any) -> None:
    together, apart = make(norm=False), make(norm=False)
    one, two = (row.build(base(net.parameters()), model=net) for net in (together, apart))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for t in range(3):
        take(one, lambda t=t: loss_of(together, t) + 0.1 * loss_of(together, t + 50))  # type: ignore[misc]
        two.zero_grad()
        for pass_ in two.passes(scaler=scaler):
            with pass_:
                pass_.backward(loss_of(apart, t))
                pass_.backward(0.1 * loss_of(apart, t + 50))
        scaler.step(two)
        scaler.update()
    for p, q in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-11)


class Saturated(nn.Module):
    """An infinite weight disappears behind the sigmoid: its output and all gradients stay finite."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.sigmoid(self.first(x.abs() + 0.1)))
        return out


@pytest.mark.parametrize("kind", ["inf", "one inf", "nan"])
@every_base
@every_row
def test_an_infinity_in_any_pass_skips_the_step_and_restores(row: PerturbedRow, base: Any, kind: str) -> None:
    torch.manual_seed(0)
    net = Saturated().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    optimizer = row.build(base(net.parameters()), model=net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def run(at: int | None) -> None:
        optimizer.zero_grad()
        for pass_ in optimizer.passes(scaler=scaler):
            with pass_:
                loss = net(x).square().mean()
                bad = float("nan") if kind == "nan" else float("inf")
                if pass_.index == at:
                    target = net.first.weight[0, 0] if kind == "one inf" else loss
                    loss = loss + (target * bad)
                pass_.backward(loss)
        scaler.step(optimizer)
        scaler.update()

    run(None)
    for at in range(optimizer.gradients_per_step):
        before, scale = weights(net), scaler.get_scale()
        run(at)
        assert scaler.get_scale() == scale / 2, at
        assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before)), at
    before = weights(net)
    run(None)
    assert not any(torch.equal(p, w) for p, w in zip(net.parameters(), before))
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_closure_through_the_scaler_is_refused_where_it_shows() -> None:
    """A base that unscales inside the step is told of the scaler; others cannot know it (docs/hosts.md)."""
    net = make()
    nso = mo.NSO(mo.AdamW(net.parameters(), max_grad_norm=1.0), sigma=0.1, model=net)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(net, 0)).backward()
    before, calls = weights(net), []
    with pytest.raises(
        RuntimeError, match=r"scaled gradients; use\s+`for pass_ in optimizer\.passes\(scaler=scaler\)`"
    ):
        scaler.step(nso, lambda: calls.append(1))
    assert not calls
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before))


def test_scaled_gradients_without_passes_are_refused() -> None:
    net = make()
    for base in BASES.values():
        optimizer = mo.SAM(base(net.parameters()), model=net)
        scaler = torch.amp.GradScaler("cpu")
        optimizer.zero_grad()
        scaler.scale(loss_of(net, 0)).backward()
        with pytest.raises(RuntimeError, match=r"needs gradients at perturbed weights"):
            scaler.step(optimizer)


# --- Rounding ----------------------------------------------------------------------------------------------------


@every_kind
def test_autocast_leaves_float32_weights_and_gradients(row: PerturbedRow) -> None:
    """Autocast keeps rounded copies of weights for as long as its block lasts: a pass must not see those of another."""
    net, other = make(torch.float32, norm=False), make(torch.float32, norm=False)
    one, two = (row.build(torch.optim.SGD(n.parameters(), lr=0.1), model=n) for n in (net, other))

    def autocast_loss(n: nn.Module, t: int) -> Tensor:
        x, y = data(t, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = n(x)
        assert out.dtype == torch.bfloat16
        return (out.float() - y).square().mean()

    for t in range(3):
        take(one, lambda t=t: autocast_loss(net, t))  # type: ignore[misc]
        two.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # around everything, as careless users write it
            for pass_ in two.passes():
                with pass_:
                    x, y = data(t, torch.float32)
                    pass_.backward((other(x).float() - y).square().mean())
        two.step()
        assert_same(net, other)
    assert all(
        p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_noise_on_half_weights_is_added_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    net = nn.Linear(64, 64, bias=False).to(dtype)
    nso = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.0), sigma=0.01, seed=3)
    before = net.weight.detach().clone()
    seen = []
    for pass_ in nso.passes():
        with pass_:
            seen.append(net.weight.detach().clone())
            pass_.backward(net(torch.ones(1, 64, dtype=dtype)).sum())
    generated = random.fill(torch.empty(64, 64), random.key("nso", 3, 0, 0, 0, "0"), "normal")
    assert torch.equal(seen[0], (before.float() + 0.01 * generated).to(dtype))
    assert torch.equal(seen[1], (before.float() - 0.01 * generated).to(dtype))
    twice = before + (0.01 * generated).to(dtype)  # rounded noise, and a sum rounded again: not what is done
    assert not torch.equal(seen[0], twice)
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("name", ["SAM", "ASAM", "USAM"])
def test_the_ascent_of_half_weights_is_computed_in_float32(name: str) -> None:
    net = nn.Linear(8, 8, bias=False).bfloat16()
    optimizer = getattr(mo, name)(torch.optim.SGD(net.parameters(), lr=0.0), rho=0.3)
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    seen, first = [], Tensor()
    for pass_ in optimizer.passes():
        with pass_:
            seen.append(net.weight.detach().clone())
            pass_.backward(net(x).float().square().mean())
        if pass_.index == 0:
            assert net.weight.grad is not None
            first = net.weight.grad.clone()
    w, g = seen[0].double(), first.double()
    size = w.abs() if name == "ASAM" else torch.ones_like(w)
    norm = 1.0 if name == "USAM" else (size * g).norm()
    exact = w + 0.3 * size**2 * g / norm
    wrong = (seen[1].double() - exact).abs() > exact.abs() * 2.0**-8 * 1.001  # half a unit in bfloat16's last place
    assert not wrong.any()


# --- Graphs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo() -> Iterator[Any]:
    import torch._dynamo

    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@every_kind
def test_a_compiled_model_is_not_compiled_again(row: PerturbedRow, backend: str, dynamo: Any) -> None:
    """With norm statistics, dropout and evaluation in between; and its steps are those of the model as written."""
    plain, net = make(torch.float32, dropout=0.4), make(torch.float32, dropout=0.4)
    compiled: Any = torch.compile(net, backend=backend)
    one = row.build(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
    two = row.build(torch.optim.SGD(plain.parameters(), lr=0.1), model=plain)
    seen = []
    for t in range(4):
        torch.manual_seed(t)
        take(one, lambda t=t: loss_of(compiled, t, torch.float32))  # type: ignore[misc]
        net.eval()
        with torch.no_grad():
            loss_of(compiled, t, torch.float32)
        net.train()
        seen.append(dynamo.utils.counters["stats"]["unique_graphs"])
        torch.manual_seed(t)
        take(two, lambda t=t: loss_of(plain, t, torch.float32))  # type: ignore[misc]
    assert 0 < seen[0] == seen[-1]
    for p, q in zip(net.parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dict(net.named_buffers()), dict(plain.named_buffers()), rtol=1e-5, atol=1e-6)


def test_a_compiled_model_may_be_the_one_that_is_given(dynamo: Any) -> None:
    net, plain = make(torch.float32), make(torch.float32)
    compiled: Any = torch.compile(net, backend="eager")
    one = mo.NSO(torch.optim.SGD(compiled.parameters(), lr=0.1), sigma=0.1, model=compiled)
    two = mo.NSO(torch.optim.SGD(plain.parameters(), lr=0.1), sigma=0.1, model=plain)
    for t in range(3):
        take(one, lambda t=t: loss_of(compiled, t, torch.float32))  # type: ignore[misc]
        take(two, lambda t=t: loss_of(plain, t, torch.float32))  # type: ignore[misc]
    assert_same(net, plain)
    torch.testing.assert_close(dict(net.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
@every_kind
def test_activations_computed_again_see_the_moved_weights_and_the_same_masks(
    row: PerturbedRow, reentrant: bool
) -> None:
    whole, again = make(dropout=0.4, norm=False), make(dropout=0.4, norm=False)
    one, two = (row.build(torch.optim.SGD(n.parameters(), lr=0.1), model=n) for n in (whole, again))

    def recomputed(t: int) -> Tensor:
        x, y = data(t)
        out = checkpoint(again, x.requires_grad_(), use_reentrant=reentrant)
        loss: Tensor = (out - y).square().mean()
        return loss

    for t in range(3):
        torch.manual_seed(t)
        take(one, lambda t=t: loss_of(whole, t))  # type: ignore[misc]
        torch.manual_seed(t)
        take(two, lambda t=t: recomputed(t))  # type: ignore[misc]
    assert_same(whole, again)


# --- Accumulation ------------------------------------------------------------------------------------------------


@every_base
@every_row
def test_micro_batches_inside_each_pass_are_one_batch(row: PerturbedRow, base: Any) -> None:
    whole, split = make(norm=False), make(norm=False)
    one, two = (row.build(base(n.parameters()), model=n) for n in (whole, split))
    for t in range(4):
        take(one, lambda t=t: loss_of(whole, t))  # type: ignore[misc]
        x, y = data(t)
        two.zero_grad()
        for pass_ in two.passes():
            with pass_:
                for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
                    pass_.backward((split(x[part]) - y[part]).square().mean() / 3)
        two.step()
    for p, q in zip(whole.parameters(), split.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["optimizer", "model", "none"])
@every_kind
def test_gradients_cleared_inside_a_pass_are_not_lost(row: PerturbedRow, way: str) -> None:
    """Closures clear gradients at their beginning, and earlier passes are already in them."""
    cleared, plain = make(), make()
    one, two = (row.build(torch.optim.SGD(n.parameters(), lr=0.1), model=n) for n in (cleared, plain))
    for t in range(3):

        def closure(t: int = t) -> Tensor:
            if way == "optimizer":
                one.zero_grad()
            elif way == "model":
                cleared.zero_grad()
            loss = loss_of(cleared, t)
            loss.backward()
            return loss

        if way == "none":
            one.zero_grad()
        one.step(closure)
        take(two, lambda t=t: loss_of(plain, t))  # type: ignore[misc]
    for p, q in zip(cleared.parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-14)


@every_base
@every_row
def test_gradients_from_before_the_step_are_not_used(row: PerturbedRow, base: Any) -> None:
    """A closure that clears gradients sees the loss of now in every pass; what was left over is gone."""
    net, plain = make(), make()
    one, two = (row.build(base(n.parameters()), model=n) for n in (net, plain))
    for t in range(3):
        for p in net.parameters():
            p.grad = torch.full_like(p, 7.0)

        def closure(t: int = t) -> Tensor:
            one.zero_grad()
            loss = loss_of(net, t)
            loss.backward()
            return loss

        one.step(closure)
        take(two, lambda t=t: loss_of(plain, t))  # type: ignore[misc]
    assert_same(net, plain)


def test_the_memory_of_a_step_is_one_copy_of_the_weights() -> None:
    """Noise is drawn again wherever it is needed, and gradients add up where they are: nothing else is kept."""
    for row in KINDS:
        net = make(norm=False)
        optimizer = row.build(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
        for pass_ in optimizer.passes():
            with pass_:
                pass_.backward(loss_of(net, 0))
                kept = sum(x.numel() * x.element_size() for x in optimizer._weights._saved)
                if pass_.stage.place is not None:
                    assert kept == sum(p.numel() * p.element_size() for p in net.parameters())
        assert not optimizer._weights._saved
        assert not optimizer.state
        optimizer.step()
        assert not any(optimizer.state.values())


# --- What hosts need ---------------------------------------------------------------------------------------------


def test_a_closure_of_hooks_is_called_once_after_the_loop() -> None:
    """Lightning hands its hooks to step as a closure, after the passes were taken."""
    net, plain = make(), make()
    one, two = (mo.NSO(torch.optim.SGD(n.parameters(), lr=0.1), sigma=0.1, model=n) for n in (net, plain))
    for pass_ in one.passes():
        with pass_:
            pass_.backward(loss_of(net, 0))
    calls = []
    with one.closure_without_gradient():
        one.step(lambda: calls.append(torch.is_grad_enabled()))
    assert calls == [True]
    take(two, lambda: loss_of(plain, 0))
    assert_same(net, plain)
    with pytest.raises(RuntimeError, match="needs gradients at perturbed weights"), one.closure_without_gradient():
        one.step(lambda: None)  # no loop before it
    one.step(lambda: loss_of(net, 1))  # and outside of the block a closure is the gradient's again
    assert one.param_groups[0]["noise_draws"] == 2


def test_a_module_that_is_attached_later_is_the_one_that_counts() -> None:
    net, plain = make(), make()
    one = mo.NSO(torch.optim.SGD(net.parameters(), lr=0.1), sigma=0.1)
    two = mo.NSO(torch.optim.SGD(plain.parameters(), lr=0.1), sigma=0.1, model=plain)
    before = weights(net)
    for pass_ in one.passes():
        with pass_:
            loss_of(net.eval(), 0).backward()
        break
    net.train()
    one.attach(net)  # the loop that was left is given up
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before))
    for t in range(2):
        take(one, lambda t=t: loss_of(net, t))  # type: ignore[misc]
        take(two, lambda t=t: loss_of(plain, t))  # type: ignore[misc]
    assert_same(net, plain)
    torch.testing.assert_close(dict(net.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)
