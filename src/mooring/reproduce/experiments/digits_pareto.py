"""Selective projection against decay toward the pretrained weights: accuracy for a given drift, as two Pareto curves.

Both hold fine-tuning to its start. L2-SP takes a share of the distance back in every step, θ ← θ - ηλ (θ - θ₀);
selective projection (SPD) takes back only what a step added to a tensor's distance, and only where the gradient points
back to the start, c = -⟨g, θ - θ₀⟩ < 0. The paper finds SPD better (by 8.8 % on ImageNet with CLIP), because tensors
that have reason to move are left free. Here: the embedded task, Adam around both, learning rate `LR` (the one that was
chosen for AdamSPD on ID validation; for AdamW it was a sixth of that), a curve over strengths for each, and a third
with neither of the two, because smaller learning rates drift less too.

Asserted is what the rules are made to do. The mean drift falls from each strength to the next, for both: as an average
over seeds of log drift. And in one training in float64, tensor by tensor and step by step: where c < 0, SPD with
strength 1 never lets the distance grow (the radius law; float64 rounding allowed), where c > 0 it is free to.
Whether SPD's curve is above another at equal drift is a finding: for each seed the mean of the difference over the
drifts that both curves reach, interpolated in log drift, with a 95 % interval over seeds.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import mooring as mo
from mooring.compare.plots.style import BLUE, GREY, PAPER, VERMILLION
from mooring.compare.statistics import summarise
from mooring.finetune.data import Split
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.digits import pretrained, report, train, whole
from mooring.reproduce.paired import finding

LR = 5.6e-3
CURVES = {  # the regulariser → its strengths, the weakest first; for "neither" the learning rate
    "L2-SP": (0.3, 1.0, 2.0, 4.0, 10.0, 40.0),
    "SPD": (0.5, 1.0, 2.0, 4.0, 8.0),
    "neither": (LR, 2e-3, 9.5e-4, 4e-4),
}
QUICK = {"L2-SP": (1.0, 10.0, 100.0), "SPD": (0.5, 2.0, 8.0), "neither": (LR, 9.5e-4)}
METRICS = {
    "id": "ID accuracy, %",
    "later": "later rows, %",
    "corruptions": "mean over corruptions, %",
    "retention": "printed source, %",
}
LOOKS = {"L2-SP": (BLUE, "s"), "SPD": (VERMILLION, "v"), "neither": (GREY, "o")}
FREE, INWARD, CONTRACTED = 0, 1, 2


def optimizer(curve: str, amount: float, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam, held to its start in one of two ways or not at all."""
    weights = model.named_parameters()
    if curve == "SPD":
        return mo.AdamSPD(weights, lr=LR, strength=amount)
    if curve == "L2-SP":
        return mo.Adam(weights, lr=LR, rules=[mo.DecoupledDecay(amount, toward="anchor")])
    return mo.Adam(weights, lr=amount)


def point(curve: str, amount: float, seed: int, steps: int) -> dict[str, float]:
    """One fine-tuning: its accuracies and its drift."""
    start = pretrained(seed)
    train(start.model, optimizer(curve, amount, start.model), start.data.train, steps, seed)
    return report(start)


def traced(seed: int, steps: int) -> dict[str, Any]:
    """What SPD did to every tensor in every step, and the radius law, from outside the optimizer."""
    start = pretrained(seed)
    model = start.model.double()
    rows = whole(start.data.train)
    examples = Split(rows.inputs.double(), rows.labels)
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    spd = mo.AdamSPD(model.named_parameters(), lr=LR, strength=1.0)
    spd.record(every=1)
    states: dict[str, list[int]] = {name: [] for name in anchor}
    before: dict[str, tuple[float, float]] = {}
    growth: dict[bool, list[float]] = {True: [], False: []}  # by whether c < 0

    @torch.no_grad()
    def remember(*_: Any) -> None:
        for name, p in model.named_parameters():
            assert p.grad is not None
            before[name] = float(-(p.grad * (p - anchor[name])).sum()), float((p - anchor[name]).norm())

    @torch.no_grad()
    def look(step: int) -> None:
        numbers = spd.telemetry(per_tensor=True)
        for name, p in model.named_parameters():
            consistency, distance = before[name]
            if distance > 0 and consistency != 0:
                growth[consistency < 0].append(float((p - anchor[name]).norm()) / distance - 1)
            rule = f"group0/selective_projection/{{}}/{name}"
            contracted, inconsistent = numbers[rule.format("contracted")], numbers[rule.format("inconsistent")]
            states[name].append(CONTRACTED if contracted else INWARD if inconsistent else FREE)

    spd.register_step_pre_hook(remember)
    train(model, spd, examples, steps, seed, each=look)
    return {
        "states": states,
        "inconsistent growth": max(growth[True]),
        "inconsistent steps": len(growth[True]),
        "consistent growing": float(np.mean([g > 0 for g in growth[False]])),
    }


