"""Does Adam with stable decay (AdamS) outperform the complex variants of Adam, each tuned with equal effort?

The paper's claim: fixing weight decay in Adam, without another hyper-parameter, usually outperforms variants that have
more of them. Here a batch-normalised network learns the first 800 of scikit-learn's digits from scratch, cosine
schedule. Every method gets the same Halton points of the unit square, scaled to its ranges of learning rate and decay
(three decades of decay for each kind, two of learning rate around its default), and each point the same two seeds. The
choice looks at rows 800-1000 alone: highest mean accuracy, ties by cross-entropy. Then every method trains with other
seeds at its chosen point and is scored on the rows from 1000 on, which are digits of other writers.

The same seeds, hence starts and orders of the digits, serve all methods: differences are paired, with Student's 95 %
interval over seeds and Holm's adjustment of exact sign-flip tests over the methods (`mooring.compare.statistics`). They
are findings: the published differences are of other networks and images.

What is asserted is that the tuning was fair enough to compare: every method, at its chosen point, makes fewer errors on
average than logistic regression fitted to the same 800 rows. A variant whose ranges were wrong would not.

AMSGrad, RAdam and NAdam are torch's, with L2 decay. AdaBound, Yogi and PAdam are those of the package pytorch_optimizer
(``pip install "mooring[variants]"``), with L2 decay too and their other options at their defaults there; where the
package is not installed they are left out, and the notes say so.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import mooring as mo
from mooring.compare.plots.style import PAPER
from mooring.compare.statistics import ALPHA, Comparison, Summary, compare_paired, summarise
from mooring.finetune.data import Split
from mooring.reproduce import Check, Outcome, Run, digits
from mooring.reproduce.picture import COLOURS, panels

LEARNED, CHOSEN_ON = slice(0, 800), slice(800, 1000)
TUNING_SEEDS = (100, 101)  # none of which is reported
BASELINE = "AdamS"
PACKAGE = "pytorch_optimizer"


@dataclass(frozen=True)
class Variant:
    """Where an optimizer comes from, and what it is tuned over.

    Attributes:
        source: "mooring", "torch" or the package.
        name: The class there.
        rate: The smallest and the largest learning rate.
        decay: The smallest and the largest weight decay.
        options: What else it is given.
        published: Test error in percent of ResNet18 on CIFAR-10, where our source prints it.
    """

    source: str
    name: str
    rate: tuple[float, float]
    decay: tuple[float, float]
    options: Mapping[str, Any]
    published: float | None = None


ADAM, L2, DECOUPLED = (3e-4, 3e-2), (1e-5, 1e-2), (1e-3, 1.0)
VARIANTS = {
    "AdamS": Variant("mooring", "AdamS", ADAM, L2, {}, 4.91),
    "Adam": Variant("mooring", "Adam", ADAM, L2, {}, 6.53),
    "AdamW": Variant("mooring", "AdamW", ADAM, DECOUPLED, {}, 5.08),
    "AMSGrad": Variant("torch", "Adam", ADAM, L2, {"amsgrad": True}),
    "RAdam": Variant("torch", "RAdam", ADAM, L2, {}),
    "NAdam": Variant("torch", "NAdam", ADAM, L2, {}),
    "AdaBound": Variant(PACKAGE, "AdaBound", ADAM, L2, {"weight_decouple": False}),
    "Yogi": Variant(PACKAGE, "Yogi", (3e-3, 0.3), L2, {"weight_decouple": False}),
    "PAdam": Variant(PACKAGE, "PAdam", (1e-2, 1.0), L2, {"weight_decouple": False}),
}


def available() -> tuple[list[str], list[str]]:
    """The methods that can be run here, and those whose package is not installed."""
    installed = importlib.util.find_spec(PACKAGE) is not None
    here = [name for name, variant in VARIANTS.items() if variant.source != PACKAGE or installed]
    return here, [name for name in VARIANTS if name not in here]


def optimizer(method: str, model: torch.nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """An optimizer of a method."""
    variant = VARIANTS[method]
    room: Any = {"mooring": mo, "torch": torch.optim}.get(variant.source)
    if room is None:
        room = importlib.import_module(variant.source)
    found: torch.optim.Optimizer = getattr(room, variant.name)(
        model.parameters(), lr=rate, weight_decay=decay, **variant.options
    )
    return found


def train(method: str, rate: float, decay: float, seed: int, steps: int, tuning: bool) -> list[float]:
    """Error in percent and cross-entropy after a training, on the rows to choose on or those to report."""
    rows, model = digits.handwritten(), digits.fresh(seed)
    learned, scored = (
        Split(rows.inputs[part], rows.labels[part]) for part in (LEARNED, CHOSEN_ON if tuning else digits.LATER)
    )
    digits.train(model, optimizer(method, model, rate, decay), learned, steps, seed)
    accuracy, loss = digits.score(model, scored)
    return [100 - accuracy, loss if math.isfinite(loss) else math.inf]


def points(method: str, count: int) -> list[tuple[float, float]]:
    """Learning rates and decays: the same points of the unit square for every method, in logarithms."""
    from scipy.stats import qmc

    variant = VARIANTS[method]
    unit = qmc.Halton(d=2, scramble=True, rng=0).random(count)
    return [(float(f"{_between(*variant.rate, x):.2e}"), float(f"{_between(*variant.decay, y):.2e}")) for x, y in unit]


def _between(low: float, high: float, share: float) -> float:
    return float(low * (high / low) ** share)


def logistic_regression() -> float:
    """The error in percent of logistic regression on the reported rows, from the rows that are learned."""
    from sklearn.linear_model import LogisticRegression

    rows = digits.handwritten()
    inputs, labels = rows.inputs.flatten(1).numpy(), rows.labels.numpy()
    model = LogisticRegression(max_iter=2000).fit(inputs[LEARNED], labels[LEARNED])
    return float(100 * (1 - model.score(inputs[digits.LATER], labels[digits.LATER])))


def run(run: Run) -> Outcome:
    """Tune every method alike, then train it with other seeds."""
    count, tuning_seeds = run.pick(4, 8), TUNING_SEEDS[: run.pick(1, 2)]
    seeds, steps = run.pick(6, 12), run.pick(120, 250)
    methods, missing = available()

    tried = [(m, point, seed) for m in methods for point in points(m, count) for seed in tuning_seeds]
    scores = run.map(train, [(m, *point, seed, steps, True) for m, point, seed in tried], "tuning")
    tuned: dict[str, dict[tuple[float, float], list[list[float]]]] = {m: {} for m in methods}
    for (method, point, _), score in zip(tried, scores, strict=True):
        tuned[method].setdefault(point, []).append(score)
    chosen = {
        method: min(by_point, key=lambda point: tuple(np.mean(by_point[point], axis=0)))
        for method, by_point in tuned.items()
    }

    keys = [(method, seed) for method in methods for seed in range(seeds)]
    ends = run.map(train, [(m, *chosen[m], seed, steps, False) for m, seed in keys], "training")
    errors: dict[str, dict[int, float]] = {method: {} for method in methods}
    for (method, seed), (error, _) in zip(keys, ends, strict=True):
        errors[method][seed] = error
    differences = compare_paired(errors, BASELINE)

    means = {method: summarise(list(by_seed.values())) for method, by_seed in errors.items()}
    line, worst = logistic_regression(), max(methods, key=lambda method: means[method].mean)
    checks = [
        Check.below(
            f"highest mean error of a tuned method ({worst}), %", means[worst].mean, line,
            "logistic regression on the same rows", "", means[worst].error,
        )
    ]  # fmt: skip
    table = [
        f"| | learning rate | decay | error, % | minus {BASELINE} (95 % interval) | Holm's p | published, CIFAR-10 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for method in methods:
        rate, decay = chosen[method]
        start = f"| {method} | {rate:.2g} | {decay:.2g} | {means[method].mean:.2f} | "
        published = VARIANTS[method].published
        if method == BASELINE:
            table.append(start + f"| | {published} |")
            continue
        found = differences[method]
        mean, (low, high) = found.difference.mean, found.difference.ends
        table.append(start + f"{mean:+.2f} ({low:+.2f} … {high:+.2f}) | {found.p_adjusted:.2g} | {published or ''} |")
        theirs = round(published - VARIANTS[BASELINE].published, 2) if published else ""  # type: ignore[operator]
        why = f"95 % interval {low:+.2f} … {high:+.2f}, Holm's p {found.p_adjusted:.2g}"
        why += ": " + _word(found, seeds)
        figure = f"{method} - {BASELINE}: points of error"
        checks.append(Check.finding(figure, mean, theirs, why, found.difference.error))
    notes = ["\n".join(table), f"{_take(differences, seeds)} {_spread(means, tuned)}"]
    if missing:
        notes.append(
            f'Left out, because {PACKAGE} (`pip install "mooring[variants]"`) is not installed: {", ".join(missing)}.'
        )
    data = {
        "tuning": [
            {"method": m, "learning_rate": p[0], "weight_decay": p[1], "seed": s, "error": e, "cross_entropy": c}
            for (m, p, s), (e, c) in zip(tried, scores, strict=True)
        ],
        "errors": [{"method": m, "seed": s, "error": e} for m, by_seed in errors.items() for s, e in by_seed.items()],
    }
    return Outcome(checks, data, draw(errors, differences, tuned), notes)


def _word(found: Comparison, seeds: int) -> str:
    if found.p_attainable > ALPHA:
        return f"{seeds} seeds cannot resolve it"
    return "resolved" if found.resolved else "not resolved"


def _take(differences: Mapping[str, Comparison], seeds: int) -> str:
    """What a user should take from it, in the words that the numbers allow."""
    better = [method for method, found in differences.items() if found.resolved and found.difference.mean > 0]
    worse = [method for method, found in differences.items() if found.resolved and found.difference.mean < 0]
    said = []
    if better:
        said.append(f"{BASELINE} makes fewer errors than {', '.join(better)}")
    if worse:
        said.append(f"{BASELINE} makes more errors than {', '.join(worse)}")
    if not said:
        few = all(found.p_attainable > ALPHA for found in differences.values())
        why = ", which so few seeds could not do for so many methods" if few else ""
        said.append(f"no variant is told apart from {BASELINE}{why}")
    undecided = [method for method in differences if method not in better + worse]
    tail = f"; no difference is resolved to {', '.join(undecided)}" if undecided and (better or worse) else ""
    return f"With equal tuning, over {seeds} seeds: {'; '.join(said)}{tail}."


def _spread(
    means: Mapping[str, Summary], tuned: Mapping[str, Mapping[tuple[float, float], Sequence[Sequence[float]]]]
) -> str:
    """How much the setting matters beside the method."""
    tries = [[float(np.mean(scores, axis=0)[0]) for scores in by_point.values()] for by_point in tuned.values()]
    settings = float(np.median([max(errors) - min(errors) for errors in tries]))
    values = [mean.mean for mean in means.values()]
    return (
        f"The tuned methods lie within {max(values) - min(values):.2f} points of each other; the tried settings of one "
        f"method within {settings:.2f} (validation error, median over methods). The intervals are over seeds at the "
        "chosen settings: another choice, by other validation rows, could move a method by some of that."
    )


def draw(
    errors: Mapping[str, Mapping[int, float]],
    differences: Mapping[str, Comparison],
    tuned: Mapping[str, Mapping[tuple[float, float], Sequence[Sequence[float]]]],
) -> Figure:
    """Errors by seed, differences within seeds, and what every tried setting gave."""
    picture, (left, middle, right) = panels(3, width=4.2, height=3.6)
    methods = list(errors)
    places = {method: len(methods) - 1 - i for i, method in enumerate(methods)}
    for method, place in places.items():
        colour = COLOURS[2] if method == BASELINE else COLOURS[1]
        values = list(errors[method].values())
        mean = summarise(values)
        left.plot(values, [place] * len(values), "o", color=colour, alpha=0.3, markersize=4)
        left.errorbar(mean.mean, place, xerr=mean.half, fmt="D", color=colour, capsize=3, markersize=5)
        tries = [float(np.mean(scores, axis=0)[0]) for scores in tuned[method].values()]
        right.plot(tries, [place] * len(tries), "o", color=COLOURS[0], alpha=0.5, markersize=5)
        right.plot(min(tries), place, "D", color=colour, markersize=6)
        if method != BASELINE:
            found = differences[method]
            mean_difference, (low, high) = found.difference.mean, found.difference.ends
            middle.errorbar(
                mean_difference, place, xerr=[[mean_difference - low], [high - mean_difference]], fmt="D", capsize=3,
                markersize=5, color=COLOURS[1], markerfacecolor=COLOURS[1] if found.resolved else PAPER,
            )  # fmt: skip
    middle.axvline(0, color=COLOURS[0], linewidth=0.8)
    left.set(title="error on digits of later writers, %", xlabel="dots: seeds; ◆ mean, 95 % interval")
    middle.set(
        title=f"error - {BASELINE}'s, points, within seeds", xlabel="filled: resolved; right of 0: AdamS is better"
    )
    right.set(title="validation error of every tried setting, %", xlabel="◆ chosen; axis: square root")
    # Errors may be zero, and a setting that fails errs on nine digits in ten.
    most = max(float(np.mean(scores, axis=0)[0]) for by_point in tuned.values() for scores in by_point.values())
    right.set_xscale("function", functions=(np.sqrt, np.square))
    right.set_xlim(0, 1.1 * most)
    right.set_xticks([tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50, 90) if tick <= 1.1 * most])
    for axes in (left, middle, right):
        axes.set_yticks(list(places.values()), list(places))
        axes.set_ylim(-0.6, len(methods) - 0.4)
        axes.grid(axis="y", visible=False)
    return picture
