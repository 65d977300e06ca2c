"""An embedding of fixed length is scale invariant without any normalisation layer: does projection help retrieval?

Heo et al. fine-tune for image retrieval with normalised embeddings; recall@1 is higher under AdamP than under Adam on
four sets with two losses, by 0 to 2.2 points (`PUBLISHED`; the printed gains are rounded on their own). Here:
`digits-retrieval`, a pretrained convolutional net with a cosine softmax over proxies, ten classes to train on and ten
others to search among (docs/compare.md).

Each method has the same search: as many learning rates, the same seeds, recall@1 on validation pictures, and never the
seeds or pictures that are reported. 200 steps, cosine schedule, momentum 0.9; no decay, so that growth is the steps'
own.

Asserted is the mechanism: at every learning rate of the search the convolutions, linear weights and proxies, whose size
no output depends on, grow less under projection, by three standard errors of the log ratio over the seeds. Recall is a
finding: a difference is resolved where its 95 % interval, Student's t over paired seeds, excludes 0.
"""

import math
import statistics
from typing import Any

import mooring as mo
from mooring.compare.statistics import Summary, summarise
from mooring.finetune.evaluate import predict
from mooring.finetune.loop import Progress
from mooring.finetune.loop import train as fine_tune
from mooring.finetune.methods import resolve
from mooring.finetune.metrics import accuracy
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks import prepare
from mooring.finetune.tasks.starts import load_start
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels

TASK = TaskSpec(name="digits-retrieval", starts=4)
RATES = {"AdamW": (1e-4, 3e-4, 1e-3, 3e-3), "SGD": (3e-4, 1e-3, 3e-3, 1e-2)}
PAIRS = {"AdamW": "AdamP", "SGD": "SGDP"}
PUBLISHED = """Recall@1 of Adam → AdamP, ImageNet ResNet50, as the authors print it:

| | CUB | Cars-196 | InShop | SOP |
|---|---|---|---|---|
| triplet | 57.9 → 58.2 | 59.8 → 59.9 | 62.7 → 62.8 | 62.0 → 62.6 |
| ProxyAnchor | 69.3 → 69.5 | 86.7 → 86.9 | 85.2 → 87.4 | 76.5 → 78.0 |"""
SEARCH, EVERY = 100, 10  # the first seed of the search; steps between two norms
SPLITS = {"id_val": "validation", "id": "test", "ood.later_rows": "later rows"}


