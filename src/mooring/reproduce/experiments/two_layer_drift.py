"""Selective decay holds the layer that the task does not need and lets go of the one that it needs.

Two layers, anchored at 0. The relevant one (20 dimensions) has the gradient θ - t plus noise with t = ±1, the
irrelevant one (200 dimensions) nothing but noise, each of size 1. Adam, learning rate 1e-3, 4000 steps. A decay toward
the anchor (L2-SP, decoupled) that holds the drift of the irrelevant layer costs the relevant layer its task. SPD
contracts a layer only where its descent direction points back at the anchor (Tian et al.), and has the same drift at a
loss more than thirty times lower. The loss is the mean over dimensions of ½ (θ - t)², the drift a norm.

The intervals are the ranges that the figures were given with, over seeds. Ours is a mean over ten seeds with its
standard error, and it has to lie in them. Single seeds leave them: the drift of one seed is spread by 0.015 to 0.05.
"""

import warnings

import torch
from torch import nn

import mooring as mo
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels

RELEVANT, IRRELEVANT, SEEDS, STEPS = 20, 200, 10, 4000
PUBLISHED = {"SPD": (2.0, (0.0028, 0.0037), (0.23, 0.42)), "L2-SP": (1.0, (0.14, 0.147), (0.28, 0.33))}
OPTION = {"SPD": "strength", "L2-SP": "weight_decay", "Adam": "strength"}


def train(cells: list[tuple[str, float]], run: Run) -> list[Row]:
    """All methods, strengths and seeds as layers of one optimizer, whose layers do not see each other."""
    generator = torch.Generator().manual_seed(0)
    target = torch.ones(RELEVANT, dtype=torch.float64)
    target[1::2] = -1
    # The layers are views of one tensor, so that one line makes all gradients.
    weights = torch.zeros(len(cells), SEEDS, RELEVANT + IRRELEVANT, dtype=torch.float64)
    gradients = torch.zeros_like(weights)
    groups = []
    for (name, strength), w, g in zip(cells, weights, gradients):
        layers = []
        for seed in range(SEEDS):
            for part in (slice(RELEVANT), slice(RELEVANT, None)):
                layers.append(nn.Parameter(w[seed, part]))
                layers[-1].grad = g[seed, part]
        groups.append({"params": layers, "strength": 0.0, "weight_decay": 0.0} | {OPTION[name]: strength})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*anchor.*")  # the layers start at their anchor, as meant
        optimizer = mo.AdamSPD(groups, lr=1e-3, anchor="zero")
    for _ in run.track(range(STEPS), "training"):
        # The same noise for every method.
        gradients.copy_(torch.randn(SEEDS, RELEVANT + IRRELEVANT, generator=generator, dtype=torch.float64))
        gradients[..., :RELEVANT] += weights[..., :RELEVANT] - target
        optimizer.step()
    loss = 0.5 * (weights[..., :RELEVANT] - target).square().mean(-1)
    drift = weights[..., RELEVANT:].norm(dim=-1)
    return [{"method": name, "strength": strength, "seed": seed, "loss": float(loss[i, seed]),
             "drift": float(drift[i, seed])}
            for i, (name, strength) in enumerate(cells) for seed in range(SEEDS)]  # fmt: skip


def run(run: Run) -> Outcome:
    """The published strengths, and others on both sides of them for the picture."""
    sweep = {
        "SPD": run.pick((1.0, 2.0, 4.0), (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)),
        "L2-SP": run.pick((0.1, 1.0, 10.0), (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
        "Adam": (0.0,),
    }
    rows = train([(name, strength) for name, strengths in sweep.items() for strength in strengths], run)

    def of(name: str, strength: float, what: str) -> torch.Tensor:
        return torch.tensor([r[what] for r in rows if r["method"] == name and r["strength"] == strength])

    checks, (picture, [axes]) = list[Check](), panels(1, width=6.5, height=4.2)
    for (name, strengths), colour in zip(sweep.items(), (COLOURS[2], COLOURS[1], COLOURS[0])):
        x, y = (torch.stack([of(name, s, what) for s in strengths]) for what in ("drift", "loss"))
        axes.scatter(x, y, s=8, color=colour, alpha=0.4, linewidths=0)
        axes.plot(x.mean(1), y.mean(1), "o-", color=colour, label=name)
        for s, at_x, at_y in zip(strengths, x.mean(1), y.mean(1)):
            axes.annotate(f"{s:g}" if name != "Adam" else "", (at_x, at_y), xytext=(5, 4), textcoords="offset points",
                          color=colour, fontsize=7)  # fmt: skip
        if name not in PUBLISHED:
            continue
        strength, *ranges = PUBLISHED[name]
        for what, (low, high) in zip(("loss", "drift"), ranges):
            found = of(name, strength, what)
            label = f"{name}({strength:g}): {'relevant loss' if what == 'loss' else 'irrelevant drift'}"
            why = f"the range it was given with; ours of single seeds: {found.min():.3g} … {found.max():.3g}"
            checks.append(Check(label, float(found.mean()), f"{low:g} … {high:g}", low, high, why,
                                float(found.std() / SEEDS**0.5)))  # fmt: skip
        (bottom, top), (left, right) = ranges
        axes.fill([left, right, right, left], [bottom, bottom, top, top], facecolor="none", edgecolor=colour,
                  linewidth=1, label=f"published: {name}({strength:g})")  # fmt: skip
    ratio = of("L2-SP", 1.0, "loss") / of("SPD", 2.0, "loss")
    further = of("Adam", 0.0, "drift") / of("SPD", 2.0, "drift")
    checks += [
        Check.above("loss of L2-SP(1) / SPD(2), smallest of the seeds", float(ratio.min()), 30, "the claim", "> 30"),
        Check.above("drift of plain Adam / SPD(2), smallest of the seeds", float(further.min()), 1.5,
                    "otherwise there was nothing to hold"),
    ]  # fmt: skip
    axes.set(title="what the task pays for a small drift; numbers: the strength", yscale="log",
             xlabel="drift of the irrelevant layer", ylabel="loss of the relevant layer")  # fmt: skip
    axes.legend(frameon=False, loc="upper right")
    return Outcome(checks, {"runs": rows}, picture)
