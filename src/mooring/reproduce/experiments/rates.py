"""NSO finds a stationary point of F(w) = E f(w + U) at the rate (k T)^-½.

For f with a C-Lipschitz gradient and estimates of it with variance v / k, the descent lemma gives for η ≤ 1/C

    mean over t < T of E ‖∇F(W_t)‖² ≤ 2 D² / (η T) + C η v / k,        D² = F(W_0) - min F

which η = √(2 k D² / (C v T)) makes smallest: of order √(C D² v / (k T)), where v = s² + C² σ² d has the mini-batch's
share and the noise's. The order in k and T is the one that Zhang, Li and Ju state; the step size is this bound's own.
The mean over all iterates is the expectation for one drawn uniformly. Independent runs side by side of

- f = wᵀ diag(1, ½) w / 2 from (1, 1), gradients with noise of variance 1 in all, every pair on a mini-batch of its own;
- f = log(1 + w²) / 2 from 1.5, not convex beyond 1, the same noise, σ = 0.5.

The bound has to hold for every cell. The means need not fall with slope -½ exactly, and both problems have a law that
says what they do at a finite length. On the quadratic E w_t² is a geometric sequence, so every (k, T) has a closed
form, and has to lie within four standard errors of it; it exceeds its limit by a share of about η / 2, which k / T
decides, so the slope is asked where η ≤ 0.1, up to two standard errors and the law's own distance from -½. On the other
problem the way into the valley takes a share of the steps that falls like (k T)^-½, and `linear_noise` follows it for
small η: its slope is asked from k T = 10⁴ on, in the full form, up to two standard errors and 0.01. The lower panels
show where it is not -½.
"""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import mooring as mo
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels

RUNS, BATCH, SIGMA, LONGEST, NOISY = 64, 1.0, 0.5, 100_000, 0.1
CURVATURES = torch.tensor([1.0, 0.5], dtype=torch.float64)
KS, LENGTHS = (1, 2, 4, 8), (100, 316, 1000, 3162, 10_000, 31_623, LONGEST)
QUADRATIC, VALLEY = "quadratic", "log(1 + w²) / 2"


def nodes() -> tuple[Tensor, Tensor]:
    """Gauss-Hermite quadrature for a standard normal variable, 40 nodes, by the eigenvalues of its Jacobi matrix."""
    off = torch.arange(1, 40, dtype=torch.float64).sqrt()
    x, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return x, vectors[0].square()


NODES, WEIGHTS = nodes()


def gradient(w: Tensor) -> Tensor:
    """Of log(1 + w²) / 2."""
    return w / (1 + w.square())


def gaps() -> dict[str, float]:
    """F(W_0) - min F of both problems."""

    def valley(w: float) -> float:
        return float((0.5 * torch.log1p((w + SIGMA * NODES).square())) @ WEIGHTS)

    return {QUADRATIC: 0.5 * float(CURVATURES.sum()), VALLEY: valley(1.5) - valley(0.0)}


def noise(name: str) -> float:
    """Of a gradient estimate, v. Two points of a quadratic see none of the noise on the weights; E ‖U‖² = σ²."""
    return BATCH if name == QUADRATIC else BATCH + SIGMA**2


def rate(name: str, k: int, steps: int) -> float:
    """The step size that makes the bound smallest."""
    return math.sqrt(2 * k * gaps()[name] / (noise(name) * steps))


def bound(name: str, k: int, steps: int) -> float:
    """What the descent lemma says the mean of ‖∇F‖² cannot exceed."""
    eta = rate(name, k, steps)
    return 2 * gaps()[name] / (eta * steps) + eta * noise(name) / k


