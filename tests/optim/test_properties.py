"""The properties that the methods promise, each against its own closed form (not against the naive references)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from tests.optim.problems import backward, make_net

DOUBLE = torch.float64


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=DOUBLE))


def noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(10_000 + seed)
    return torch.randn(like.shape, generator=generator, dtype=DOUBLE)


def weights_of(make: Callable[[nn.Module], torch.optim.Optimizer], steps: int = 20, scale: float = 1.0) -> list[Tensor]:
    """The weights of the tiny net after a few steps; `scale` multiplies the loss."""
    net = make_net()
    optimizer = make(net)
    for t in range(steps):
        backward(net, t)
        for p in net.parameters():
            if p.grad is not None:
                p.grad.mul_(scale)
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


# --- 1. Projection -----------------------------------------------------------------------------------------------


def tangent(g: Tensor, p: Tensor, by_row: bool) -> Tensor:
    """g without its radial part."""
    if by_row:
        return g - p * (g * p).sum(1, keepdim=True) / (p * p).sum(1, keepdim=True)
    return g - p * (g * p).sum() / (p * p).sum()


def test_projected_update_has_no_radial_part_by_row() -> None:
    p, eps, lr = parameter(5, 12), 1e-8, 1e-2
    optimizer = mo.AdamP([p], lr=lr, eps=eps, delta=0.1)
    for t in range(25):
        before = p.detach().clone()
        p.grad = tangent(noise(p, t), before, by_row=True)
        optimizer.step()
        state = optimizer.state[p]
        u = state["exp_avg"] / (1 - 0.9 ** (t + 1)) / ((state["exp_avg_sq"] / (1 - 0.999 ** (t + 1))).sqrt() + eps)
        hat = before / before.norm(dim=1, keepdim=True)
        update = (before - p.detach()) / lr
        allowed = 2 * eps / before.norm(dim=1) * (u * hat).sum(1).abs() + 1e-12
        assert ((update * hat).sum(1).abs() <= allowed).all()
        if t > 2:
            assert ((u * hat).sum(1).abs() > 1e-3).any(), "the direction had no radial part to remove"


def test_projected_update_has_no_radial_part_by_tensor() -> None:
    p, eps, lr = parameter(4, 30), 1e-8, 1e-2
    optimizer = mo.SGDP([p], lr=lr, momentum=0.9, eps=eps)
    buffer, radial_by_row = torch.zeros_like(p), 0.0
    for t in range(25):
        before = p.detach().clone()
        # Radial parts of opposite sign in the rows keep the row view from firing by chance.
        signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=DOUBLE)
        p.grad = tangent(noise(p, t) + signs * before, before, by_row=False)
        optimizer.step()
        buffer = 0.9 * buffer + p.grad
        hat = before / before.norm()
        update = (before - p.detach()) / lr
        assert abs((update * hat).sum()) <= 2 * eps / before.norm() * abs((buffer * hat).sum()) + 1e-12
        assert torch.allclose(update, buffer - hat * (hat * buffer).sum(), rtol=0, atol=1e-7)
        radial_by_row = max(radial_by_row, float((update * before).sum(1).abs().max()))
    assert radial_by_row > 0.1, "rows were projected too, so the tensor view was not tested"


@pytest.mark.parametrize("make", [mo.AdamP, lambda ps, **k: mo.SGDP(ps, momentum=0.9, **k)], ids=["AdamP", "SGDP"])
def test_pythagoras_without_decay(make: Callable[..., torch.optim.Optimizer]) -> None:
    p = parameter(6, 9)
    optimizer = make([p], lr=0.05)
    for t in range(20):
        before = p.detach().clone()
        p.grad = tangent(noise(p, t), before, by_row=True)
        optimizer.step()
        after = p.detach()
        grown = after.norm() ** 2 - before.norm() ** 2
        assert float(grown) == pytest.approx(float((after - before).norm() ** 2), rel=1e-6)


def test_delta_zero_is_adamw() -> None:
    ours = weights_of(lambda net: mo.AdamP(net.parameters(), lr=1e-2, weight_decay=0.3, delta=0.0))
    plain = weights_of(lambda net: mo.AdamW(net.parameters(), lr=1e-2, weight_decay=0.3))
    assert all(torch.equal(x, y) for x, y in zip(ours, plain))


@pytest.mark.parametrize("delta", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("shape", [(), (1,), (7,)])
def test_vectors_and_scalars_are_never_projected(delta: float, shape: tuple[int, ...]) -> None:
    p, q = parameter(*shape), parameter(*shape)
    ours = mo.AdamP([p], lr=1e-2, weight_decay=0.3, delta=delta)
    plain = mo.AdamW([q], lr=1e-2, weight_decay=0.3)
    for t in range(10):
        p.grad = noise(p, t)
        q.grad = noise(q, t)
        ours.step()
        plain.step()
    assert torch.equal(p, q)


def test_projected_weights_get_the_reduced_decay() -> None:
    for tangential, rho in ((True, 0.25), (False, 1.0)):
        p = parameter(5, 8)
        before = p.detach().clone()
        # A purely radial gradient is as far from the cosine test as can be; a tangent one passes it.
        p.grad = tangent(noise(p, 0), before, by_row=True) if tangential else before.clone()
        mo.SGDP([p], lr=0.1, momentum=0.5, weight_decay=0.2, wd_ratio=0.25).step()
        expected = before * (1 - 0.1 * 0.2 * rho / (1 - 0.5)) - 0.1 * p.grad
        torch.testing.assert_close(p.detach(), expected, rtol=1e-7, atol=1e-9)


# --- 2. Norm growth ----------------------------------------------------------------------------------------------


def norm_growth(optimizer: torch.optim.Optimizer, w: nn.Parameter, steps: int) -> float:
    """(norm_T^2 - norm_0^2) / sum of squared steps on L = 1 - cos(w, x_t), x_t fresh noise: scale invariant in w."""
    generator = torch.Generator().manual_seed(1)
    noises = torch.randn(steps, w.numel(), generator=generator, dtype=DOUBLE)
    start, travelled = float(w.detach().norm() ** 2), 0.0
    for x in noises:
        p = w.detach().flatten()
        size = p.norm()
        hat, direction = p / size, x / x.norm()
        w.grad = (-(direction - hat * (hat @ direction)) / size).view_as(w)
        before = p.clone()
        optimizer.step()
        travelled += float((w.detach().flatten() - before).norm() ** 2)
    return (float(w.detach().norm() ** 2) - start) / travelled


@pytest.mark.parametrize(("beta", "figure"), [(0.0, 1.0), (0.5, 3.0), (0.9, 19.0), (0.99, 199.0)])
def test_momentum_inflates_the_norm(beta: float, figure: float) -> None:
    w = parameter(1, 16)
    steps = round(200 / (1 - beta))
    ratio = norm_growth(mo.SGD([w], lr=1e-2 * (1 - beta), momentum=beta), w, steps)
    assert figure == pytest.approx(1 + 2 * beta / (1 - beta))
    assert ratio == pytest.approx(figure, rel=0.01)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_projection_does_not(beta: float) -> None:
    w = parameter(1, 16)
    assert norm_growth(mo.SGDP([w], lr=1e-2, momentum=beta), w, 300) == pytest.approx(1.0, rel=1e-5)


# --- 3. Stable decay, adaptive -----------------------------------------------------------------------------------


def test_adams_is_adamw_when_every_gradient_is_one() -> None:
    p, q = parameter(4, 5), parameter(4, 5)
    ours = mo.AdamS([p], lr=1e-2, weight_decay=0.3, one_parameter=True)
    theirs = torch.optim.AdamW([q], lr=1e-2, weight_decay=0.3)
    for t in range(50):
        p.grad = noise(p, t).sign()
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("c", [1e-3, 128.0])
def test_adams_scales_with_loss_and_decay_together(c: float, eps: float) -> None:
    def make(scale: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
        def build(net: nn.Module) -> torch.optim.Optimizer:
            # With eps = 0 a gradient that is zero for ever is 0/0; only parameters with gradients take part.
            params = [p for name, p in net.named_parameters() if not name.startswith("embedding")]
            return mo.AdamS(params, lr=1e-2, weight_decay=2e-3 * scale, eps=eps * scale)

        return build

    scaled, plain = weights_of(make(c), 4, scale=c), weights_of(make(1.0), 4)
    without = weights_of(lambda net: mo.AdamS(net.parameters(), lr=1e-2, weight_decay=0.0), 4)
    for x, y in zip(scaled, plain):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)
    assert any((y - z).norm() > 1e-6 for y, z in zip(plain, without)), "no decay to speak of"


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_does_not_care_how_parameters_are_grouped(amsgrad: bool) -> None:
    def grouped(cut: list[int]) -> Callable[[nn.Module], torch.optim.Optimizer]:
        def build(net: nn.Module) -> torch.optim.Optimizer:
            params = list(net.parameters())
            edges = [0, *cut, len(params)]
            groups = [{"params": params[i:j]} for i, j in pairwise(edges)]
            return mo.AdamS(groups, lr=1e-2, weight_decay=5e-3, amsgrad=amsgrad)

        return build

    one = weights_of(grouped([]))
    for cut in ([3], [1, 2, 5, 8]):
        for x, y in zip(weights_of(grouped(cut)), one):
            torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)


def test_adams_mean_covers_every_element_of_every_group() -> None:
    """Two tensors of different size and scale in two groups; the second has no decay and still counts."""
    x, y = nn.Parameter(torch.ones(2, dtype=DOUBLE)), nn.Parameter(torch.ones(3, 2, dtype=DOUBLE))
    x.grad, y.grad = torch.full_like(x, 4.0), torch.full_like(y, 1.0)
    groups: list[dict[str, Any]] = [{"params": [x]}, {"params": [y], "weight_decay": 0.0}]
    mo.AdamS(groups, lr=0.1, weight_decay=0.5).step()
    v_bar = (2 * 16 + 6 * 1) / 8
    torch.testing.assert_close(
        x.detach(), torch.full_like(x, 1 - 0.1 * 0.5 / math.sqrt(v_bar) - 0.1), rtol=1e-8, atol=0
    )
    torch.testing.assert_close(y.detach(), torch.full_like(y, 1 - 0.1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_without_decay_is_adam(amsgrad: bool) -> None:
    ours = weights_of(lambda net: mo.AdamS(net.parameters(), lr=1e-2, weight_decay=0.0, amsgrad=amsgrad))
    plain = weights_of(lambda net: mo.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0, amsgrad=amsgrad))
    assert all(torch.equal(x, y) for x, y in zip(ours, plain))


# --- 4. Stable decay, SGD ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "dampening"), [(0.0, 0.0), (0.0, 0.5), (0.9, 0.0), (0.9, 0.25), (0.99, 0.99)])
def test_sgds_shrinks_by_the_same_factor_from_the_first_step(mu: float, dampening: float) -> None:
    p, lr, decay = parameter(3, 4), 1e-2, 1e-2
    optimizer = mo.SGDS([p], lr=lr, momentum=mu, dampening=dampening, weight_decay=decay)
    for _ in range(8):
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        optimizer.step()
        factor = 1 - lr * decay * (1 - dampening) / (1 - mu)
        torch.testing.assert_close(p.detach(), before * factor, rtol=1e-15, atol=0)


def test_coupled_decay_in_momentum_does_not() -> None:
    """What stable decay repairs: torch's (and our own) SGD takes 1, 4.10 and at last 10 times lr * decay."""
    p, lr, decay = parameter(3, 4), 1e-5, 1e-3
    optimizer = mo.SGD([p], lr=lr, momentum=0.9, weight_decay=decay)
    shrinks = []
    for _ in range(150):
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        optimizer.step()
        shrinks.append(float(((before - p.detach()) / before).mean()) / (lr * decay))
    assert shrinks[0] == pytest.approx(1.00, abs=0.005)
    assert shrinks[4] == pytest.approx(4.10, abs=0.005)
    assert shrinks[-1] == pytest.approx(10.0, abs=0.005)