def at_equal_drift(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], points: int = 41
) -> tuple[float, float, float]:
    """The mean height of one curve over another, and the drifts between which both exist.

    Args:
        ours: Points (drift, value).
        theirs: Likewise.
        points: How many drifts to compare at, evenly spaced in log drift; values are interpolated in it.
    """
    curves = [sorted((math.log(drift), value) for drift, value in curve) for curve in (ours, theirs)]
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if not low < high:
        return math.nan, math.exp(low), math.exp(high)
    grid = np.linspace(low, high, points)
    heights = [np.interp(grid, [x for x, _ in curve], [y for _, y in curve]) for curve in curves]
    return float((heights[0] - heights[1]).mean()), math.exp(low), math.exp(high)


def run(run: Run) -> Outcome:
    """Curves over strengths, and one training tensor by tensor."""
    seeds, curves = range(run.pick(2, 8)), run.pick(QUICK, CURVES)
    jobs = [(curve, amount, seed, 300) for curve in curves for amount in curves[curve] for seed in seeds]
    found = dict(zip(jobs, run.map(point, jobs, "fine-tuning"), strict=True))
    [trace] = run.map(traced, [(0, run.pick(100, 300))], "one training, tensor by tensor")

    def values(curve: str, amount: float, metric: str) -> list[float]:
        return [found[curve, amount, seed, 300][metric] for seed in seeds]

    rows: list[Row] = [
        {"curve": curve, "strength": amount, "seed": seed, **found[curve, amount, seed, 300]}
        for curve, amount, seed, _ in jobs
    ]
    checks = []
    for name in ("L2-SP", "SPD"):
        logs = np.log([values(name, amount, "drift") for amount in curves[name]])
        falls = [*(logs[1:] - logs[:-1]).mean(axis=1).tolist(), (logs[0] - np.log(plain(found, seeds))).mean()]
        checks.append(
            Check.below(f"{name}: drift from one strength to the next, log ratio, the largest", max(falls), 0.0,
                        "what holds to the start harder ends nearer to it; the first is against none")
        )  # fmt: skip
    checks += [
        Check.below("SPD, strength 1: growth of ‖θ - θ₀‖ where c < 0, the largest", trace["inconsistent growth"], 1e-9,
                    f"the radius law, in float64, over {trace['inconsistent steps']} tensors and steps"),
        Check.above("SPD, strength 1: share of tensors and steps with c > 0 whose distance grows",
                    trace["consistent growing"], 0.5, "these are plain Adam's steps; most go on outward"),
    ]  # fmt: skip
    for rival in ("L2-SP", "neither"):
        for metric, label in METRICS.items():
            heights = []
            for seed in seeds:
                ours, theirs = (
                    [(found[curve, a, seed, 300]["drift"], found[curve, a, seed, 300][metric]) for a in curves[curve]]
                    for curve in ("SPD", rival)
                )
                heights.append(at_equal_drift(ours, theirs))
            checks.append(higher(rival, metric, label, heights))
    shares = {name: float(np.mean([s == CONTRACTED for s in states])) for name, states in trace["states"].items()}
    tensors: list[Row] = [{"tensor": name, "contracted": share} for name, share in shares.items()]
    data = {"points": rows, "tensors": tensors}
    return Outcome(checks, data, draw(curves, values, trace["states"]), notes(curves, values, shares))


