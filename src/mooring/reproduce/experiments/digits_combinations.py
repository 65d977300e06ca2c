"""Which combinations help? A factorial of projection, selective projection, noise, decay and its kind, augmentation.

The embedded task, Adam with learning rate 2e-3 (between the two that were chosen for AdamW and for AdamSPD), `BUDGET`
gradient evaluations for every training: with noise there are half as many steps. The factors:

- projection: the radial part of the update is removed from the weights that feed a norm layer (declared after
  `mooring.scale_invariant_parameters`, because noisy gradients would mislead the cosine test). A projected weight's
  decay is a tenth, as in AdamP: an interaction with decay that is built in.
- selective projection, strength 1, and noise, NSO with σ = 0.01 and k = 1.
- decay toward the pretrained weights, because a decay to zero would work against selective projection. λ = 4: alone it
  ends about as near to the start as selective projection does alone, by which it was chosen.
- stable: the kind of that decay, stable instead of decoupled, its λ converted where plain Adam is at half of a run.
- augmentation: every batch is turned by up to 12°, scaled by up to 8 % and shifted by up to 0.4 pixels. Shifts are one
  of the four corruptions, so there it is no shift any more.

Where there is no decay its kind means nothing, so it is nested: coded +1 for stable and -1 for decoupled where decay is
on, 0 where it is off. The design has 32 cells, a full 2⁵ of the other five factors; where decay is on, the kind is the
product of the signs of projection, selective projection, noise and augmentation. So an effect of the kind is mixed up
with an interaction of those four, and its interaction with one of them with one of the other three. All 20 contrasts
(five main effects, the kind's, and 14 interactions of two) are orthogonal, and clear of one another.

An effect is the mean where a contrast is +1 less the mean where it is -1; an interaction of two is half the difference
of the one's effect with and without the other. Every seed has all cells (same start, data, order), so effects are
computed seed by seed; 95 % intervals over seeds, p-values from exact sign flips, adjusted after Holm over the 20 of
each metric. Asserted is what follows from the rules: decay to the start and selective projection end nearer to it, by
more than two standard errors. The rest is what was found.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import mooring as mo
from mooring.compare.plots.style import BLUE, GREY, INK, PAPER, VERMILLION
from mooring.compare.statistics import Summary, holm, sign_flip_p, summarise
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.digits import pretrained, report, train, whole
from mooring.reproduce.paired import finding, interval, percent

CROSSED = ("projection", "selective", "noise", "decay", "augmentation")
KIND = "stable"
BUDGET, LR, DECAY = 160, 2e-3, 4.0
METRICS = {
    "id": "ID accuracy, points",
    "later": "later rows, points",
    "corruptions": "corruptions, points",
    "drift": "drift, %",
}
Cell = tuple[int, ...]
"""The signs of `CROSSED`, then the kind of decay."""


def design() -> list[Cell]:
    """The 32 cells."""
    cells = []
    for signs in product((-1, 1), repeat=len(CROSSED)):
        kind = math.prod(s for name, s in zip(CROSSED, signs, strict=True) if name != "decay")
        cells.append((*signs, kind if signs[CROSSED.index("decay")] == 1 else 0))
    return cells


def contrasts(cells: Sequence[Cell]) -> dict[str, list[int]]:
    """Every effect that can be had, with the sign of each cell in it: main effects first."""
    columns = {name: [cell[i] for cell in cells] for i, name in enumerate((*CROSSED, KIND))}
    for a, b in combinations((*CROSSED, KIND), 2):
        if (a, b) != ("decay", KIND):  # the kind exists where there is decay: it is no interaction with it
            columns[f"{a} x {b}"] = [x * y for x, y in zip(columns[a], columns[b], strict=True)]
    return columns


def effect(signs: Sequence[int], values: Sequence[float]) -> float:
    """The mean of the values where the sign is +1 less the mean where it is -1."""
    pairs = list(zip(signs, values, strict=True))
    return float(np.mean([v for s, v in pairs if s == 1]) - np.mean([v for s, v in pairs if s == -1]))


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift every image a little, bilinearly, with background moving in."""

    def uniform(size: float) -> Tensor:
        return size * (2 * torch.rand(len(images), generator=generator) - 1)

    angle, scale, pixels = uniform(math.radians(12)), 1 + uniform(0.08), 2 / images.shape[-1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [cos, -sin, uniform(0.4 * pixels), sin, cos, uniform(0.4 * pixels)]
    maps = torch.stack(rows, dim=1).view(-1, 2, 3)
    return grid_sample(images, affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)


def stable_decay(seed: int, budget: int) -> float:
    """The λ of stable decay that shrinks as `DECAY` does, measured after half a run of plain Adam."""
    start = pretrained(seed)
    adam = mo.Adam(start.model.named_parameters(), lr=LR)
    train(start.model, adam, start.data.train, budget // 2, seed)
    return mo.convert.stable_from_decoupled(DECAY, adam)


@cache
def invariant() -> dict[str, str]:
    """Which weights feed a norm layer; the same for every start."""
    start = pretrained(0)
    return dict(mo.scale_invariant_parameters(start.model, whole(start.data.train).inputs[:8]))


def trial(cell: Sequence[int], stable: float, seed: int, budget: int) -> dict[str, float]:
    """One cell, one seed."""
    on = {name: sign == 1 for name, sign in zip((*CROSSED, KIND), cell, strict=True)}
    start = pretrained(seed)
    model, examples = start.model, start.data.train
    rules: list[Any] = [mo.RadialProjection()] if on["projection"] else []
    if on["decay"]:
        kind, amount = (mo.StableDecay, stable) if on[KIND] else (mo.DecoupledDecay, DECAY)
        rules.append(kind(amount, toward="anchor"))
    if on["selective"]:
        rules.append(mo.SelectiveProjection(1.0))
    optimizer: Any = mo.Adam(mo.param_groups(model, scale_invariant=invariant()), lr=LR, rules=rules)
    if on["noise"]:
        optimizer = mo.NSO(optimizer, sigma=0.01, k=1, seed=seed, model=model)
    steps = budget // (2 if on["noise"] else 1)
    train(model, optimizer, examples, steps, seed, augment=vary if on["augmentation"] else None)
    return report(start)


def run(run: Run) -> Outcome:
    """All cells for all seeds, then the effects."""
    seeds, budget, cells = range(run.pick(3, 10)), run.pick(BUDGET // 2, BUDGET), design()
    [stable] = run.map(stable_decay, [(100, budget)], "matching the decays")
    jobs = [(list(cell), stable, seed, budget) for seed in seeds for cell in cells]
    trials = run.map(trial, jobs, "fine-tuning")
    columns = contrasts(cells)
    found: dict[str, dict[str, tuple[Summary, float]]] = {}  # metric → effect → summary over seeds, adjusted p
    for metric in METRICS:
        values = np.reshape([t[metric] for t in trials], (len(seeds), len(cells)))
        if metric == "drift":
            values = np.log(values)
        by_seed = {name: [effect(signs, row) for row in values.tolist()] for name, signs in columns.items()}
        adjusted = holm([sign_flip_p(effects) for effects in by_seed.values()])
        found[metric] = {n: (summarise(e), p) for (n, e), p in zip(by_seed.items(), adjusted, strict=True)}

    checks = []
    for name, words in (("decay", "decay toward the start"), ("selective", "selective projection")):
        change = found["drift"][name][0]
        slack = 2 * change.error
        why = f"it ends nearer; two standard errors over {len(seeds)} seeds"
        checks.append(Check.below(f"{words}: effect on log drift", change.mean, -slack, why, error=change.error))
    for metric, label in METRICS.items():
        for name in (*CROSSED, KIND):
            checks.append(finding(f"{name}: {label}", *shown(metric, found[metric][name])))
    rows: list[Row] = [
        {**dict(zip((*CROSSED, KIND), cell, strict=True)), "seed": seed, **t}
        for (cell, _, seed, _), t in zip(jobs, trials, strict=True)
    ]
    effects: list[Row] = [
        {"metric": metric, "effect": name, "mean": s.mean, "low": s.low, "high": s.high, "p_adjusted": p}
        for metric, by in found.items()
        for name, (s, p) in by.items()
    ]
    return Outcome(checks, {"cells": rows, "effects": effects}, draw(found), notes(found, trials, len(seeds), budget))


def shown(metric: str, of: tuple[Summary, float]) -> tuple[Summary, str, str]:
    """An effect in the unit in which it is shown, no published value, and its p."""
    change, p = of
    return percent(change) if metric == "drift" else change, "", f"p {p:.2g} after Holm"


def notes(found: Any, trials: Sequence[Mapping[str, float]], seeds: int, budget: int) -> list[str]:
    """Main effects as a table, interactions that are resolved, and what no effect explains: the level."""
    lines = ["| effect | " + " | ".join(METRICS.values()) + " |", "|---" * 5 + "|"]
    pairs: list[str] = []
    for name in found["id"]:
        cells = []
        for metric in METRICS:
            change, p = found[metric][name]
            unit = percent(change) if metric == "drift" else change
            cell = f"{unit.mean:+.2f} ({interval(unit)})"
            cells.append(f"**{cell}**" if p <= 0.05 else cell)
        line = f"| {name} | " + " | ".join(cells) + " |"
        if " x " not in name:
            lines.append(line)
        elif any(found[metric][name][1] <= 0.05 for metric in METRICS if metric != "drift"):
            pairs.append(line)
    level = ", ".join(f"{label.split(',')[0]} {np.mean([t[m] for t in trials]):.2f}" for m, label in METRICS.items())
    said = "Of the interactions of two, those are shown that are resolved in an accuracy" if pairs else (
        "No interaction of two is resolved in any accuracy"
    )  # fmt: skip
    return [
        f"{seeds} seeds of 32 cells, {budget} gradient evaluations each. Means over all: {level}.",
        "\n".join(lines + pairs),
        f"Bold: p ≤ 0.05 after Holm over 20 effects, by sign flips over {seeds} seeds. {said}.",
        f"The largest that are resolved: {'; '.join(largest(found, m) for m in METRICS)}. Where an interaction is "
        "small beside the effects that it joins, the two may be chosen one by one.",
    ]


def largest(found: Any, metric: str, count: int = 3) -> str:
    """The largest resolved effects of a metric in words."""
    resolved = {name: percent(s) if metric == "drift" else s for name, (s, p) in found[metric].items() if p <= 0.05}
    most = sorted(resolved, key=lambda name: -abs(resolved[name].mean))[:count]
    return f"{METRICS[metric]}: " + (", ".join(f"{name} {resolved[name].mean:+.1f}" for name in most) or "none")


def draw(found: Any) -> Figure:
    """Every effect with its interval, one panel for each metric."""
    picture = Figure(figsize=(13, 6.4), facecolor=PAPER, layout="constrained")
    names = list(found["id"])
    axes = picture.subplots(1, len(METRICS), sharey=True)
    for panel, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for i, name in enumerate(names):
            change, p = found[metric][name]
            unit = percent(change) if metric == "drift" else change
            resolved = p <= 0.05
            colour = (BLUE if " x " in name else VERMILLION) if resolved else GREY
            if unit.low is not None and unit.high is not None:
                panel.plot([unit.low, unit.high], [i, i], color=colour, linewidth=2.0 if resolved else 1.1)
            panel.plot([unit.mean], [i], "o", color=colour, markersize=6 if resolved else 4.5,
                       markerfacecolor=colour if resolved else PAPER)  # fmt: skip
        panel.axvline(0, color=INK, linewidth=0.8)
        panel.axhline(len(CROSSED) + 0.5, color=GREY, linewidth=0.6)
        panel.set(title=label)
        panel.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(names)), labels=[name.replace(" x ", " × ") for name in names])
    axes[0].invert_yaxis()
    picture.supxlabel("effect with its 95 % interval; full and coloured: p ≤ 0.05 after Holm", fontsize=9)
    return picture