# --- 5. Selective projection -------------------------------------------------------------------------------------


def plain_step(optimizer: torch.optim.Optimizer, p: nn.Parameter, plain: type[torch.optim.Optimizer]) -> Tensor:
    """Where the plain optimizer would go from here: torch's, with the moments of ours."""
    twin = nn.Parameter(p.detach().clone())
    assert p.grad is not None
    twin.grad = p.grad.clone()
    group = {k: v for k, v in optimizer.param_groups[0].items() if k in ("lr", "betas", "eps", "momentum")}
    other = plain([twin], **group, weight_decay=0.0)  # type: ignore[call-arg]
    kept = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
    other.state[twin] = {k: copy.deepcopy(v) for k, v in optimizer.state[p].items() if k in kept and v is not None}
    other.step()
    return twin.detach()


@pytest.mark.parametrize("strength", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("method", ["AdamSPD", "SGDSPD"])
def test_spd_radius_law(method: str, strength: float) -> None:
    p = parameter(4, 6)
    anchor = p.detach().clone()
    if method == "AdamSPD":
        plain: type[torch.optim.Optimizer] = torch.optim.AdamW
        optimizer: torch.optim.Optimizer = mo.AdamSPD([p], lr=2e-2, strength=strength)
    else:
        plain = torch.optim.SGD
        optimizer = mo.SGDSPD([p], lr=2e-2, momentum=0.8, strength=strength)
    active = 0
    for t in range(60):
        # A gradient that often points back to the anchor's side, so that both branches occur.
        p.grad = noise(p, t) + 0.3 * math.sin(t / 5) * (p.detach() - anchor)
        before = p.detach().clone()
        pending = plain_step(optimizer, p, plain)
        optimizer.step()
        after, c = p.detach(), -float((p.grad * (before - anchor)).sum())
        gamma, previous = float((pending - anchor).norm()), float((before - anchor).norm())
        if c < 0:
            active += gamma > previous
            expected = abs(gamma - strength * max(0.0, gamma - previous))
            assert float((after - anchor).norm()) == pytest.approx(expected, rel=1e-11)
            r = max(0.0, gamma - previous) / gamma
            cosine = float(((after - anchor) * (pending - anchor)).sum()) / (gamma * float((after - anchor).norm()))
            assert cosine == pytest.approx(1.0 if strength * r < 1 else -1.0, rel=1e-12)
        else:
            torch.testing.assert_close(after, pending, rtol=1e-12, atol=1e-13)
    assert active > 5


@pytest.mark.parametrize("make", [mo.AdamSPD, mo.SGDSPD], ids=["AdamSPD", "SGDSPD"])
def test_spd_is_inactive_at_the_first_step(make: Callable[..., torch.optim.Optimizer]) -> None:
    def first(strength: float) -> list[Tensor]:
        return weights_of(lambda net: make(net.parameters(), lr=0.1, strength=strength), steps=1)

    assert all(torch.equal(x, y) for x, y in zip(first(5.0), first(0.0)))


@pytest.mark.parametrize("anchor", ["capture", "zero", None])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_spd_of_strength_zero_is_adam(anchor: str | None, amsgrad: bool) -> None:
    ours = weights_of(lambda net: mo.AdamSPD(net.parameters(), lr=1e-2, strength=0.0, anchor=anchor, amsgrad=amsgrad))
    plain = weights_of(lambda net: mo.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0, amsgrad=amsgrad))
    assert all(torch.equal(x, y) for x, y in zip(ours, plain))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdspd_of_strength_zero_is_sgd(nesterov: bool) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "momentum": 0.9, "nesterov": nesterov}
    ours = weights_of(lambda net: mo.SGDSPD(net.parameters(), strength=0.0, **options))
    plain = weights_of(lambda net: mo.SGD(net.parameters(), **options))
    assert all(torch.equal(x, y) for x, y in zip(ours, plain))