def train(k: int, steps: int, fresh: bool) -> list[Row]:
    """The mean of ‖∇F‖² over the iterates, for both problems, over independent runs: more where they are short."""
    runs = round(RUNS * math.sqrt(LONGEST / steps))
    generator = torch.Generator().manual_seed(k * 1_000_003 + steps)
    quadratic = nn.Parameter(torch.ones(runs, 2, dtype=torch.float64))
    valley = nn.Parameter(torch.full((runs, 1), 1.5, dtype=torch.float64))
    groups = [
        {"params": [quadratic], "lr": rate(QUADRATIC, k, steps)},
        {"params": [valley], "lr": rate(VALLEY, k, steps)},
    ]
    optimizer = mo.NSO(torch.optim.SGD(groups), sigma=SIGMA, k=k, fresh_batches=fresh)
    seen = torch.zeros(2, runs, dtype=torch.float64)
    size = torch.tensor([BATCH / 2, BATCH / 2, BATCH], dtype=torch.float64).sqrt()
    xi = torch.zeros(runs, 3, dtype=torch.float64)
    for _ in range(steps):
        q, w = quadratic.detach(), valley.detach()
        seen[0] += (q * CURVATURES).square().sum(1)
        seen[1] += (gradient(w + SIGMA * NODES) @ WEIGHTS).square()
        optimizer.zero_grad()
        for i, pass_ in enumerate(optimizer.passes()):
            if pass_.new_batch or i == 0:
                xi = size * torch.randn(runs, 3, generator=generator, dtype=torch.float64)
            with pass_:
                for p, g in ((quadratic, q * CURVATURES + xi[:, :2]), (valley, gradient(w) + xi[:, 2:])):
                    p.grad = g if p.grad is None else p.grad.add_(g)
        optimizer.step()
    return [{"problem": name, "k": k, "T": steps, "fresh": fresh, "runs": runs, "step size": rate(name, k, steps),
             "mean": float(mean.mean()), "error": float(mean.std() / math.sqrt(runs))}
            for name, mean in zip((QUADRATIC, VALLEY), seen / steps)]  # fmt: skip


def closed_form(k: int, steps: int, fresh: bool = True) -> float:
    """The expectation on the quadratic; on one batch for all pairs, k does not divide the variance."""
    eta, total = rate(QUADRATIC, k, steps), 0.0
    for h in CURVATURES.tolist():
        r = (1 - eta * h) ** 2
        rest = eta**2 * BATCH / (k if fresh else 1) / 2 / (1 - r)
        total += h**2 * (rest + (1 - rest) * (1 - r**steps) / (1 - r) / steps)
    return total


def linear_noise(cells: list[tuple[int, int]]) -> list[float]:
    """The expectation on the other problem for small η: a path m, and a normal spread V around it.

    m ← m - η (F'(m) + ½ F″'(m) V),  V ← (1 - η F″(m))² V + η² v(m) / k,  E F'² = F'² + (F″² + F' F″') V.
    """
    k, steps = torch.tensor(cells, dtype=torch.float64).T
    eta = torch.tensor([rate(VALLEY, *cell) for cell in cells], dtype=torch.float64)
    m, spread, total = torch.full_like(eta, 1.5), torch.zeros_like(eta), torch.zeros_like(eta)
    for step in range(int(steps.max())):
        x = m.unsqueeze(1) + SIGMA * NODES
        mirrored = m.unsqueeze(1) - SIGMA * NODES
        first = gradient(x) @ WEIGHTS
        second = ((1 - x**2) / (1 + x**2) ** 2) @ WEIGHTS
        third = ((2 * x**3 - 6 * x) / (1 + x**2) ** 3) @ WEIGHTS
        now = first**2 + (second**2 + first * third) * spread
        if float(m.abs().max()) < 1e-5:  # arrived: what is left is constant
            total += (steps - step).clamp(min=0) * now
            break
        total += torch.where(step < steps, now, 0.0)
        variance = BATCH + ((gradient(x) + gradient(mirrored)) / 2) ** 2 @ WEIGHTS - first**2
        m = m - eta * (first + third * spread / 2)
        spread = (1 - eta * second) ** 2 * spread + eta**2 * variance / k
    return [float(x) for x in total / steps]


def fit(cells: Sequence[Row], what: str = "mean") -> tuple[float, float]:
    """Slope of the logarithm over log k T, weighted by the standard errors of the cells, and its own standard error."""
    x = torch.tensor([float(c["k"] * c["T"]) for c in cells], dtype=torch.float64).log()
    y = torch.tensor([c[what] for c in cells], dtype=torch.float64).log()
    weight = torch.tensor([c["mean"] / c["error"] for c in cells], dtype=torch.float64).square()
    x = x - (weight * x).sum() / weight.sum()
    return float((weight * x * y).sum() / (weight * x * x).sum()), float((weight * x * x).sum()) ** -0.5