def higher(rival: str, metric: str, label: str, heights: Sequence[tuple[float, float, float]]) -> Check:
    """By how much SPD's curve is above another, over seeds."""
    mean = summarise([height for height, _, _ in heights])
    low, high = (float(np.mean([h[i] for h in heights])) for i in (1, 2))
    published = "" if rival == "neither" else "SPD above, by 8.8 % (ImageNet, CLIP)" if metric == "id" else "SPD above"
    than = "smaller learning rates" if rival == "neither" else rival
    return finding(f"SPD less {than} at equal drift: {label}", mean, published, f"drifts of {low:.2g} to {high:.2g}")


def plain(found: dict[Any, Any], seeds: Sequence[int]) -> list[float]:
    """The drift of Adam with nothing to hold it, seed by seed."""
    return [found["neither", LR, seed, 300]["drift"] for seed in seeds]


def notes(curves: Any, values: Any, shares: dict[str, float]) -> list[str]:
    """The points as a table, and what SPD held."""
    lines = ["| | strength | drift | " + " | ".join(METRICS.values()) + " |", "|---" * 7 + "|"]
    for name, amounts in curves.items():
        for amount in amounts:
            strength = f"lr {amount:g}" if name == "neither" else f"{amount:g}"
            cells = [name, strength, f"{np.mean(values(name, amount, 'drift')):.2f}"]
            cells += [f"{np.mean(values(name, amount, metric)):.1f}" for metric in METRICS]
            lines.append("| " + " | ".join(cells) + " |")
    most = sorted(shares, key=lambda name: -shares[name])
    return [
        "\n".join(lines),
        f"SPD with strength 1 contracted {most[0]} most often ({shares[most[0]]:.0%} of the steps) and {most[-1]} "
        f"least often ({shares[most[-1]]:.0%}).",
    ]


def draw(curves: Any, values: Any, states: dict[str, list[int]]) -> Figure:
    """Four metrics against drift; below them every tensor in every step."""
    picture = Figure(figsize=(13, 7.2), facecolor=PAPER, layout="constrained")
    grid = picture.add_gridspec(2, 4, height_ratios=(3.1, 3.4))
    for i, (metric, label) in enumerate(METRICS.items()):
        axes = picture.add_subplot(grid[0, i])
        for name, amounts in curves.items():
            colour, marker = LOOKS[name]
            x, y = ([np.mean(values(name, a, m)) for a in amounts] for m in ("drift", metric))
            dx, dy = ([np.std(values(name, a, m), ddof=1) / math.sqrt(len(values(name, a, m))) for a in amounts]
                      for m in ("drift", metric))  # fmt: skip
            text = "neither, smaller learning rates" if name == "neither" else name
            axes.errorbar(x, y, dy, dx, color=colour, marker=marker, markersize=4.5, elinewidth=0.8, label=text,
                          linewidth=1.4, linestyle=":" if name == "neither" else "-")  # fmt: skip
        axes.set(title=label, xlabel="drift ‖θ - θ₀‖", xscale="log")
        axes.set_xticks([0.5, 1, 2, 4, 8], labels=["0.5", "1", "2", "4", "8"])
        axes.set_xticks([], minor=True)
        if metric == "retention":  # the panel whose lower left is empty
            axes.legend(frameon=False, loc="lower left")
    below = picture.add_subplot(grid[1, :])
    colours = ("#e8ebee", "#9ec9e6", VERMILLION)
    table = np.array(list(states.values()))
    below.imshow(table, aspect="auto", interpolation="nearest", cmap=ListedColormap(colours), vmin=0, vmax=2,
                 extent=(0.5, table.shape[1] + 0.5, len(states) - 0.5, -0.5))  # fmt: skip
    below.grid(visible=False)
    shares = (table == CONTRACTED).mean(axis=1)
    below.set_yticks(range(len(states)), labels=list(states))
    right = below.secondary_yaxis("right")
    right.set_yticks(range(len(states)), labels=[f"{share:.0%}" for share in shares])
    right.spines["right"].set_visible(False)
    below.set(title="what SPD with strength 1 did to each tensor (right: the share of steps in which it contracted)",
              xlabel="step")  # fmt: skip
    words = ("left free: c > 0", "c < 0, but the step led inward by itself", "contracted")
    below.legend(handles=[Patch(color=c, label=w) for c, w in zip(colours, words, strict=True)], frameon=False,
                 ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))  # fmt: skip
    return picture
