"""Weight decay makes the gradient at the end of training larger. Does stable decay (AdamS) make it less large?

A batch-normalised network learns 1000 real digits, once for every learning rate, decay and kind of decay: L2 (coupled,
Adam), decoupled (AdamW), stable (AdamS: λ divided by the root of the model's mean second moment). At the end, over all
1000 rows and in evaluation mode:

    ‖∇L‖,    tr ∇²L (Hutchinson, the same probes everywhere),    λ_max of ∇²L (Lanczos)

The paper's claims are that decay leads to large gradient norms, and that stable decay mitigates it. The first is
asserted: against the same seed and learning rate without decay, the mean logarithm of the ratio over the grid lies
above zero by Student's 95 % interval over seeds. That decay works at all is asserted of each kind too: it ends with
smaller weights than no decay.

For the second, the three λ have three units, so equal λ, or λ in the ratio of the paper, compare strong decay with
weak. Kinds are therefore compared at equal effect: for every setting of stable decay, the other kind's measure is
interpolated over its own λ (linear, in logarithms) to where its weights end with the same norm, in the same seed and at
the same learning rate. Settings whose norm the other kind did not reach are left out. (The curves are hollow, so lines
between their points lie above them: that favours stable decay.) Nothing is asked of the result: its interval is shown,
and so is the paper's own pairing of settings (λ = 5e-4, 0.5 and 5e-4 at learning rate 1e-3).

The measures depend on how a network is written down: with batch normalisation, halving ‖w‖ doubles its gradient and
quadruples its Hessian without changing the function. That is part of why decay raises them, and the other reason to
compare at equal norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

import mooring as mo
from mooring.compare.statistics import Summary, summarise
from mooring.finetune.data import Split
from mooring.finetune.models import MLP
from mooring.finetune.seeds import own_global_rng
from mooring.measure import Hessian
from mooring.reproduce import Check, Outcome, Run, digits
from mooring.reproduce.paired import interval
from mooring.reproduce.picture import COLOURS, panels

RATES = (1e-3, 3e-3, 1e-2)
DECAYS = {
    "L2": (5e-4, 1.5e-3, 5e-3, 1.5e-2),
    "decoupled": (5e-2, 0.15, 0.5, 1.5),
    "stable": (5e-4, 1.5e-3, 5e-3, 1.5e-2),
}
OPTIMIZER = {"none": "Adam", "L2": "Adam", "decoupled": "AdamW", "stable": "AdamS"}
MEASURES = {"gradient": "gradient norm", "trace": "Hessian trace", "top": "λ max"}
STYLES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")  # of learning rates, the largest first
PUBLISHED = (1e-3, {"L2": 5e-4, "decoupled": 0.5, "stable": 5e-4})
PROBES, ACCURACY = 16, 1e-2  # of the trace, and the relative accuracy of λ_max

Cell = tuple[str, float, float, int]
"""Kind of decay, learning rate, decay, seed."""
Measured = Mapping[str, float]


def train(kind: str, rate: float, decay: float, seed: int, steps: int) -> dict[str, float]:
    """One training and what is measured at its end."""
    rows = digits.handwritten()
    learned, later = (Split(rows.inputs[part].flatten(1), rows.labels[part]) for part in (digits.EARLY, digits.LATER))
    with own_global_rng(torch.device("cpu"), "initialisation", seed):
        model = MLP(64, classes=10)
    optimizer = getattr(mo, OPTIMIZER[kind])(model.parameters(), lr=rate, weight_decay=decay)
    digits.train(model, optimizer, learned, steps, seed)
    hessian = Hessian(model, digits.loss, [learned])
    return {
        "gradient": gradient_norm(model, learned),
        "trace": hessian.trace(PROBES, seed=0).value,
        "top": hessian.top(1, ACCURACY)[0],
        "norm": math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters())),
        "accuracy": digits.score(model, later)[0],
        "capped": optimizer.telemetry()["model/stable_decay/capped_steps"] if kind == "stable" else 0.0,
    }


def gradient_norm(model: nn.Module, examples: Split) -> float:
    """The norm of the gradient of the mean loss over all examples, in evaluation mode; the mode is put back."""
    was_training = model.training
    model.eval()
    gradients = torch.autograd.grad(digits.loss(model, examples), list(model.parameters()))
    model.train(was_training)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def at_norm(curve: Sequence[Measured], norm: float, measure: str) -> float | None:
    """The logarithm of a measure where a kind of decay ends with this norm of the weights; None out of its range."""
    points = sorted((cell["norm"], math.log(cell[measure])) for cell in curve)
    if not points[0][0] <= norm <= points[-1][0]:
        return None
    return float(np.interp(norm, [p[0] for p in points], [p[1] for p in points]))


def run(run: Run) -> Outcome:
    """Three kinds of decay and none over a grid, over seeds."""
    rates, seeds, steps = run.pick(RATES[1:], RATES), run.pick(3, 5), run.pick(200, 400)
    decays = {kind: run.pick(values[1::2], values) for kind, values in DECAYS.items()}
    cells: list[Cell] = [("none", rate, 0.0, seed) for rate in rates for seed in range(seeds)]
    cells += [
        (kind, rate, decay, seed)
        for kind, values in decays.items() for rate in rates for decay in values for seed in range(seeds)
    ]  # fmt: skip
    found = dict(zip(cells, run.map(train, [(*cell, steps) for cell in cells], "training"), strict=True))

    def over_seeds(kind: str, measure: str) -> Summary:
        """The mean log ratio to no decay over the grid: one number for every seed, then over seeds."""
        logs = [
            np.mean([
                math.log(found[kind, rate, decay, seed][measure] / found["none", rate, 0.0, seed][measure])
                for rate in rates for decay in decays[kind]
            ])
            for seed in range(seeds)
        ]  # fmt: skip
        return summarise([float(value) for value in logs])

    def matched(other: str, measure: str) -> tuple[Summary, int]:
        """Stable decay against another kind at equal norm: the mean log ratio, and from how many pairs."""
        values, pairs = [], 0
        for seed in range(seeds):
            logs = []
            for rate in rates:
                curve = [found["none", rate, 0.0, seed], *(found[other, rate, d, seed] for d in decays[other])]
                for decay in decays["stable"]:
                    ours = found["stable", rate, decay, seed]
                    theirs = at_norm(curve, ours["norm"], measure)
                    if theirs is not None:
                        logs.append(math.log(ours[measure]) - theirs)
            pairs += len(logs)
            values.append(float(np.mean(logs)) if logs else math.nan)
        return summarise(values), pairs

    checks = []
    for kind in decays:
        norm, gradient = over_seeds(kind, "norm"), over_seeds(kind, "gradient")
        why = f"the 95 % interval over {seeds} seeds lies"
        checks += [
            Check.below(f"{kind} / none: log ratio of ‖w‖", norm.mean, -norm.half, f"{why} below 0", "", norm.error),
            Check.above(f"{kind} / none: log ratio of ‖∇L‖", gradient.mean, gradient.half, f"{why} above 0",
                        "larger" if kind != "stable" else "", gradient.error),
        ]  # fmt: skip
    table = ["| stable decay against, at equal ‖w‖ | gradient norm | Hessian trace | λ_max |", "|---|--:|--:|--:|"]
    for other in ("L2", "decoupled"):
        line = [other]
        for measure, name in MEASURES.items():
            ratio, pairs = matched(other, measure)
            why = f"95 % interval {interval(ratio, 3)}, {pairs} pairs"
            figure = f"stable / {other} at equal ‖w‖: log ratio of {name}"
            checks.append(Check.finding(figure, ratio.mean, "smaller", why, ratio.error))
            low, high = map(percent, ratio.ends)
            line.append(f"{percent(ratio.mean)} ({low} … {high})")
        table.append("| " + " | ".join(line) + " |")
    notes = [
        "\n".join(table),
        "Differences in percent with their 95 % intervals; negative: smaller under stable decay. Every kind of decay "
        "raises the gradient norm and the curvature at the end, the more the stronger it is, so kinds have to be "
        "compared at equal strength: this table says what is left of a kind's advantage then.",
    ]
    if not run.quick:
        rate, setting = PUBLISHED
        for other in ("L2", "decoupled"):
            same = [
                (found["stable", rate, setting["stable"], seed], found[other, rate, setting[other], seed])
                for seed in range(seeds)
            ]
            gradient, norm = (
                summarise([math.log(a[what] / b[what]) for a, b in same]) for what in ("gradient", "norm")
            )  # fmt: skip
            why = f"at ‖w‖ {percent(norm.mean)}: λ {setting['stable']:g} against {setting[other]:g}, rate {rate:g}"
            figure = f"stable / {other}, the paper's settings: log ratio of ‖∇L‖"
            checks.append(Check.finding(figure, gradient.mean, "smaller", why, gradient.error))
    capped = sum(result["capped"] for result in found.values())
    if capped:
        notes.append(f"On {capped:.0f} steps of stable decay the shrink reached the whole weight and was capped.")
    rows = [
        {"decay": kind, "learning_rate": rate, "weight_decay": decay, "seed": seed, **result}
        for (kind, rate, decay, seed), result in found.items()
    ]
    return Outcome(checks, {"grid": rows}, draw(found, rates, decays, seeds), notes)


def percent(log_ratio: float) -> str:
    """A logarithm of a ratio as a change in percent."""
    return f"{100 * math.expm1(log_ratio):+.0f} %"


def draw(
    found: Mapping[Cell, Measured], rates: Sequence[float], decays: Mapping[str, Sequence[float]], seeds: int
) -> Figure:
    """A heat map for every measure and kind of decay, and beside them the measure against the norm of the weights."""

    def mean(kind: str, rate: float, decay: float, measure: str) -> float:
        """The geometric mean over seeds."""
        values = [found[kind, rate, decay, seed][measure] for seed in range(seeds)]
        return math.exp(sum(math.log(value) for value in values) / seeds)

    picture, axes = panels(12, columns=4, width=3.4, height=2.7)
    for row, (measure, name) in enumerate(MEASURES.items()):
        maps = {
            kind: np.array([
                [mean("none" if decay == 0 else kind, rate, decay, measure) for rate in rates]
                for decay in (0.0, *values)
            ])
            for kind, values in decays.items()
        }  # fmt: skip
        low, high = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
        for axis, (kind, values) in zip(axes[4 * row :], decays.items()):
            heat(axis, maps[kind], rates, (0.0, *values), low, high)
            axis.set(title=f"{name}, {kind}", ylabel="λ", xlabel="learning rate" if row == 2 else "")
        beside = axes[4 * row + 3]
        for colour, kind in zip(COLOURS[1:], decays):
            for style, rate in zip(STYLES, reversed(rates)):
                points = [("none", 0.0), *((kind, decay) for decay in decays[kind])]
                norms, values = ([mean(k, rate, d, what) for k, d in points] for what in ("norm", measure))
                beside.plot(norms, values, style, color=colour, marker="o", markersize=3, linewidth=1.2)
        beside.set(title=f"{name} at the norm reached", xlabel="‖w‖ at the end" if row == 2 else "", yscale="log")
    keys = [
        Line2D([], [], color=colour, marker="o", markersize=3, label=kind) for colour, kind in zip(COLOURS[1:], decays)
    ]
    keys += [
        Line2D([], [], color=COLOURS[0], linestyle=style, label=f"learning rate {rate:g}")
        for style, rate in zip(STYLES, reversed(rates))
    ]
    picture.legend(handles=keys, loc="outside lower right", ncols=len(keys), frameon=False)
    return picture


def heat(
    axes: Axes, values: np.ndarray[Any, Any], rates: Sequence[float], decays: Sequence[float], low: float, high: float
) -> None:
    """Values written into cells whose colour is their logarithm."""
    axes.imshow(np.log(values), cmap="YlGnBu", vmin=math.log(low), vmax=math.log(high), aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(values):
        dark = math.log(value / low) > 0.6 * math.log(high / low)
        text, colour = f"{float(f'{value:.2g}'):g}", "white" if dark else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
    axes.grid(visible=False)