def run(run: Run) -> Outcome:
    """All k and T whose product is affordable, one that is not, and one on which all pairs share a batch."""
    most, single = run.pick(5000, 40_000), run.pick([], [(1, LONGEST, True)])
    grid = [(k, steps, True) for k in KS for steps in LENGTHS if k * steps <= most] + single + [(4, 1000, False)]
    found = run.map(train, sorted(grid, key=lambda cell: -cell[0] * cell[1]), "training")
    # The other problem has no law for a shared batch.
    rows = [dict(row) for cell in found for row in cell if row["fresh"] or row["problem"] == QUADRATIC]
    laws = linear_noise([(row["k"], row["T"]) for row in rows])
    checks, (picture, axes) = list[Check](), panels(4, columns=2, width=4.8, height=3.3)
    for row, law in zip(rows, laws):
        row["law"] = closed_form(row["k"], row["T"], row["fresh"]) if row["problem"] == QUADRATIC else law
    for i, name in enumerate((QUADRATIC, VALLEY)):
        cells = [row for row in rows if row["problem"] == name and row["fresh"]]
        asked = [c for c in cells if rate(QUADRATIC, c["k"], c["T"]) <= NOISY]
        for label, chosen in ((f"η ≤ {NOISY}", asked), ("all cells", cells)):
            (slope, error), law = fit(chosen), fit(chosen, "law")[0]
            label, shown = f"{name}: slope over log kT, {label}", f"the law of these lengths has {law:.3f}"
            if name == QUADRATIC and chosen is asked:
                slack = 2 * error + abs(law + 0.5)
                why = f"2 standard errors, and {abs(law + 0.5):.3f}: {shown}"
                checks.append(Check.near(label, slope, -0.5, slack, why, error))
            else:
                checks.append(Check.finding(label, slope, -0.5, shown, error))
        long = [c for c in asked if c["k"] * c["T"] >= LONGEST / 10]
        if len(long) > 2:
            (slope, error), law = fit(long), fit(long, "law")[0]
            checks.append(Check.near(f"{name}: slope over log kT, kT ≥ {LONGEST // 10}", slope, -0.5, 2 * error + 0.01,
                                     f"2 standard errors, and 0.01; the law has {law:.3f}", error))  # fmt: skip
        ratio = max(c["mean"] / bound(name, c["k"], c["T"]) for c in cells)
        label = f"{name}: mean / bound, largest of {len(cells)} cells"
        checks.append(Check.below(label, ratio, 1, "the bound holds for every k and T", "≤ 1"))
        draw(axes[i], axes[2 + i], name, cells)
    sure = [row for row in rows if row["problem"] == QUADRATIC]
    furthest = max(abs(row["mean"] - row["law"]) / row["error"] for row in sure)
    label = f"{QUADRATIC}: the largest of {len(sure)} distances to the closed form, in standard errors"
    checks.append(Check.below(label, furthest, 4, "4 standard errors"))
    shared, own = (next(r for r in sure if (r["k"], r["T"], r["fresh"]) == (4, 1000, x)) for x in (False, True))
    ratio, law = shared["mean"] / own["mean"], shared["law"] / own["law"]
    error = ratio * math.hypot(shared["error"] / shared["mean"], own["error"] / own["mean"])
    label = f"{QUADRATIC}, k = 4, T = 1000: one batch for all pairs / one each"
    why = "closed form, 4 standard errors: k divides the variance only where every pair has a batch of its own"
    checks.append(Check.near(label, ratio, law, 4 * error, why, error))
    axes[0].plot(4000, shared["mean"], "x", color=COLOURS[3], label="k = 4 on one batch")
    axes[0].legend(frameon=False)
    return Outcome(checks, {"cells": rows}, picture)


def draw(means: Axes, scaled: Axes, name: str, cells: Sequence[Row]) -> None:
    """The means over k T, and what is left of them when the rate is divided out."""
    law = [(k, round(float(kt) / k)) for k in KS for kt in torch.logspace(2, 5.3, 25) if kt >= 100 * k]
    levels = [closed_form(*cell) for cell in law] if name == QUADRATIC else linear_noise(law)
    for k, colour in zip(KS, COLOURS[1:]):
        own = [c for c in cells if c["k"] == k]
        x = torch.tensor([float(k * c["T"]) for c in own])
        y, e = (torch.tensor([c[what] for c in own]) for what in ("mean", "error"))
        means.errorbar(x, y, 4 * e, fmt="o", color=colour, markersize=4, label=f"k = {k}")
        scaled.errorbar(x, y * x.sqrt(), 4 * e * x.sqrt(), fmt="o", color=colour, markersize=4, capsize=2)
        curve = [(k * steps, level * math.sqrt(k * steps)) for (own_k, steps), level in zip(law, levels) if own_k == k]
        scaled.plot(*zip(*curve), color=colour, linewidth=0.8)
    longest = max(cells, key=lambda c: float(c["k"] * c["T"]))
    x = torch.tensor([100.0, 2e5])
    level = longest["mean"] * math.sqrt(longest["k"] * longest["T"])
    means.plot(x, level * x**-0.5, color=COLOURS[0], linewidth=1, label="slope -½")
    means.set(title=f"{name}: mean ‖∇F‖²", xlabel="k T", xscale="log", yscale="log")
    means.legend(frameon=False)
    scaled.set(title="times √(k T): flat where the slope is -½; lines: the law", xlabel="k T", xscale="log")
