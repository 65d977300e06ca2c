"""One noisy point estimates its gradient with variance O(σ²), a pair of mirrored points with O(σ⁴).

Both estimate the gradient of E f(W + U), whose distance to the gradient of f is σ²/2 times the gradient of tr H, so of
second order (Zhang, Li and Ju). The slopes are of log values over log σ, on a small trained net whose
derivatives are known, over σ from 0.0025 to 0.01. All σ scale the same noise, which makes the slopes far more precise
than the values.

The intervals are three standard errors, from twelve parts of the draws, and 0.01 for the next power of σ: it is two
orders up and bends the lines by less than that at these σ. Larger ones are drawn, and not asked.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import mooring as mo
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels
from mooring.reproduce.trained_net import hessian, losses, trained

SMALL, LARGE, COPIES, PARTS, BEND = (0.0025, 0.005, 0.01), (0.02, 0.04, 0.08), 100, 12, 0.01


def samples(two_point: bool, sigma: float, draws: int) -> Tensor:
    """One gradient for each draw: (draws, weights). Every row of the parameter is the whole net once more."""
    w, x, y = trained()
    p = nn.Parameter(w.repeat(COPIES, 1))
    optimizer = mo.NSO(torch.optim.SGD([p], lr=0.0), sigma=sigma, two_point=two_point)
    out = []
    for _ in range(draws // COPIES):
        optimizer.zero_grad()
        for pass_ in optimizer.passes():
            with pass_:
                pass_.backward(losses(p, x, y).sum())
        optimizer.step()
        assert p.grad is not None
        out.append(p.grad.clone())
    return torch.cat(out)


def slope(values: Sequence[float]) -> float:
    """Of log values over log SMALL, by least squares."""
    x, y = torch.tensor(SMALL).double().log(), torch.tensor(values).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def run(run: Run) -> Outcome:
    """Variance and bias of both estimates."""
    w, x, y = trained()
    clean = torch.func.grad(losses)(w, x, y)
    towards = torch.func.grad(lambda v: hessian(v, x, y).trace())(w)
    sigmas, draws = SMALL + LARGE, run.pick(6000, 24_000)
    found = {(points, sigma): samples(points == 2, sigma, draws)
             for points, sigma in run.track([(p, s) for p in (1, 2) for s in sigmas], "drawing")}  # fmt: skip

    def variance(g: Tensor) -> float:
        return float(g.var(0).sum())

    def bias(g: Tensor) -> float:
        return abs(float((g.mean(0) - clean) @ towards / towards.norm()))

    measures: list[tuple[str, Callable[[Tensor], float], int, int]] = [
        ("variance of one point", variance, 1, 2),
        ("variance of two points", variance, 2, 4),
        ("bias along ∇ tr H, two points", bias, 2, 2),
    ]
    checks, rows = list[Check](), list[Row]()
    picture, (orders, ratio) = panels(2, width=4.8, height=3.4)
    for colour, (name, measure, points, order) in zip(COLOURS[1:], measures):
        group = [found[points, sigma] for sigma in SMALL]
        parts = torch.tensor([slope([measure(g) for g in part]) for part in zip(*(g.chunk(PARTS) for g in group))])
        ours, error = slope([measure(g) for g in group]), float(parts.std()) / math.sqrt(PARTS)
        why = f"3 standard errors, and {BEND} for the next power of σ"
        checks.append(Check.near(f"{name}: power of σ", ours, order, 3 * error + BEND, why, error))
        values = [measure(found[points, sigma]) for sigma in sigmas]
        rows += [{"measure": name, "sigma": sigma, "value": value} for sigma, value in zip(sigmas, values)]
        orders.plot(sigmas, values, "o", color=colour, label=f"{name}: power {ours:.3f}")
        orders.plot(sigmas, [values[0] * (s / sigmas[0]) ** order for s in sigmas], color=colour, linewidth=1)
    for sigma in sigmas:
        along = (found[2, sigma] - clean) @ towards / towards.square().sum() / (sigma**2 / 2)
        ours, error = float(along.mean()), float(along.std()) / math.sqrt(draws)
        rows.append({"measure": "bias along ∇ tr H / (σ²/2 ‖∇ tr H‖)", "sigma": sigma, "value": ours, "error": error})
        label = f"σ = {sigma:g}: bias along ∇ tr H / (σ²/2 ‖∇ tr H‖)"
        if sigma in SMALL:
            checks.append(Check.near(label, ours, 1, 4 * error, "4 standard errors", error))
        else:
            checks.append(Check.finding(label, ours, 1, "not asked: the next order grows with σ", error))
        ratio.errorbar(sigma, ours, 4 * error, fmt="o", color=COLOURS[3], capsize=3)
    ratio.axhline(1, color=COLOURS[3], linewidth=1)
    ratio.set(title="bias / (σ²/2 ‖∇ tr H‖), 4 standard errors", xlabel="σ", xscale="log")
    orders.set(title="variance and bias; lines: the published powers 2, 4, 2", xlabel="σ", xscale="log", yscale="log")
    orders.legend(frameon=False)
    for axes in (orders, ratio):
        axes.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
        axes.set_xticks([], minor=True)
    return Outcome(checks, {"orders": rows}, picture)
