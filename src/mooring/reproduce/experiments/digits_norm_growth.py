"""Without decay, momentum inflates scale-invariant weights and their steps become smaller turns; projection keeps both.

AdamP's ablation in small: the batch-normalised network learns 1000 real digits from scratch, cosine schedule, with and
without weight decay. The weights before its four batch normalisations are scale invariant, so what a step changes is
their direction: its size is the effective step ‖w_{t+1}/‖w_{t+1}‖ - w_t/‖w_t‖‖. Both curves are the optimizer's
telemetry. A gradient is at a right angle to such a weight, so without decay

    (‖w_T‖² - ‖w_0‖²) / Σ ‖Δw_t‖² = 1

for plain descent, and for any update that is projected. Momentum adds old directions, which lean outward by now: 19 for
β = 0.9 where gradients are independent of one another. Here successive gradients are alike, so it need not be 19; it
is asserted to be above 1. Batch normalisation divides by √(variance + 1e-5), which leaves the gradient a radial part of
the order of 1e-5 / variance: `RIGHT_ANGLE` is what it may add to a ratio of 1.

Final norms and effective steps, summed over the whole training, are compared within each seed (same start, same order
of the digits), as logarithms of ratios: a claim holds where Student's 95 % interval over seeds lies on its side of
zero. Accuracy is asked nothing: how many points are lost without decay depends on the task, and stands beside the
published points of ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import mooring as mo
from mooring.compare.statistics import Summary, summarise
from mooring.reproduce import Check, Outcome, Run, digits
from mooring.reproduce.paired import interval
from mooring.reproduce.picture import COLOURS, panels

RIGHT_ANGLE = 1e-3
OPTIMIZERS: dict[str, tuple[str, dict[str, float], float]] = {  # name → class, options, decay
    "SGD": ("SGD", {"lr": 0.5}, 0.02),  # as large a step as momentum's in the long run
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}, 0.02),
    "SGDP": ("SGDP", {"lr": 0.05, "momentum": 0.9}, 0.02),
    "AdamW": ("AdamW", {"lr": 3e-3}, 1.0),
    "AdamP": ("AdamP", {"lr": 3e-3}, 1.0),
}
Key = tuple[str, bool, int]
"""Optimizer, whether with decay, seed."""
PAIRS = (("momentum", "SGDP"), ("AdamW", "AdamP"))
DROPPED = {"momentum": -2.38, "SGDP": -0.52, "AdamW": -1.89, "AdamP": -0.31}
"""Points of ImageNet accuracy that ResNet18 loses without decay, as published; its SGD has momentum."""


def train(name: str, decay: bool, seed: int, steps: int) -> dict[str, Any]:
    """Norm and effective step of the scale-invariant weights after every step, growth, and the final accuracy."""
    method, options, weight_decay = OPTIMIZERS[name]
    data, model = digits.handwritten(), digits.fresh(seed)
    learned, later = (type(data)(data.inputs[part], data.labels[part]) for part in (digits.EARLY, digits.LATER))
    invariant = mo.scale_invariant_parameters(model, learned.inputs[:4])
    named = list(model.named_parameters())
    groups = [
        {"name": "invariant", "params": [(n, p) for n, p in named if n in invariant]},
        {"name": "others", "params": [(n, p) for n, p in named if n not in invariant]},
    ]
    optimizer = getattr(mo, method)(groups, weight_decay=weight_decay if decay else 0.0, **options)
    optimizer.record(every=1)
    start = sum(float(p.detach().square().sum()) for n, p in named if n in invariant)
    norms, turns, travelled = [], [], 0.0

    def each(step: int) -> None:
        nonlocal travelled
        numbers = optimizer.telemetry()
        norms.append(numbers["invariant/weights/norm"])
        turns.append(numbers["invariant/step/effective"])
        travelled += numbers["invariant/step/norm"] ** 2

    digits.train(model, optimizer, learned, steps, seed, each=each)
    return {
        "norm": norms,
        "turn": turns,
        "growth": (norms[-1] ** 2 - start) / travelled,
        "start": math.sqrt(start),
        "accuracy": digits.score(model, later)[0],
    }


def run(run: Run) -> Outcome:
    """Five optimizers, with and without decay, over seeds."""
    seeds, steps = run.pick(3, 8), run.pick(120, 300)
    keys = [(name, decay, seed) for name in OPTIMIZERS for decay in (False, True) for seed in range(seeds)]
    found = run.map(train, [(*key, steps) for key in keys], "training")
    trained = dict(zip(keys, found, strict=True))

    def of(name: str, decay: bool) -> list[dict[str, Any]]:
        return [trained[name, decay, seed] for seed in range(seeds)]

    def turned(result: dict[str, Any]) -> float:
        return float(sum(result["turn"]))

    growths = {name: summarise([result["growth"] for result in of(name, False)]) for name in OPTIMIZERS}
    checks: list[Check] = []
    for name, growth in growths.items():
        figure = f"{name}, no decay: growth of ‖w‖² / Σ‖Δw‖²"
        if name in ("momentum", "AdamW"):
            why = f"more than 1 by the 95 % interval over {seeds} seeds"
            published = 19.0 if name == "momentum" else "> 1"
            checks.append(Check.above(figure, growth.mean, 1 + growth.half, why, published, growth.error))
        else:
            why = "the law of a right angle; 3 standard errors and batch normalisation's eps"
            checks.append(Check.near(figure, growth.mean, 1.0, 3 * growth.error + RIGHT_ANGLE, why, growth.error))
    why = f"decay shrinks: the 95 % interval over {seeds} seeds lies below 0"
    for name in OPTIMIZERS:
        norm = summarise([
            math.log(a["norm"][-1] / b["norm"][-1]) for a, b in zip(of(name, True), of(name, False), strict=True)
        ])  # fmt: skip
        figure = f"{name}, with decay / without: log ratio of final ‖w‖"
        checks.append(Check.below(figure, norm.mean, -norm.half, why, "", norm.error))
    for base, projected in PAIRS:
        for decay in (False, True):
            pairs = list(zip(of(projected, decay), of(base, decay), strict=True))
            norm = summarise([math.log(a["norm"][-1] / b["norm"][-1]) for a, b in pairs])
            turn = summarise([math.log(turned(a) / turned(b)) for a, b in pairs])
            who = f"{projected} / {base}, {'with' if decay else 'no'} decay"
            norms, turns = f"{who}: log ratio of final ‖w‖", f"{who}: log ratio of the sum of effective steps"
            if decay:
                why = "the claim is about training without decay"
                checks += [
                    Check.finding(norms, norm.mean, why=why, error=norm.error),
                    Check.finding(turns, turn.mean, why=why, error=turn.error),
                ]
            else:
                why = f"the 95 % interval over {seeds} seeds lies"
                checks += [
                    Check.below(norms, norm.mean, -norm.half, f"{why} below 0", "smaller", norm.error),
                    Check.above(turns, turn.mean, turn.half, f"{why} above 0", "larger", turn.error),
                ]
    table = [
        "| | with decay | without | difference | 95 % interval | published, ImageNet |",
        "|---|---|---|---|---|---|",
    ]
    drops: dict[str, Summary] = {}
    for name in OPTIMIZERS:
        with_decay, without = ([result["accuracy"] for result in of(name, decay)] for decay in (True, False))
        drop = drops[name] = summarise([b - a for a, b in zip(with_decay, without, strict=True)])
        published = DROPPED.get(name, "")
        why = f"95 % interval {interval(drop)}"
        checks.append(Check.finding(f"{name}: accuracy without decay, points", drop.mean, published, why, drop.error))
        table.append(
            f"| {name} | {sum(with_decay) / seeds:.2f} | {sum(without) / seeds:.2f} | {drop.mean:+.2f} "
            f"| {interval(drop)} | {published} |"
        )

    curves = [
        {"optimizer": name, "decay": decay, "seed": seed, "step": t + 1, "norm": result["norm"][t],
         "effective_step": result["turn"][t]}
        for (name, decay, seed), result in trained.items() for t in range(0, steps, max(1, steps // 60))
    ]  # fmt: skip
    ends = [
        {"optimizer": name, "decay": decay, "seed": seed, "growth": result["growth"], "start_norm": result["start"],
         "norm": result["norm"][-1], "accuracy": result["accuracy"]}
        for (name, decay, seed), result in trained.items()
    ]  # fmt: skip
    take = (
        "Accuracy in percent, on digits of later writers. Without decay a projected optimizer keeps its effective step "
        "where momentum and AdamW lose theirs to a growing norm. With decay that advantage is gone: projection also "
        "cuts the decay of these weights to a tenth (`wd_ratio=0.1`), so SGDP then keeps the larger norm of the two."
    )
    picture = draw(trained, growths, drops)
    return Outcome(checks, {"curves": curves, "ends": ends}, picture, ["\n".join(table), take])


def draw(trained: Mapping[Key, Any], growths: Mapping[str, Summary], drops: Mapping[str, Summary]) -> Figure:
    """Norms and effective steps without decay above, with decay below; growth and accuracy beside them."""
    picture, axes = panels(6, columns=3, height=2.9)
    looks = dict(zip(OPTIMIZERS, COLOURS))
    for row, decay in enumerate((False, True)):
        norm_axes, turn_axes = axes[3 * row : 3 * row + 2]
        title = "with decay" if decay else "without decay"
        for name in OPTIMIZERS:
            look: dict[str, Any] = {"color": looks[name], "linestyle": "--" if name in ("SGDP", "AdamP") else "-"}
            runs = [result for key, result in trained.items() if key[:2] == (name, decay)]
            norm, turn = (np.mean([result[what] for result in runs], axis=0) for what in ("norm", "turn"))
            norm_axes.plot(range(1, len(norm) + 1), norm, **look)
            width = max(1, len(turn) // 60)
            smooth = turn[: len(turn) // width * width].reshape(-1, width).mean(1)
            turn_axes.plot((np.arange(len(smooth)) + 0.5) * width, smooth, label=name, **look)
        norm_axes.set(title=f"‖w‖, {title}", xlabel="step")
        turn_axes.set(title=f"effective step, {title}", xlabel="step", yscale="log", ylim=(1e-4, 0.2))
    low = min(axis.get_ylim()[0] for axis in (axes[0], axes[3]))
    high = max(axis.get_ylim()[1] for axis in (axes[0], axes[3]))
    for axis in (axes[0], axes[3]):
        axis.set_ylim(low, high)
    axes[1].legend(frameon=False, ncols=2, fontsize=8)
    places = list(range(len(OPTIMIZERS)))[::-1]
    for place, name in zip(places, OPTIMIZERS):
        for axis, mean in ((axes[2], growths[name]), (axes[5], drops[name])):
            axis.errorbar(mean.mean, place, xerr=mean.half, fmt="o", color=looks[name], capsize=3)
        if name in DROPPED:
            axes[5].plot(DROPPED[name], place, "D", color=looks[name], fillstyle="none")
    axes[2].set(title="growth of ‖w‖² / Σ‖Δw‖², no decay", xscale="log", xlim=(0.8, 40))
    axes[2].set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes[2].minorticks_off()
    axes[5].set(title="accuracy without - with decay, points", xlabel="◇ published for ImageNet")
    for axis, zero in ((axes[2], 1), (axes[5], 0)):
        axis.axvline(zero, color=COLOURS[0], linewidth=0.8)
        axis.set_yticks(places, list(OPTIMIZERS))
        axis.set_ylim(-0.5, len(places) - 0.5)
        axis.grid(axis="y", visible=False)
    return picture
