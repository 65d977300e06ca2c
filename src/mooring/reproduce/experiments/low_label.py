"""What NSO and AdamSPD gain over their base optimizer with few labels, and whether the gain shrinks with more of them.

A regulariser should matter most where data say least. The embedded task's pretrained network is fine-tuned on n = 25,
50, 100 and 200 handwritten digits; each larger set of a seed holds its smaller ones, every class has its share, and
all are tested on the same 400 others of the first 600 rows and on all later rows. Every training has `BUDGET` gradient
evaluations, so NSO takes half as many steps as AdamW. All options are the library's defaults for this task, which were
chosen at n = 100: NSO goes around AdamW with learning rate 9.5e-4. AdamSPD's own is 5.6e-3, so it has two rivals: Adam
with that learning rate and nothing else, which is its base, and AdamW with the learning rate that suits AdamW.

A gain is method less rival in percentage points, paired by seed: same start, labels and order. How it changes is its
slope over log₂ n, one least-squares line per seed, the mean over seeds with its standard error: a negative slope is a
gain that shrinks as labels double. None of this is asserted; it is what was found. Asserted is only that the trainings
learn from labels at all: the accuracy of every base rises with log₂ n by more than three standard errors.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

import mooring as mo
from mooring.compare.plots.style import INK
from mooring.compare.statistics import summarise
from mooring.finetune.data import deal
from mooring.finetune.seeds import generator
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.digits import handwritten, pretrained, score, train
from mooring.reproduce.picture import COLOURS, panels

LABELS, HANDS, LATER = (25, 50, 100, 200), (25, 25, 50, 100, 400), slice(600, None)
BUDGET = 200
METHODS: dict[str, Callable[[nn.Module, int], torch.optim.Optimizer]] = {
    "AdamW": lambda model, seed: mo.AdamW(model.named_parameters(), lr=9.5e-4, weight_decay=4.9e-4),
    "NSO": lambda model, seed: mo.NSO(METHODS["AdamW"](model, seed), sigma=0.01, k=1, seed=seed, model=model),
    "Adam, AdamSPD's rate": lambda model, seed: mo.Adam(model.named_parameters(), lr=5.6e-3),
    "AdamSPD": lambda model, seed: mo.AdamSPD(model.named_parameters(), lr=5.6e-3, strength=0.99),
}
PAIRS = (("NSO", "AdamW"), ("AdamSPD", "Adam, AdamSPD's rate"), ("AdamSPD", "AdamW"))
METRICS = {"id": "same writers", "later": "later rows"}


def trial(method: str, labels: int, seed: int, budget: int) -> list[float]:
    """Accuracy on the same writers and on later rows, in percent."""
    start, digits = pretrained(seed), handwritten()
    *hands, test = deal(digits.labels[: sum(HANDS)], HANDS, generator("few labels", seed))
    examples = digits.rows(torch.cat(hands)[:labels])
    optimizer = METHODS[method](start.model, seed)
    steps = budget // getattr(optimizer, "gradients_per_step", 1)
    train(start.model, optimizer, examples, steps, seed)
    later = type(digits)(digits.inputs[LATER], digits.labels[LATER])
    return [score(start.model, split)[0] for split in (digits.rows(test), later)]


def slope(x: Sequence[float], values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean slope of one least-squares line for each row of values, and its standard error over the rows."""
    centred = np.asarray(x) - np.mean(x)
    slopes = np.asarray(values) @ centred / (centred @ centred)
    return float(slopes.mean()), float(slopes.std(ddof=1) / math.sqrt(len(slopes)))


def run(run: Run) -> Outcome:
    """Every method at every number of labels."""
    seeds, budget = range(run.pick(3, 10)), run.pick(BUDGET // 2, BUDGET)
    jobs = [(method, n, seed, budget) for n in LABELS for seed in seeds for method in METHODS]
    found = dict(zip(jobs, run.map(trial, jobs, "fine-tuning"), strict=True))
    doublings = [math.log2(n) for n in LABELS]

    def values(method: str, n: int, metric: int) -> list[float]:
        return [found[method, n, seed, budget][metric] for seed in seeds]

    checks = []
    for base in ("AdamW", "Adam, AdamSPD's rate"):
        rise, error = slope(doublings, np.transpose([values(base, n, 0) for n in LABELS]).tolist())
        why = f"labels teach something: 3 standard errors over {len(seeds)} seeds"
        checks.append(
            Check.above(f"{base}: ID accuracy per doubling of the labels, points", rise, 3 * error, why, error=error)
        )
    heads = " | ".join(f"n = {n}" for n in LABELS)
    table = [f"| gain in points | on | {heads} | per doubling |", "|---" * 7 + "|"]
    picture, axes = panels(2, columns=2, width=4.8)
    for metric, where in enumerate(METRICS.values()):
        for i, (method, rival) in enumerate(PAIRS):
            gains = [
                [a - b for a, b in zip(values(method, n, metric), values(rival, n, metric), strict=True)]
                for n in LABELS
            ]
            means = [summarise(gain) for gain in gains]
            low, high = ([float((m.low if side else m.high) or 0.0) for m in means] for side in (True, False))
            change, error = slope(doublings, np.transpose(gains).tolist())
            words = "shrinks" if change < -2 * error else "grows" if change > 2 * error else "does not change"
            figure = f"gain of {method} over {rival}, {where}: points per doubling of the labels"
            why = f"{words}, by two standard errors"
            checks.append(Check.finding(figure, change, "gains shrink with n", why, error))
            cells = [f"{m.mean:+.2f} ({a:+.2f} … {b:+.2f})" for m, a, b in zip(means, low, high, strict=True)]
            table.append(f"| {method} less {rival} | {where} | {' | '.join(cells)} | {change:+.2f} ± {error:.2f} |")
            bars = [[m.mean - a for m, a in zip(means, low, strict=True)],
                    [b - m.mean for m, b in zip(means, high, strict=True)]]  # fmt: skip
            axes[metric].errorbar(
                [n * 2 ** (0.09 * (i - 1)) for n in LABELS], [m.mean for m in means], bars, color=COLOURS[1 + i],
                marker="ovs"[i], markersize=5, linewidth=1.3, elinewidth=1, label=f"{method} less {rival}",
            )  # fmt: skip
        axes[metric].axhline(0, color=INK, linewidth=0.8)
        axes[metric].set(title=f"gain on {where}, points", xlabel="labels n", xscale="log")
        axes[metric].set_xticks(LABELS, labels=[str(n) for n in LABELS])
        axes[metric].set_xticks([], minor=True)
    axes[0].legend(frameon=False)
    rows: list[Row] = [
        {"method": method, "labels": n, "seed": seed, **dict(zip(METRICS, accuracies, strict=True))}
        for (method, n, seed, _), accuracies in found.items()
    ]
    levels = [f"| accuracy, % (same writers / later rows) | {heads} |", "|---" * 5 + "|"]
    for method in METHODS:
        cells = [f"{np.mean(values(method, n, 0)):.1f} / {np.mean(values(method, n, 1)):.1f}" for n in LABELS]
        levels.append(f"| {method} | {' | '.join(cells)} |")
    notes = [
        "\n".join(levels),
        f"Gains with 95 % intervals over {len(seeds)} seeds, {budget} gradient evaluations each:",
        "\n".join(table),
    ]
    return Outcome(checks, {"accuracies": rows}, picture, notes)
