"""Noise stability and slices, against closed forms; what is left behind."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mooring.kernels import random
from mooring.measure import Hessian, loss_along, noise_stability
from mooring.perturb.noise import draw
from mooring.perturb.weights import Member


class Quadratic(nn.Module):
    """f = p·Ap/2 + b·p + 3 over two parameters, one a matrix, one a vector."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(8, 8, generator=generator, dtype=torch.float64)
        self.a, self.b = half @ half.T - torch.eye(8), torch.randn(8, generator=generator, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
        self.v = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))

    def at(self, p: Tensor) -> Tensor:
        return p @ self.a @ p / 2 + self.b @ p + 3

    def forward(self, share: float) -> Tensor:
        return share * self.at(self.flat())

    def flat(self) -> Tensor:
        return torch.cat([self.w.reshape(-1), self.v])


def loss(model: nn.Module, share: float) -> Tensor:
    value: Tensor = model(share)
    return value


SHARES = [0.5, 1.5]  # their mean is 1


@pytest.mark.parametrize("law", ["normal", "laplace", "uniform"])
def test_noise_on_a_quadratic_costs_its_curvature(law: str) -> None:
    """Each pair gives U·AU/2 exactly, so rise and error are those of the draws; their mean is sigma²/2 tr A."""
    net = Quadratic()
    found = noise_stability(net, loss, SHARES, [0.01, 0.5], draws=60, law=law, seed=2)
    exact = []
    for j in range(60):
        parts = [draw(Member(p, {}, n), law, random.key("stability", 2, j, n)) for n, p in net.named_parameters()]
        u = torch.cat([x.reshape(-1) for x in parts])
        exact.append(float(u @ net.a @ u / 2))
    values = torch.tensor(exact, dtype=torch.float64)
    for row in found:
        assert row.rise.value == pytest.approx(row.sigma**2 * float(values.mean()), rel=1e-8)
        assert row.rise.error == pytest.approx(row.sigma**2 * float(values.std()) / 60**0.5, rel=1e-5)
        assert row.trace.value == pytest.approx(2 * row.rise.value / row.sigma**2)
        assert abs(row.trace.value - float(net.a.trace())) < 4 * row.trace.error


def test_the_implied_trace_is_the_hessians_up_to_sigma_squared() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()

    def squared(model: Any, _: None) -> Tensor:
        return (model(x) - y).square().mean()

    trace = float(Hessian(net, squared, [None]).dense().trace())
    small, large = noise_stability(net, squared, [None], [1e-3, 0.025], draws=500)
    assert abs(small.trace.value - trace) < 3 * small.trace.error < 0.2 * trace
    quartic = noise_stability(net, squared, [None], [0.05], draws=500)[0].trace.value - small.trace.value
    assert quartic / (large.trace.value - small.trace.value) == pytest.approx(4, rel=0.03)  # the same draws, scaled


@pytest.mark.parametrize("direction", ["random", "filter", "gradient"])
def test_slices_of_a_quadratic_are_parabolas(direction: str) -> None:
    net = Quadratic()
    found = loss_along(net, loss, SHARES, direction, reach=0.3, points=7, seed=5)
    flat = net.flat().detach()
    if direction == "gradient":
        d = net.a @ flat + net.b
        d = d / d.norm() * flat.norm()
    else:
        named = net.named_parameters()
        w, v = (draw(Member(p, {}, n), "normal", random.key("direction", 5, n)) for n, p in named)
        if direction == "filter":
            w = w / w.norm(dim=1, keepdim=True) * net.w.detach().norm(dim=1, keepdim=True)
            d = torch.cat([w.reshape(-1), torch.zeros(2).double()])
        else:
            d = torch.cat([w.reshape(-1), v])
            d = d / d.norm() * flat.norm()
    assert found.steps == pytest.approx([-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]) and found.steps[3] == 0
    assert list(found.losses) == pytest.approx([float(net.at(flat + t * d)) for t in found.steps], rel=1e-12)
    if direction == "gradient":
        assert found.losses[4] > found.losses[3]


def measures(net: nn.Module, of: Any, batches: list[Any]) -> list[Any]:
    return [
        lambda: noise_stability(net, of, batches, [0.1], draws=2),
        *(lambda d=d: loss_along(net, of, batches, d, points=3) for d in ("random", "filter", "gradient")),
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("raises", [False, True])
def test_nothing_is_left_behind(which: int, raises: bool) -> None:
    """Single precision, where undoing by subtraction would change bits."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Dropout(0.5), nn.Linear(40, 2))
    net.train()
    calls = 0

    def of(model: Any, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        torch.rand(1)
        if raises and calls == 3:
            raise KeyboardInterrupt
        value: Tensor = model(batch).square().mean()
        return value

    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    measure = measures(net, of, [torch.randn(5, 3, generator=torch.Generator().manual_seed(0))])[which]
    if raises:
        with pytest.raises(KeyboardInterrupt):
            measure()
    else:
        first = measure()
        assert first == measure()  # the same seed, the same numbers
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert all(m.training for m in net.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments() -> None:
    net = Quadratic()
    with pytest.raises(ValueError, match=r"sigmas must be finite numbers > 0, at least one, got \[0.1, 0\]"):
        noise_stability(net, loss, SHARES, [0.1, 0])
    with pytest.raises(ValueError, match="draws must be an integer >= 1, got 0"):
        noise_stability(net, loss, SHARES, draws=0)
    with pytest.raises(ValueError, match="law must be one of 'normal', 'laplace', 'uniform', got 'cauchy'"):
        noise_stability(net, loss, SHARES, law="cauchy")
    with pytest.raises(ValueError, match="direction must be one of 'random', 'filter', 'gradient', got 'up'"):
        loss_along(net, loss, SHARES, "up")
    with pytest.raises(ValueError, match="points must be an odd integer >= 3, got 4"):
        loss_along(net, loss, SHARES, points=4)
    with pytest.raises(ValueError, match="reach must be a finite number > 0, got 0"):
        loss_along(net, loss, SHARES, reach=0)
    with pytest.raises(ValueError, match="the gradient of the loss is 0 here"):
        loss_along(net, lambda m, b: 0 * m(b), SHARES, "gradient")
    [one] = noise_stability(net, loss, SHARES, [0.1], draws=1)
    assert math.isnan(one.rise.error)
    told: list[tuple[int, int | None]] = []
    noise_stability(net, loss, SHARES, [0.1, 0.2], draws=2, progress=lambda *x: told.append(x))
    loss_along(net, loss, SHARES, points=3, progress=lambda *x: told.append(x))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 3), (2, 3), (3, 3)]
