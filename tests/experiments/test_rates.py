"""How fast NSO finds a stationary point of F(w) = E f(w + U): the mean of |grad F|^2 falls like (k T)^(-1/2).

For f with a C-Lipschitz gradient and gradient estimates of variance v / k, the descent lemma gives for eta <= 1/C

    mean over t < T of E |grad F(W_t)|^2 <= 2 D^2 / (eta T) + C eta v / k,        D^2 = F(W_0) - min F

which eta = sqrt(2 k D^2 / (C v T)) makes smallest: O(sqrt(C D^2 v / (k T))), with v = s^2 + C^2 sigma^2 d, s^2 of the
mini-batch and sigma^2 d = E|U|^2 of the noise. The order in k and T is the one that the paper on NSO states; the step
size is this bound's own, because the theorem's text was not at hand. Every pair has to see a mini-batch of its own
(fresh_batches): with one batch for all pairs, k only divides the noise's part of v.

The mean over all iterates is the expectation for one drawn uniformly. Two problems, 64 independent runs of each:

- f(w) = wᵀ diag(1, 1/2) w / 2 from (1, 1), gradients with noise of variance 1 in all;
- f(w) = log(1 + w^2) / 2 from 1.5, not convex beyond 1, the same noise, sigma 0.5.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import mooring as mo

RUNS, BATCH, SIGMA = 64, 1.0, 0.5
CURVATURES = torch.tensor([1.0, 0.5], dtype=torch.float64)
KS = (1, 2, 4, 8)


def nodes() -> tuple[Tensor, Tensor]:
    """Gauss-Hermite quadrature for a standard normal variable, 40 nodes, by the eigenvalues of its Jacobi matrix."""
    off = torch.arange(1, 40, dtype=torch.float64).sqrt()
    x, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return x, vectors[0].square()


NODES, WEIGHTS = nodes()


def curved(w: Tensor) -> Tensor:
    """The gradient of log(1 + w^2) / 2."""
    return w / (1 + w.square())


def smoothed_gradient(w: Tensor) -> Tensor:
    return curved(w.unsqueeze(-1) + SIGMA * NODES) @ WEIGHTS


def gaps() -> tuple[float, float]:
    """F(W_0) - min F of both problems."""

    def f(w: float) -> float:
        return float((0.5 * torch.log1p((w + SIGMA * NODES).square())) @ WEIGHTS)

    return 0.5 * float(CURVATURES.sum()), f(1.5) - f(0.0)


def run(k: int, steps: int, fresh: bool = True) -> tuple[Tensor, Tensor]:
    """The mean of |grad F|^2 over the iterates of every run: two vectors of RUNS numbers."""
    generator = torch.Generator().manual_seed(k * 1_000_003 + steps)
    quadratic = nn.Parameter(torch.ones(RUNS, 2, dtype=torch.float64))
    valley = nn.Parameter(torch.full((RUNS, 1), 1.5, dtype=torch.float64))
    # Two points of a quadratic see none of the noise on the weights; the bound counts it for the valley, C = 1 in both.
    rates = [math.sqrt(2 * k * gap / (v * steps)) for gap, v in zip(gaps(), (BATCH, BATCH + SIGMA**2))]
    assert max(rates) <= 1
    base = torch.optim.SGD([{"params": [quadratic], "lr": rates[0]}, {"params": [valley], "lr": rates[1]}])
    optimizer = mo.NSO(base, sigma=SIGMA, k=k, fresh_batches=fresh)
    seen = torch.zeros(2, RUNS, dtype=torch.float64)
    size = torch.tensor([BATCH / 2, BATCH / 2, BATCH], dtype=torch.float64).sqrt()
    for _ in range(steps):
        q, w = quadratic.detach(), valley.detach()
        seen[0] += (q * CURVATURES).square().sum(1)
        seen[1] += smoothed_gradient(w[:, 0]).square()
        optimizer.zero_grad()
        for pass_ in optimizer.passes():
            if pass_.new_batch:
                xi = size * torch.randn(RUNS, 3, generator=generator, dtype=torch.float64)
            with pass_:
                for p, g in ((quadratic, q * CURVATURES + xi[:, :2]), (valley, curved(w) + xi[:, 2:])):
                    p.grad = g if p.grad is None else p.grad.add_(g)
        optimizer.step()
    return seen[0] / steps, seen[1] / steps


def exact_quadratic(k: int, steps: int) -> float:
    """The expectation where every pair has a batch of its own."""
    return stationary_and_transient(math.sqrt(2 * k * gaps()[0] / (BATCH * steps)), BATCH / k, steps)


def stationary_and_transient(eta: float, variance: float, steps: int) -> float:
    """Closed form: E w_t^2 is a geometric sequence on the way to its stationary value."""
    total = 0.0
    for h in CURVATURES.tolist():
        r = (1 - eta * h) ** 2
        rest = eta**2 * variance / 2 / (1 - r)
        total += h**2 * (rest + (1 - rest) * (1 - r**steps) / (1 - r) / steps)
    return total


def fit(cells: dict[int, Tensor]) -> tuple[float, float]:
    """Slope of log mean over log k T, weighted by the standard errors of the cells, and its own standard error."""
    x = torch.tensor([float(kt) for kt in cells], dtype=torch.float64).log()
    y = torch.stack([runs.mean().log() for runs in cells.values()])
    error = torch.stack([runs.std() / runs.mean() / math.sqrt(RUNS) for runs in cells.values()])
    weight = error**-2
    x = x - (weight * x).sum() / weight.sum()
    return float((weight * x * y).sum() / (weight * x * x).sum()), float((weight * x * x).sum()) ** -0.5


def check(grid: list[tuple[int, int]], problems: int) -> None:
    """The slope is -1/2 up to the share eta C + 1 / (eta C T) that the rate leaves out: the closed form has it too."""
    found = {(k, steps): run(k, steps) for k, steps in grid}
    for i, name in enumerate(("quadratic", "not convex")):
        # Cells of equal k T are different runs; they enter the fit one by one.
        cells = {k * steps + n: cell[i] for n, ((k, steps), cell) in enumerate(found.items())}
        slope, error = fit(cells)
        print(f"{name}: |grad F|^2 ~ (k T)^({slope:.3f} +- {error:.3f})")
        for (k, steps), cell in found.items():
            print(f"  k {k}, T {steps}: {float(cell[i].mean()):.5f} +- {float(cell[i].std()) / math.sqrt(RUNS):.5f}")
        if i < problems:
            scaled = {
                kt: cells[kt] * (exact_quadratic(k, steps) / float(cells[kt].mean()))
                for kt, (k, steps) in zip(cells, grid)
            }
            bend = abs(fit(scaled)[0] + 0.5)
            assert error < 0.02
            assert bend < 0.01
            assert abs(slope + 0.5) < 2 * error + bend
    for (k, steps), (quadratic, _) in found.items():
        error = float(quadratic.std()) / math.sqrt(RUNS)
        assert abs(float(quadratic.mean()) - exact_quadratic(k, steps)) < 4 * error


def test_the_rate() -> None:
    check([(1, 500), (2, 500), (4, 500), (8, 500), (1, 2500), (2, 2500)], problems=2)


def test_one_batch_for_all_pairs_leaves_only_the_step_size_to_k() -> None:
    """On the quadratic two points see nothing of the noise, so on one batch k = 4 has the variance of k = 1."""
    error_of = [run(k, 500, fresh)[0] for k, fresh in ((4, True), (4, False))]
    eta = math.sqrt(2 * 4 * gaps()[0] / (BATCH * 500))
    wanted = stationary_and_transient(eta, BATCH, 500)
    shared, error = float(error_of[1].mean()), float(error_of[1].std()) / math.sqrt(RUNS)
    assert abs(shared - wanted) < 4 * error
    assert shared - float(error_of[0].mean()) > 4 * error


@pytest.mark.slow
def test_the_rate_up_to_a_hundred_thousand_steps() -> None:
    check(
        [(k, steps) for k in KS for steps in (500, 1500, 4500)] + [(1, 13_500), (2, 13_500), (1, 100_000)], problems=1
    )
