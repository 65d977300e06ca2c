"""The gradient that the base sees, against each paper written as loops; and the closed forms of noise stability."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mooring as mo
from tests.perturb.table import PerturbedRow, every_row, gradient_of, loss_of, make


@every_row
def test_the_base_sees_the_methods_gradient(row: PerturbedRow) -> None:
    """Over eight steps, so that schedules and the counter of draws are followed too."""
    net = make()
    optimizer = row.build(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
    assert optimizer.gradients_per_step == row.gradients
    for t in range(8):
        weights = [p.detach().clone() for p in net.parameters()]
        naive = row.naive(weights, gradient_of(net, t), t, row.options)
        optimizer.zero_grad()
        for pass_ in optimizer.passes():
            with pass_:
                pass_.backward(loss_of(net, t))
        for p, w, g in zip(net.parameters(), weights, naive):
            assert torch.equal(p.detach(), w), "outside a pass the weights are the true ones"
            torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)
        optimizer.step()
        for p, w, g in zip(net.parameters(), weights, naive):
            torch.testing.assert_close(p.detach(), w - 0.1 * g, rtol=1e-9, atol=1e-12)


@every_row
def test_a_closure_does_the_same_however_it_clears_gradients(row: PerturbedRow) -> None:
    ends = []
    for how in ("passes", "optimizer", "base", "model", "never"):
        net = make()
        base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        optimizer = row.build(base, model=net)
        clear = {"optimizer": optimizer.zero_grad, "base": base.zero_grad, "model": net.zero_grad}.get(how)
        for t in range(4):
            if how in ("never", "passes"):
                optimizer.zero_grad()

            def closure(t: int = t, clear: Any = clear, net: nn.Module = net) -> Tensor:
                if clear is not None:
                    clear()
                loss = loss_of(net, t)
                loss.backward()
                return loss

            if how == "passes":
                for pass_ in optimizer.passes():
                    with pass_:
                        pass_.backward(loss_of(net, t))
                optimizer.step()
            else:
                assert isinstance(optimizer.step(closure), Tensor)
        ends.append([p.detach().clone() for p in net.parameters()])
    for end in ends[1:]:
        for p, q in zip(ends[0], end):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def quadratic(d: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    m = torch.randn(d, d, dtype=torch.float64)
    return m @ m.T / d, torch.randn(d, dtype=torch.float64)


def seen_gradient(optimizer: Any, p: nn.Parameter, loss: Any) -> Tensor:
    optimizer.zero_grad()
    for pass_ in optimizer.passes():
        with pass_:
            pass_.backward(loss())
    assert p.grad is not None
    return p.grad.clone()


def test_on_a_quadratic_two_points_give_the_gradient_and_one_point_its_variance() -> None:
    h, start = quadratic()
    p = nn.Parameter(start.clone())
    sigma, n = 0.3, 4000

    def loss() -> Tensor:
        return 0.5 * p @ h @ p

    exact = h @ start
    two = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=sigma, k=1)
    torch.testing.assert_close(seen_gradient(two, p, loss), exact, rtol=1e-12, atol=1e-13)
    one = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=sigma, k=1, two_point=False)
    samples = torch.stack([seen_gradient(one, p, loss) for _ in range(n)])
    variance = float((samples - exact).square().sum(1).mean())
    wanted = sigma**2 * float(h.square().sum())
    # |H u|^2 for normal u has variance 2 |H^2|_F^2 sigma^4.
    error = sigma**2 * math.sqrt(2 * float((h @ h).square().sum()) / n)
    assert abs(variance - wanted) < 4 * error
    many = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=sigma, k=4, two_point=False)
    fourth = torch.stack([seen_gradient(many, p, loss) for _ in range(n // 4)])
    ratio = float((fourth - exact).square().sum(1).mean()) / wanted
    assert abs(ratio - 0.25) < 4 * 0.25 * error / wanted * 2


@pytest.mark.parametrize(("two_point", "order"), [(True, 4), (False, 2)])
def test_orders_of_variance_and_bias(two_point: bool, order: int) -> None:
    """log-log slopes over sigma for f = sum(sinh): variance sigma^2 for one point, sigma^4 for two; bias exact."""
    sigmas, n = (0.05, 0.1, 0.2), 3000
    variances, biases = [], []
    for sigma in sigmas:
        p = nn.Parameter(torch.full((50,), 0.7, dtype=torch.float64))
        nso = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=sigma, k=1, two_point=two_point)
        samples = torch.stack([seen_gradient(nso, p, lambda p=p: torch.sinh(p).sum()) for _ in range(n // 50)])
        variances.append(float((samples - samples.mean()).square().mean()))
        biases.append(float(samples.mean()) - math.cosh(0.7))
    slope = math.log(variances[-1] / variances[0]) / math.log(sigmas[-1] / sigmas[0])
    assert abs(slope - order) < 0.15
    if two_point:
        for sigma, bias in zip(sigmas, biases):
            # E cosh(w + sigma x) = cosh(w) exp(sigma^2/2), and the spread of the mean is known.
            wanted = math.cosh(0.7) * math.expm1(sigma**2 / 2)
            assert abs(bias - wanted) < 5 * (variances[sigmas.index(sigma)] / n) ** 0.5


def test_asam_with_eta_treats_weights_and_others_as_the_paper_does() -> None:
    net = make()
    sam = mo.ASAM(torch.optim.SGD(net.named_parameters(), lr=0.1), rho=0.4, eta=0.01, model=net)
    gradient = gradient_of(net, 0)
    weights = [p.detach().clone() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]
    sizes = [w.abs() + 0.01 if n.endswith("weight") else torch.ones_like(w) for n, w in zip(names, weights)]
    g = gradient(weights)
    norm = float(sum(((s * x) ** 2).sum() for s, x in zip(sizes, g)) ** 0.5)
    naive = gradient([w + 0.4 / (norm + 1e-12) * s**2 * x for w, s, x in zip(weights, sizes, g)])
    for pass_ in sam.passes():
        with pass_:
            pass_.backward(loss_of(net, 0))
    for p, wanted in zip(net.parameters(), naive):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"eta=0\.01 acts on parameters named weight"):
        mo.ASAM(torch.optim.SGD(net.parameters(), lr=0.1), eta=0.01)


@pytest.mark.parametrize("law", ["normal", "laplace", "uniform"])
def test_laws_have_mean_zero_variance_one_and_their_own_fourth_moment(law: str) -> None:
    from mooring.perturb.noise import draw
    from mooring.perturb.weights import Member

    n = 400_000
    x = draw(Member(nn.Parameter(torch.empty(n)), {}, "w"), law, 12).double()
    kurtosis = {"normal": 3.0, "laplace": 6.0, "uniform": 1.8}[law]
    sixth_root = {"normal": 96**0.5, "laplace": (2520 - 36) ** 0.5, "uniform": (9 - 1.8**2) ** 0.5}[law]
    assert abs(float(x.mean())) < 5 / n**0.5
    assert abs(float(x.square().mean()) - 1) < 5 * (kurtosis - 1) ** 0.5 / n**0.5
    assert abs(float(x.pow(4).mean()) - kurtosis) < 5 * sixth_root / n**0.5


def test_noise_scales_with_what_it_is_relative_to_and_new_draws_are_new() -> None:
    p = nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    q = nn.Parameter(torch.tensor([0.0, 5.0]))
    nso = mo.NSO(torch.optim.SGD([p, q], lr=0.0), sigma=0.1, relative=True, k=2)
    before, seen = (p.detach().clone(), q.detach().clone()), []
    for pass_ in nso.passes():
        with pass_:
            seen.append((p.detach() - before[0], q.detach() - before[1]))
            (p.sum() + q.sum()).backward()
    for a, b in ((0, 1), (2, 3)):
        torch.testing.assert_close(seen[a][0], -seen[b][0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(seen[0][0], seen[2][0])
    unit = mo.NSO(torch.optim.SGD([p, q], lr=0.0), sigma=0.1, k=2)
    for pass_ in unit.passes():
        with pass_:
            if pass_.index == 0:
                torch.testing.assert_close(seen[0][0][0], (p.detach() - before[0])[0] * 12.5**0.5, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(seen[0][1], (q.detach() - before[1]) * 12.5**0.5, rtol=1e-4, atol=1e-5)
            (p.sum() + q.sum()).backward()


def test_one_process_is_one_copy() -> None:
    """Where there are no others, noise for each copy of the model is the noise of the model."""
    nets = make(), make()
    for net, per_rank in zip(nets, (False, True)):
        nso = mo.NSO(torch.optim.SGD(net.named_parameters(), lr=0.1), sigma=0.1, per_rank=per_rank, model=net)
        for t in range(2):
            nso.zero_grad()
            for pass_ in nso.passes():
                with pass_:
                    pass_.backward(loss_of(net, t))
            nso.step()
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), nets[1].parameters()))