def test_spd_moves_with_a_shift_of_weights_and_anchor() -> None:
    def run(shift: float) -> Tensor:
        p = nn.Parameter(parameter(5, 5).detach() + shift)
        centre = parameter(5, 5, seed=9).detach() + shift
        optimizer = mo.AdamSPD([p], lr=2e-2, strength=0.8)
        for t in range(100):
            p.grad = (p.detach() - centre) + noise(p, t)
            optimizer.step()
        return p.detach() - shift

    torch.testing.assert_close(run(16.0), run(0.0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("c", [1e-6, 3.0, 1e5])
def test_spd_decisions_do_not_depend_on_the_scale_of_the_loss(c: float) -> None:
    def run(scale: float) -> Tensor:
        p = parameter(5, 5)
        optimizer = mo.AdamSPD([p], lr=2e-2, eps=0.0)
        for t in range(100):
            p.grad = scale * ((p.detach() - 1) + noise(p, t))
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run(c), run(1.0), rtol=1e-11, atol=1e-12)


def test_decay_to_a_zero_anchor_is_adamws_decay() -> None:
    with pytest.warns(UserWarning, match="anchor"):
        p = parameter(4, 4)
        ours = mo.AdamSPD([p], lr=1e-2, weight_decay=0.5, strength=0.0, anchor="zero")
    q = parameter(4, 4)
    theirs = torch.optim.AdamW([q], lr=1e-2, weight_decay=0.5)
    for t in range(20):
        p.grad = noise(p, t)
        q.grad = noise(q, t)
        ours.step()
        theirs.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-13, atol=1e-14)