def trial(method: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """Recall@1 in percent after fine-tuning, and the squared norm of the matrices along the way."""
    start = load_start(TASK, seed)
    options = {"momentum": 0.9} if method.startswith("SGD") else {}
    optimizer = getattr(mo, method)(start.model.parameters(), lr=lr, weight_decay=0.0, **options)
    matrices = [p for p in start.model.parameters() if p.ndim > 1]
    spec = TrialSpec(method=resolve(f"mooring:{method}"), task=TASK, train=TrainSpec(steps=steps), seed=seed)
    norms: list[float] = []

    def between(progress: Progress) -> None:
        if progress.step % EVERY == 0:
            norms.append(sum(float(p.detach().square().sum()) for p in matrices))

    fine_tune(spec, start.task, start.model, optimizer, start.data.train, between)
    found = predict(start.task, start.model, {name: start.data.evaluation[name] for name in SPLITS})
    return {"norms": norms, **{name: 100 * accuracy(prediction) for name, prediction in found.items()}}


def growth(result: dict[str, Any]) -> float:
    """How much the squared norm grew."""
    return float(result["norms"][-1] - result["norms"][0])


def run(run: Run) -> Outcome:
    """Search, then the reported seeds, for two pairs of methods."""
    steps, seeds = run.pick(100, 200), range(run.pick(3, 12))
    searched = range(SEARCH, SEARCH + run.pick(2, 4))
    rates = {base: run.pick(all_[1:3], all_) for base, all_ in RATES.items()}
    rates |= {PAIRS[base]: own for base, own in rates.items()}
    prepare(TASK)
    keys = [(method, lr, seed, steps) for method, own in rates.items() for lr in own for seed in searched]
    search = dict(zip(keys, run.map(trial, keys, "searching"), strict=True))

    def over_seeds(method: str, lr: float, of: str) -> list[float]:
        return [search[method, lr, seed, steps][of] for seed in searched]

    best = {m: max(own, key=lambda lr: statistics.fmean(over_seeds(m, lr, "id_val"))) for m, own in rates.items()}
    keys = [(method, best[method], seed, steps) for method in rates for seed in seeds]
    final = dict(zip(keys, run.map(trial, keys, "fine-tuning"), strict=True))

    checks: list[Check] = []
    ratios: dict[tuple[str, float], float] = {}
    for base, projected in PAIRS.items():
        for lr in rates[base]:
            logs = [
                math.log(growth(search[projected, lr, s, steps]) / growth(search[base, lr, s, steps])) for s in searched
            ]
            ratio = summarise(logs)
            ratios[base, lr] = math.exp(ratio.mean)
            checks.append(
                Check.below(
                    f"growth of ‖w‖², log of {projected} / {base}, lr {lr:g}",
                    ratio.mean,
                    -3 * ratio.error,
                    f"below 0 by 3 standard errors over {len(logs)} seeds: a factor of {ratios[base, lr]:.3f}",
                    "less growth",
                    ratio.error,
                )
            )
    differences: dict[tuple[str, str], tuple[list[float], Summary]] = {}
    resolved = []
    for base, projected in PAIRS.items():
        for split in ("id", "ood.later_rows"):
            pairs = [
                final[projected, best[projected], s, steps][split] - final[base, best[base], s, steps][split]
                for s in seeds
            ]
            change = summarise(pairs)
            differences[base, split] = pairs, change
            low, high = change.ends
            sides = [name for name, yes in ((projected, low > 0), (base, high < 0)) if yes]
            resolved += [f"{side} on {SPLITS[split]}" for side in sides]
            what = f"{sides[0]} is better" if sides else "not resolved"
            checks.append(
                Check.finding(
                    f"recall@1 on {SPLITS[split]}: {projected} − {base}, points",
                    change.mean,
                    "+0.1 … +2.2" if base == "AdamW" else "",
                    f"{what}: 95 % interval [{low:+.2f}, {high:+.2f}], {len(pairs)} pairs",
                    change.error,
                )
            )

    picture, (norms, ends, search_panel, paired) = panels(4, columns=2, width=5.2, height=3.5)
    colours = dict(zip(("AdamW", "AdamP", "SGD", "SGDP"), COLOURS))
    data: list[Row] = []
    for method, own in rates.items():
        look: dict[str, Any] = {
            "color": colours[method],
            "linestyle": "-" if method in PAIRS else "--",
            "label": method,
        }
        curves = [search[method, own[-1], seed, steps]["norms"] for seed in searched]
        mean_curve = [statistics.fmean(at) - statistics.fmean(c[0] for c in curves) for at in zip(*curves)]
        norms.plot([EVERY * i for i in range(1, len(mean_curve))], mean_curve[1:], **look)
        grown = [statistics.fmean(growth(search[method, lr, s, steps]) for s in searched) for lr in own]
        ends.plot(own, grown, marker="o", markersize=4, **look)
        recall = [statistics.fmean(over_seeds(method, lr, "id_val")) for lr in own]
        search_panel.plot(own, recall, marker="o", markersize=4, **look)
        chosen = own.index(best[method])
        search_panel.plot(
            best[method], recall[chosen], marker="o", markersize=10, fillstyle="none", color=colours[method]
        )
        data += [
            {"phase": "search" if results is search else "final", "method": key[0], "lr": key[1], "seed": key[2],
             "growth": growth(result), **{SPLITS[name]: result[name] for name in SPLITS}}
            for results in (search, final) for key, result in results.items() if key[0] == method
        ]  # fmt: skip
    norms.set(title="growth of ‖w‖² at the highest rate of each", xlabel="step", yscale="log")
    ends.set(title="growth of ‖w‖² over the training", xlabel="learning rate", xscale="log", yscale="log")
    search_panel.set(title="the search: recall@1 on validation, %", xlabel="learning rate", xscale="log")
    for i, ((base, _), (pairs, change)) in enumerate(differences.items()):
        paired.plot([i] * len(pairs), pairs, "o", color=colours[PAIRS[base]], alpha=0.35, markersize=4)
        paired.errorbar([i + 0.15], [change.mean], yerr=[change.half], fmt="s", color=colours[PAIRS[base]], capsize=4)
    paired.axhline(0, color=COLOURS[0], linewidth=0.8)
    paired.set_xticks(range(len(differences)), [f"{PAIRS[b]} − {b}\n{SPLITS[s]}" for b, s in differences])
    paired.set(title="recall@1, points: pairs of seeds, mean, 95 %", xlim=(-0.5, len(differences) - 0.5))
    for panel in (ends, search_panel):
        ticks = sorted({lr for own in rates.values() for lr in own})
        panel.minorticks_off()
        panel.set_xticks(ticks, [f"{lr:g}" for lr in ticks])
    ends.legend(frameon=False, handlelength=3.5)
    lines = ["| | rate found | validation | test | later rows | growth of ‖w‖² |", "|---|---|---|---|---|---|"]
    for method in rates:
        rows = [final[method, best[method], s, steps] for s in seeds]
        means = [summarise([row[name] for row in rows]) for name in SPLITS]
        cells = [f"{mean.mean:.1f} ± {mean.error:.1f}" for mean in means]
        lines.append(
            f"| {method} | {best[method]:g} | " + " | ".join(cells) + f" | {statistics.fmean(map(growth, rows)):.3g} |"
        )
    least, most = min(ratios.values()), max(ratios.values())
    take = [
        f"Projection cuts the growth of the scale-invariant weights to {least:.3f} … {most:.3f} of what it was.",
        f"Recall@1 differs: better are {', '.join(resolved)}."
        if resolved
        else "No difference in recall@1 is resolved.",
        "The search looks at recall alone, and at the rates that it finds the weights, whose squared norm starts near",
        "147, grow by a few percent at most, so there is little for projection to give back.",
    ]
    return Outcome(checks, {"trials": data}, picture, ["\n".join(lines), " ".join(take), PUBLISHED])
