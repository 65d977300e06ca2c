"""Momentum multiplies the growth of the squared norm by (1 + β) / (1 - β); projected momentum does not.

A scale-invariant loss has no gradient along the weight, so plain descent walks at a right angle to it and the squared
norm grows by the squared steps: ‖w_T‖² = ‖w_0‖² + Σ ‖Δw_t‖². Momentum adds old directions, which lean outward by now.
Where gradients are independent of one another, the growth is 1 + 2β / (1 - β) times the squared steps (Heo et al.,
corollary 2.2): 1, 3, 19, 199 for β = 0, ½, 0.9, 0.99. The loss is 1 - cos(w, x_t), with x_t drawn anew for each step.

That is the limit of many steps. Momentum has to warm up first, so a training of T steps has a little less: `law` counts
it, step by step. Ours, the mean over independent weights, is held against the law of its own length within three
standard errors and `SECOND_ORDER`, because the law leaves out that steps become shorter while the norm grows.
"""

import math

import torch
from torch import nn

import mooring as mo
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels

BETAS, ROWS, DIMENSIONS = (0.0, 0.5, 0.9, 0.99), 32, 16
WARM_UPS, LR = 200, 1e-2
SECOND_ORDER = 1e-3  # LR times a norm's whole relative growth, which stays below a tenth


def law(beta: float, steps: int) -> float:
    """The expected growth of the squared norm over the squared steps, for gradients of length 1."""
    square = lean = grown = travelled = 0.0
    for _ in range(steps):
        square = beta**2 * square + 1  # E ‖u_t‖²
        grown += square + 2 * lean  # lean is what the old directions in u_t have along w
        travelled += square
        lean = beta * (lean + square)
    return grown / travelled


def growth(optimizer: torch.optim.Optimizer, w: nn.Parameter, steps: int) -> list[torch.Tensor]:
    """``(‖w_t‖² - ‖w_0‖²) / Σ ‖Δw‖²`` of every row after every step."""
    generator = torch.Generator().manual_seed(1)
    start = w.detach().square().sum(1)
    travelled = torch.zeros_like(start)
    ratios = []
    for _ in range(steps):
        x = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        optimizer.zero_grad()
        (1 - torch.cosine_similarity(w, x)).sum().backward()
        before = w.detach().clone()
        optimizer.step()
        travelled += (w.detach() - before).square().sum(1)
        ratios.append((w.detach().square().sum(1) - start) / travelled)
    return ratios


def run(run: Run) -> Outcome:
    """Plain and projected momentum for four β."""
    rows, checks, data = run.pick(8, ROWS), list[Check](), list[Row]()
    picture, [axes] = panels(1, width=6.5)
    for colour, beta in zip(COLOURS, run.track(BETAS, "training")):
        figure = 1 + 2 * beta / (1 - beta)
        steps = round(WARM_UPS / (1 - beta))
        for name in ("SGD", "SGDP"):
            generator = torch.Generator().manual_seed(0)
            w = nn.Parameter(torch.randn(rows, DIMENSIONS, generator=generator, dtype=torch.float64))
            # Steps are equally long for every β. Each row is one scale-invariant weight.
            optimizer = getattr(mo, name)([w], lr=LR * (1 - beta), momentum=beta)
            ratios = growth(optimizer, w, steps)
            mean, error = float(ratios[-1].mean()), float(ratios[-1].std() / math.sqrt(rows))
            published, wanted = (figure, law(beta, steps)) if name == "SGD" else (1.0, 1.0)
            slack = 3 * error + SECOND_ORDER * wanted
            why = f"{wanted:.4g}, the law for {steps} steps; 3 standard errors over {rows} weights, {SECOND_ORDER:.1%}"
            label = f"{name}, β = {beta:g}: growth / Σ‖Δw‖²"
            checks.append(Check(label, mean, published, wanted - slack, wanted + slack, why, error))
            kept = range(0, steps, max(1, steps // 200))
            data += [{"optimizer": name, "beta": beta, "step": t + 1, "growth": float(ratios[t].mean())} for t in kept]
            axes.plot([(t + 1) / steps for t in kept], [float(ratios[t].mean()) for t in kept], color=colour,
                      linestyle="-" if name == "SGD" else "--", label=f"{name}, β = {beta:g}")  # fmt: skip
        axes.axhline(figure, color=colour, linewidth=0.6)
    axes.set(title="growth of ‖w‖² per Σ‖Δw‖²; thin lines: (1 + β) / (1 - β)", xlabel="share of the steps",
             yscale="log")  # fmt: skip
    picture.legend(loc="outside right center", frameon=False)
    return Outcome(checks, {"growth": data}, picture)
