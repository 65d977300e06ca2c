"""Draw docs/images/pipeline.png: the stages of one step, and what each rule reads and changes.

    pip install -c constraints.txt -e ".[cli]"        # for matplotlib
    python docs/images/pipeline.py

Nothing of it is written down here twice: stage, scope, inner products and coefficients are asked of the rule classes.
The facts go into the picture's metadata, from which `tests/docs/test_pipeline.py` sees that it is up to date.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import mooring as mo
from mooring.step.move import Move, Slices
from mooring.step.rule import Rule, entries_read

OUTPUT = Path(__file__).with_name("pipeline.png")
STAGES = ("before the moments", "projection", "decay", "rescaling", "contraction")
SYMBOLS = {"tau": "τ", "beta": "β", "kappa": "κ", "rho": "ρ"}


class Seed(Rule):
    """Gives every coefficient a value, so that a rule that scales the move is seen to scale all of them."""

    order = 0
    writes = "pd"
    needs_anchor = True

    def decide(self, x: Slices, totals: list[torch.Tensor]) -> None:
        """Write τ and κ; β is there already."""
        for letter in "pd":
            x.move.add(letter, torch.full_like(x.move.beta, 1e-3))


def make(name: str, **options: Any) -> Rule:
    """A rule that acts: at its defaults some would be off."""
    cls = getattr(mo, name)
    wanted = {"weight_decay": 0.1, "delta": 100.0, "strength": 1.0, **options}
    known = inspect.signature(cls).parameters
    rule: Rule = cls(**{key: value for key, value in wanted.items() if key in known})
    return rule


def changed(rule: Rule) -> str:
    """The coefficients of the pending move that a rule changes, seen in a step that it acts on."""
    seen: dict[str, None] = {}
    decide = rule.decide

    def watched(x: Slices, totals: list[torch.Tensor]) -> None:
        before = Move(**vars(x.move))
        decide(x, totals)
        for key in SYMBOLS:
            old, new = getattr(before, key), getattr(x.move, key)
            if new is not None and (old is None or not torch.equal(old, new)):
                seen[key] = None

    rule.decide = watched  # type: ignore[method-assign]
    weight = torch.nn.Parameter(torch.ones(3, 4))
    rules = [Seed(), rule]
    optimizer = mo.SGD([weight], lr=0.1, momentum=0.9, rules=rules)
    for slope in (-1.0, 0.1):  # away from the anchor, then a gradient that points back while the buffer goes on
        weight.grad = torch.full_like(weight, slope)
        optimizer.step()
    return " ".join(SYMBOLS[key] for key in SYMBOLS if key in seen)


def facts() -> dict[str, dict[str, str]]:
    """What is true of every rule, in words: stage, scope, what it reads and changes, whether it has an anchor."""
    found = {}
    for name in sorted(mo._RULES, key=lambda name: (make(name).order, name)):
        rule = make(name)
        options = {"weight_decay": 0.1, "delta": 100.0, "strength": 1.0, "anchor": "capture", **rule.options()}
        reads = " ".join(entries_read([rule], options)) or ("v̄ (Adam)" if rule.needs_stable_scale else "—")
        changes, anchor = changed(make(name)) or "—", "yes" if rule.needs_anchor else "no"
        if rule.couples:
            changes = "g of the moments"
        if "toward" in inspect.signature(type(rule)).parameters:
            other = make(name, toward="anchor")
            anchor = "toward=" if other.needs_anchor else anchor
            if not rule.couples:
                changes += f" or {changed(other)}"
        found[name] = {
            "stage": STAGES[rule.order],
            "scope": rule.scope,
            "reads": reads,
            "changes": changes,
            "anchor": anchor,
        }
    return found


# The picture. Units are inches: one axes over the whole figure.

WIDTH, HEIGHT = 6.2, 9.04
LEFT, RIGHT = 0.75, 6.05
INK, MUTED, PAPER = "#1f2328", "#5c6470", "#ffffff"
COLOURS = {"pointwise": "#5a6572", "row": "#0072b2", "tensor": "#d55e00", "model": "#009e73"}
FORMULAS = {
    "CoupledDecay": "g + λ (p − target) goes into the moments",
    "RadialProjection": "u loses its part along p, where the test passes",
    "BufferHorizonDecay": "η λ ρ / (1 − momentum) of p, or of d",
    "DecoupledDecay": "η λ ρ of p, or of d",
    "StableDecay": "η λ ρ / √v̄ of p, or of d",
    "TrustRatio": "s gets the length η ‖p‖",
    "SelectiveProjection": "s gives back what leads away from the anchor",
}


def box(axes: Axes, top: float, height: float, colour: str, fill: str = PAPER) -> None:
    """One rounded box."""
    shape = FancyBboxPatch(
        (LEFT, top - height),
        RIGHT - LEFT,
        height,
        boxstyle="round,pad=0,rounding_size=0.08",
        fc=fill,
        ec=colour,
        lw=1.6,
    )
    axes.add_patch(shape)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """The way of the step."""
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    )


def stage(axes: Axes, top: float, title: str, line: str, note: str) -> float:
    """A stage that no rule changes; returns where it ends."""
    box(axes, top, 0.62, MUTED, "#f3f5f7")
    axes.text(LEFT + 0.15, top - 0.24, title, weight="bold", va="center")
    axes.text(LEFT + 0.15, top - 0.46, line, va="center", size=9.5)
    axes.text(RIGHT - 0.15, top - 0.24, note, va="center", ha="right", size=9, color=MUTED)
    return top - 0.62


def rules(axes: Axes, top: float, names: list[str], known: dict[str, dict[str, str]]) -> float:
    """The rules of one stage in one box; returns where it ends."""
    height = 0.12 + 0.56 * len(names)
    box(axes, top, height, COLOURS[known[names[0]]["scope"]] if len(names) == 1 else COLOURS["pointwise"])
    for i, name in enumerate(names):
        fact, y = known[name], top - 0.06 - 0.56 * i
        colour = COLOURS[fact["scope"]]
        axes.text(LEFT + 0.15, y - 0.18, name, weight="bold", va="center", color=colour)
        axes.text(LEFT + 0.15, y - 0.41, FORMULAS[name], va="center", size=9.5)
        scope = f"by {fact['scope']}" if fact["scope"] in ("row", "tensor") else fact["scope"]
        axes.text(RIGHT - 0.15, y - 0.18, scope, va="center", ha="right", size=9, color=colour)
        reads = "" if fact["reads"] == "—" else f"reads {fact['reads']}  "
        target = "" if fact["changes"].startswith("g") else f"changes {fact['changes']}"
        axes.text(LEFT + 2.15, y - 0.18, (reads + target).strip(), va="center", size=9, color=MUTED)
    return top - height


@mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK})
def draw(known: dict[str, dict[str, str]]) -> Figure:
    """The whole picture."""
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    gap = 0.22
    middle = (LEFT + RIGHT) / 2
    by_stage: dict[str, list[str]] = {}
    for name, fact in known.items():
        by_stage.setdefault(fact["stage"], []).append(name)

    y = HEIGHT - 0.15
    taps = []
    y = stage(axes, y, "passes", "NSO, SAM, …: backward at moved weights, averaged", "only around an optimizer")
    arrow(axes, (middle, y), (middle, y - gap))
    y = stage(axes, y - gap, "gradients", "unscaled, clipped to max_grad_norm, or the step skipped", "over all tensors")
    tap = y + 0.31
    for title in STAGES:
        if title == "projection":
            arrow(axes, (middle, y), (middle, y - gap))
            y = stage(axes, y - gap, "moments", "Adam, momentum or Adai make u;  s = η u,  so β = η", "pointwise")
        arrow(axes, (middle, y), (middle, y - gap))
        y -= gap
        top = y
        y = rules(axes, y, by_stage[title], known)
        if any("g" in known[name]["reads"] for name in by_stage[title]):
            taps.append((top + y) / 2)
    arrow(axes, (middle, y), (middle, y - gap))
    y = stage(axes, y - gap, "apply", "s = τ p + β u + κ d,   p ← p − s,   rounded once", "pointwise")

    # The gradient that projection and contraction read is the one before coupled decay.
    x = 0.36
    axes.plot([LEFT, x, x], [tap, tap, taps[-1]], color=MUTED, lw=1.4, solid_joinstyle="round")
    for at in taps:
        arrow(axes, (x, at), (LEFT, at))
    label = {"rotation": 90, "va": "center", "ha": "right", "size": 9, "color": MUTED}
    axes.text(x - 0.1, (tap + taps[-1]) / 2, "g, without the coupled term", **label)
    return figure


def main() -> None:
    """Draw and save."""
    known = facts()
    draw(known).savefig(OUTPUT, dpi=200, metadata={"Description": json.dumps(known), "Software": None})
    print(OUTPUT)


if __name__ == "__main__":
    main()
