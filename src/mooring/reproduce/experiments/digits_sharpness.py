"""NSO against the sharpness-aware family: accuracy and curvature, at equal gradients and at equal training loss.

NSO descends the mean loss under weight noise, (f(W + U) + f(W - U)) / 2 ≈ f + σ²/2 tr H; SAM, USAM, ASAM and RSAM take
the gradient where the loss is highest nearby. On six image sets the paper has NSO above the four by up to 1.8 % in
accuracy, with a trace of the Hessian 17.7 % and a largest eigenvalue 12.8 % smaller.

Here each goes around the same AdamW on the embedded task, with `BUDGET` gradient evaluations: a method that needs two
per step takes half the steps, on the same schedule stretched over them. Its size (σ, ρ) is the best of three in ID
validation, 1/3, 1 and 3 times the conventional one, on three seeds of their own (--quick: the conventional ones); the
learning rate is the one that was chosen for AdamW. Fewer steps leave a higher training loss, and cross-entropy curves
more where it is higher: so each curve is also read at one loss per seed, the highest that any method ends with,
interpolated in the logarithms of both. What ends there is at the end of its schedule, the others are in the middle of
theirs; "half the steps" is AdamW stopped after half the gradients, schedule and all, and shows what that alone does.
"NSO against the four" is NSO less the mean of SAM, USAM, ASAM and RSAM, paired
by seed; trace by Hutchinson with the same probes for all, λ_max by Lanczos, both of the training loss.

What the paper found on its images need not be found here and is not asserted. Asserted is that the methods take their
gradients where they say. In float64, at the start: the loss at SAM's, USAM's and ASAM's point exceeds that at the
weights by ρ‖g‖, ρ‖g‖² and ρ‖|w|g‖ to first order, within twice the second-order term ½ eᵀHe of that very step (twice,
because H does not see the kinks of ReLU, which are of second order too), and RSAM's exceeds it at all. NSO's two
points are mirror images, the first order cancels in their mean loss, and the base is given the mean of their gradients.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

import mooring as mo
from mooring.compare.plots.style import INK
from mooring.compare.statistics import Summary, summarise
from mooring.finetune.data import Split
from mooring.measure import Hessian
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.digits import loss, pretrained, report, score, train, whole
from mooring.reproduce.paired import finding, interval, minus, percent
from mooring.reproduce.picture import COLOURS, panels

Base = torch.optim.Optimizer
METHODS: dict[str, Callable[[Base, torch.nn.Module, float, int], Base]] = {
    "AdamW": lambda base, model, size, seed: base,
    "half the steps": lambda base, model, size, seed: base,
    "NSO": lambda base, model, size, seed: mo.NSO(base, sigma=size, seed=seed, model=model),
    "one point": lambda base, model, size, seed: mo.NSO(base, sigma=size, k=2, two_point=False, seed=seed, model=model),
    "SAM": lambda base, model, size, seed: mo.SAM(base, rho=size, model=model),
    "USAM": lambda base, model, size, seed: mo.USAM(base, rho=size, model=model),
    "ASAM": lambda base, model, size, seed: mo.ASAM(base, rho=size, model=model),
    "RSAM": lambda base, model, size, seed: mo.RSAM(base, rho=size, sigma=0.01, seed=seed, model=model),
}
CONVENTIONAL = {
    "AdamW": 0.0, "half the steps": 0.0, "NSO": 0.01, "one point": 0.01,
    "SAM": 0.05, "USAM": 0.05, "ASAM": 0.5, "RSAM": 0.05,
}  # fmt: skip
FOUR = ("SAM", "USAM", "ASAM", "RSAM")
TUNING_SEEDS = (100, 101, 102)
BUDGET, POINTS, PROBES = 300, (0.25, 0.5, 1.0), 8
TOLERANCE = 5e-2  # of the eigenvalue, relative


def fine_tune(
    method: str, size: float, seed: int, budget: int, shares: Sequence[float], look: Callable[[Any, int], None]
) -> Any:
    """A start, fine-tuned; ``look(start, gradients)`` after these shares of the steps."""
    start = pretrained(seed)
    base = mo.AdamW(start.model.named_parameters(), lr=9.5e-4, weight_decay=4.9e-4)
    optimizer = METHODS[method](base, start.model, size, seed)
    cost = getattr(optimizer, "gradients_per_step", 1)
    steps = (budget // 2 if method == "half the steps" else budget) // cost
    marks = {round(share * steps) for share in shares}
    train(start.model, optimizer, start.data.train, steps, seed,
          each=lambda step: look(start, step * cost) if step in marks else None)  # fmt: skip
    return start


def validation(method: str, size: float, seed: int, budget: int) -> list[float]:
    """Accuracy and minus the loss on ID validation: what a size is chosen by."""
    start = fine_tune(method, size, seed, budget, (), lambda *_: None)
    accuracy, nll = score(start.model, start.data.evaluation["id_val"])
    return [accuracy, -nll]


def curvature(start: Any, gradients: int) -> dict[str, float]:
    """The training loss and its Hessian."""
    hessian = Hessian(start.model, loss, [whole(start.data.train)])
    train_loss = score(start.model, start.data.train)[1]
    trace, top = hessian.trace(PROBES).value, hessian.top(1, tolerance=TOLERANCE)[0]
    return {"gradients": gradients, "loss": train_loss, "trace": trace, "top": top}


def beginning(seed: int) -> dict[str, float]:
    """What all methods of a seed begin with."""
    return curvature(pretrained(seed), 0)


def trial(method: str, size: float, seed: int, budget: int) -> dict[str, Any]:
    """One fine-tuning: its curve and its scores."""
    curve: list[dict[str, float]] = []
    start = fine_tune(method, size, seed, budget, POINTS, lambda s, g: curve.append(curvature(s, g)))
    scores = report(start)
    return {"curve": curve, "scores": {**scores, "gap": scores["test_loss"] - scores["train_loss"]}}


def mechanics() -> dict[str, float]:
    """Where the methods take their gradients: one step of each in float64, looked at from outside."""
    start = pretrained(0)
    model = start.model.double().eval()
    rows = whole(start.data.train)
    examples = Split(rows.inputs.double(), rows.labels)
    weights = list(model.parameters())
    at_start = [w.detach().clone() for w in weights]
    hessian = Hessian(model, loss, [examples])
    here = loss(model, examples)
    value, gradient = here.item(), torch.autograd.grad(here, weights)

    def points(optimizer: Any) -> list[tuple[float, list[torch.Tensor], tuple[torch.Tensor, ...]]]:
        """The loss, the displacement and the gradient of every pass that wants a gradient."""
        found = []
        optimizer.zero_grad()
        for pass_ in optimizer.passes():
            with pass_:
                here = loss(model, examples)
                if pass_.gradient:
                    moved = [w.detach() - w0 for w, w0 in zip(weights, at_start, strict=True)]
                    own = torch.autograd.grad(here, weights, retain_graph=True)
                    found.append((here.item(), moved, own))
                pass_.backward(here)
        return found

    def dot(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
        return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))

    norm = math.sqrt(dot(gradient, gradient))
    scaled = [w.abs() * g for w, g in zip(at_start, gradient, strict=True)]
    found: dict[str, float] = {}
    promised = {"SAM": norm, "USAM": norm**2, "ASAM": math.sqrt(dot(scaled, scaled))}
    for name, size in (("SAM", 1e-3), ("USAM", 1e-3), ("ASAM", 1e-2), ("RSAM", 1e-3)):
        optimizer = METHODS[name](torch.optim.SGD(weights, lr=0.1), model, size, 0)
        height, moved, _ = points(optimizer)[-1]
        found[name] = (height - value) / (size * promised.get(name, norm))
        second = dot(moved, hessian.product(moved)) / 2
        found[f"{name} second order"] = abs(second) / (size * promised.get(name, norm))
    nso = METHODS["NSO"](torch.optim.SGD(weights, lr=0.1), model, 1e-4, 0)
    (above, up, g_up), (below, down, g_down) = points(nso)
    middle = [u + d for u, d in zip(up, down, strict=True)]
    found["mirror"] = math.sqrt(dot(middle, middle) / dot(up, up))
    found["pair"] = abs((above + below) / 2 - value) / abs(dot(gradient, up))
    handed = [w.grad for w in weights if w.grad is not None]
    off = [h - (a + b) / 2 for h, a, b in zip(handed, g_up, g_down, strict=True)]
    found["mean"] = math.sqrt(dot(off, off)) / norm
    return found


def at_loss(curve: Sequence[tuple[float, float]], wanted: float) -> float:
    """A curve of (loss, value), in the order of training, read where the loss first falls to ``wanted``.

    Both are interpolated in their logarithms. Not-a-number where the loss never gets there.
    """
    for (before, first), (after, second) in pairwise(curve):
        if before >= wanted >= after:
            share = 1.0 if before == after else math.log(before / wanted) / math.log(before / after)
            return math.exp((1 - share) * math.log(first) + share * math.log(second))
    return math.nan


def choose(run: Run, budget: int) -> dict[str, float]:
    """The size of every method."""
    if run.quick:
        return CONVENTIONAL
    jobs = [
        (method, round(factor * usual, 6), seed, budget)
        for method, usual in CONVENTIONAL.items()
        if usual
        for factor in (1 / 3, 1, 3)
        for seed in TUNING_SEEDS
    ]
    scores: dict[tuple[str, float], list[list[float]]] = {}
    for (method, size, _, _), found in zip(jobs, run.map(validation, jobs, "choosing sizes"), strict=True):
        scores.setdefault((method, size), []).append(found)
    best = dict(CONVENTIONAL)
    for method in CONVENTIONAL:
        sizes = [size for name, size in scores if name == method]
        if sizes:
            best[method] = max(sizes, key=lambda size: np.mean(scores[method, size], axis=0).tolist())
    return best


def run(run: Run) -> Outcome:
    """Choose sizes, train, read at equal gradients and at equal loss."""
    seeds, budget = range(run.pick(2, 6)), run.pick(BUDGET // 2, BUDGET)
    sizes = choose(run, budget)
    jobs = [(method, sizes[method], seed, budget) for seed in seeds for method in METHODS]
    trials = {(m, s): t for (m, _, s, _), t in zip(jobs, run.map(trial, jobs, "fine-tuning"), strict=True)}
    starts = run.map(beginning, [(seed,) for seed in seeds], "curvature at the start")
    [met] = run.map(mechanics, [()], "where gradients are taken")
    for (_, seed), found in trials.items():
        found["curve"].insert(0, starts[seed])

    curves = {key: found["curve"] for key, found in trials.items()}
    logs: dict[tuple[str, str], dict[str, list[float]]] = {}  # (metric, view) → method → log values over seeds
    for metric in ("trace", "top"):
        for method in METHODS:
            for seed in seeds:
                wanted = max(curves[m, seed][-1]["loss"] for m in METHODS)
                curve = [(p["loss"], p[metric]) for p in curves[method, seed]]
                for view, value in (("gradients", curve[-1][1]), ("loss", at_loss(curve, wanted))):
                    logs.setdefault((metric, view), {}).setdefault(method, []).append(math.log(value))

    checks = mechanical(met)
    right = {m: [trials[m, seed]["scores"]["id"] for seed in seeds] for m in METHODS}
    checks.append(
        finding("NSO against the four: ID accuracy, points", against_four(right), "up to +1.8 (six image sets)")
    )
    for metric, label, published in (("trace", "tr H", "-17.7"), ("top", "λ_max", "-12.8")):
        for view in ("gradients", "loss"):
            change = percent(against_four(logs[metric, view]))
            checks.append(finding(f"NSO against the four: {label} at equal {view}, %", change, published))
    changes = {
        key: {m: percent(summarise(minus(by[m], by["AdamW"]))) for m in METHODS if m != "AdamW"}
        for key, by in logs.items()
    }
    rows: list[Row] = [
        {"method": m, "size": sizes[m], "seed": seed, **p, **(trials[m, seed]["scores"] if p is curve[-1] else {})}
        for (m, seed), curve in curves.items()
        for p in curve
    ]
    return Outcome(checks, {"curves": rows}, draw(curves, changes, seeds), notes(trials, sizes, changes, seeds, budget))


def mechanical(met: dict[str, float]) -> list[Check]:
    """What the methods promise, at the first step."""
    law = {"SAM": "ρ‖g‖", "USAM": "ρ‖g‖²", "ASAM": "ρ‖|w|g‖"}
    checks = [
        Check.near(f"{name}: rise of the loss at its point / {formula}", met[name], 1.0,
                   2 * met[f"{name} second order"], f"½ eᵀHe is {met[f'{name} second order']:.2g} of it; twice that")
        for name, formula in law.items()
    ]  # fmt: skip
    return [
        *checks,
        Check.above("RSAM: rise of the loss at its point / ρ‖g‖", met["RSAM"], 0.0, "an ascent, found under noise"),
        Check.below("NSO: ‖U₊ + U₋‖ / ‖U₊‖", met["mirror"], 1e-9, "mirror images, to float64 rounding"),
        Check.below("NSO: mean rise of the loss over the pair / |⟨g, U⟩|", met["pair"], 0.1,
                    "one point alone has 1; what stays is of second order, σ smaller"),
        Check.below("NSO: gradient handed to the base less the mean of the pair's, / ‖g‖", met["mean"], 1e-9,
                    "float64 rounding"),
    ]  # fmt: skip


def against_four(by: dict[str, list[float]]) -> Summary:
    """NSO less the mean of SAM, USAM, ASAM and RSAM, paired by seed."""
    return summarise(minus(by["NSO"], np.mean([by[m] for m in FOUR], axis=0).tolist()))


def notes(trials: Any, sizes: dict[str, float], changes: Any, seeds: Sequence[int], budget: int) -> list[str]:
    """All methods in one table."""
    lines = [
        "| method | size | ID, % | later rows, % | test less training loss | training loss | tr H, equal gradients | "
        "tr H, equal loss | λ_max, equal gradients | λ_max, equal loss |",
        "|---" * 10 + "|",
    ]
    for method in METHODS:
        mean = {key: np.mean([trials[method, s]["scores"][key] for s in seeds]) for key in trials[method, 0]["scores"]}
        cells = [method, f"{sizes[method]:.3g}" if sizes[method] else "", f"{mean['id']:.2f}", f"{mean['later']:.2f}",
                 f"{mean['gap']:.4f}", f"{mean['train_loss']:.2e}"]  # fmt: skip
        for key in (("trace", "gradients"), ("trace", "loss"), ("top", "gradients"), ("top", "loss")):
            found = changes[key].get(method)
            cells.append("" if found is None else f"{found.mean:+.0f} % ({interval(found, 0)})")
        lines.append("| " + " | ".join(cells) + " |")
    return [
        f"{len(seeds)} seeds, {budget} gradient evaluations each; curvature as a change against AdamW, with its 95 % "
        "interval.",
        "\n".join(lines),
        "At equal gradients a method that takes two per step has made half as many steps, its loss is higher, and so "
        "is its curvature; at equal loss that part is gone.",
    ]


def draw(curves: Any, changes: Any, seeds: Sequence[int]) -> Figure:
    """Curvature over gradients and over the loss, and both ways of comparing it with AdamW's."""
    picture, axes = panels(6, width=4.4, height=3.4)
    for row, (metric, label) in enumerate((("trace", "tr H"), ("top", "λ_max"))):
        over, against, dots = axes[3 * row : 3 * row + 3]
        for colour, (method, marker) in zip(COLOURS, zip(METHODS, "oh^DvPXs", strict=True), strict=True):
            runs = [curves[method, seed] for seed in seeds]
            mean = {
                key: [math.exp(np.mean([math.log(r[i][key]) for r in runs])) for i in range(1, len(runs[0]))]
                for key in ("loss", metric)
            }
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.2}
            over.plot([p["gradients"] for p in runs[0][1:]], mean[metric], label=method, **look)
            against.plot(mean["loss"], mean[metric], **look)
        over.set(title=f"{label} of the training loss", xlabel="gradient evaluations", yscale="log")
        against.set(title=f"{label} over the training loss", xlabel="training loss", xscale="log", yscale="log")
        against.invert_xaxis()
        for axis in (over.yaxis, against.xaxis, against.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        names = [m for m in METHODS if m != "AdamW"]
        for view, shift, fill in (("gradients", -0.14, "white"), ("loss", 0.14, None)):
            for i, (colour, name) in enumerate(zip(COLOURS[1:], names, strict=False)):
                found = changes[metric, view][name]
                if found.low is not None and found.high is not None:
                    dots.plot([found.low, found.high], [i + shift] * 2, color=colour, linewidth=1.2)
                dots.plot([found.mean], [i + shift], "o", markerfacecolor=fill or colour, color=colour, markersize=5.5)
        dots.axvline(0, color=INK, linewidth=0.8)
        dots.set_yticks(range(len(names)), labels=names)
        dots.invert_yaxis()
        dots.set(title=f"{label} against AdamW's, %", xlabel="hollow: equal gradients; full: equal loss")
        dots.set_xlim(max(-105.0, dots.get_xlim()[0]), min(dots.get_xlim()[1], 320.0))
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return picture
