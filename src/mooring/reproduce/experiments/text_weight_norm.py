"""Weight normalisation makes a language model's linear layers scale invariant: what does projection change then?

Heo et al. train Transformer-XL on WikiText-103. With W = g v / ‖v‖ by rows, no output depends on the size of v, and
AdamP gains more than without: perplexity 23.38 → 23.26 plain, 23.96 → 22.77 with weight normalisation, that is -0.5 %
and -5.0 %. Here: a transformer of 81 504 weights from scratch on the characters of Python's language reference, the
text that `mooring compare --task text-characters` fine-tunes on; contiguous pieces of 20 480 characters at its end are
validation and test. Our unit is bits per character; a perplexity per character is 2 to their power.

Each of the four arms has the same search: as many learning rates, the same seeds, bits on the validation text, and
never the seeds that are reported. 250 steps of 32 x 32 characters, cosine schedule; no decay, so that growth is the
steps' own.

Asserted is the mechanism: with weight normalisation, at every learning rate of the search, ‖v‖² grows less under
projection, by three standard errors of the log ratio over the seeds. Bits per character are findings: a difference is
resolved where its 95 % interval, Student's t over paired seeds, excludes 0.
"""

import math
import statistics
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import mooring as mo
from mooring.compare.statistics import summarise
from mooring.finetune.data import Split
from mooring.finetune.seeds import generator, own_global_rng
from mooring.finetune.spec import TrainSpec
from mooring.finetune.tasks.text_characters import CONTEXT, CharTransformer, pieces
from mooring.finetune.tasks.texts import encode, reference
from mooring.reproduce import Check, Outcome, Row, Run
from mooring.reproduce.picture import COLOURS, panels

RATES = (3e-3, 1e-2, 3e-2)
HELD_OUT, BATCH, EVERY, SEARCH = 640, 32, 10, 100  # pieces; pieces; steps between two norms; first seed of the search
ARMS = [(method, normalised) for normalised in (False, True) for method in ("AdamW", "AdamP")]
FORM = {False: "plain", True: "weight norm"}
PUBLISHED = {False: (23.38, 23.26), True: (23.96, 22.77)}  # perplexity under AdamW and AdamP


@cache
def corpus() -> tuple[Tensor, Split, Split]:
    """Characters to train on, then the pieces of validation and test."""
    text = encode(reference())
    length = HELD_OUT * CONTEXT + 1
    return text[: -2 * length].long(), pieces(text[-2 * length :], HELD_OUT), pieces(text[-length:], HELD_OUT)


@torch.no_grad()
def bits(model: CharTransformer, split: Split) -> float:
    """Bits per character."""
    nats = cross_entropy(model(split.inputs).flatten(0, 1), split.labels.flatten())
    return float(nats) / math.log(2)


def trial(method: str, normalised: bool, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """Bits per character after training, and the squared norm of the linear layers' weights (of v) along the way."""
    text, validation, test = corpus()
    with own_global_rng(torch.device("cpu"), "initialisation", seed):
        model = CharTransformer(normalised)
    named = dict(model.named_parameters())
    linear = [p for n, p in named.items() if n.endswith("original1" if normalised else "weight") and p.ndim == 2]
    linear = [p for p in linear if p is not model.characters.weight and p is not model.places.weight]
    optimizer = getattr(mo, method)(model.parameters(), lr=lr, weight_decay=0.0)
    schedule, order = TrainSpec(steps=steps), generator("order", seed)
    norms: list[float] = []
    for step in range(steps):
        if step % EVERY == 0:
            norms.append(sum(float(p.detach().square().sum()) for p in linear))
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.lr_factor(step)
        places = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=order) + torch.arange(CONTEXT)
        optimizer.zero_grad()
        cross_entropy(model(text[places]).flatten(0, 1), text[places + 1].flatten()).backward()
        optimizer.step()
    norms.append(sum(float(p.detach().square().sum()) for p in linear))
    return {"norms": norms, "validation": bits(model, validation), "test": bits(model, test)}


def growth(result: dict[str, Any]) -> float:
    """The factor by which the squared norm grew, less one."""
    return float(result["norms"][-1] / result["norms"][0] - 1)


def run(run: Run) -> Outcome:
    """Search, then the reported seeds, for four arms."""
    steps, seeds, rates = run.pick(100, 250), range(run.pick(3, 6)), run.pick(RATES[:2], RATES)
    searched = range(SEARCH, SEARCH + 2)
    keys = [(*arm, lr, seed, steps) for arm in ARMS for lr in rates for seed in searched]
    search = dict(zip(keys, run.map(trial, keys, "searching"), strict=True))

    def over(arm: tuple[str, bool], lr: float, of: str) -> list[float]:
        return [search[*arm, lr, seed, steps][of] for seed in searched]

    best = {arm: min(rates, key=lambda lr: statistics.fmean(over(arm, lr, "validation"))) for arm in ARMS}
    keys = [(*arm, best[arm], seed, steps) for arm in ARMS for seed in seeds]
    final = dict(zip(keys, run.map(trial, keys, "training"), strict=True))

    checks: list[Check] = []
    for lr in rates:
        grown = [[growth(search[method, True, lr, seed, steps]) for seed in searched] for method in ("AdamP", "AdamW")]
        logs = [math.log(ours / its) for ours, its in zip(*grown)]
        ratio = summarise(logs)
        why = f"below 0 by 3 standard errors over {len(logs)} seeds: a factor of {math.exp(ratio.mean):.3f}"
        figure = f"weight norm: growth of ‖v‖², log of AdamP / AdamW, lr {lr:g}"
        checks.append(Check.below(figure, ratio.mean, -3 * ratio.error, why, "less growth", ratio.error))
    tested = {arm: [final[*arm, best[arm], seed, steps]["test"] for seed in seeds] for arm in ARMS}
    pairs, verdicts = {}, []
    for normalised, (adamw, adamp) in PUBLISHED.items():
        ours, its = tested["AdamP", normalised], tested["AdamW", normalised]
        pairs[normalised] = [a - b for a, b in zip(ours, its)]
        change = summarise([100 * (2**difference - 1) for difference in pairs[normalised]])
        low, high = change.ends
        verdict = "AdamP is better" if high < 0 else "AdamW is better" if low > 0 else "not resolved"
        verdicts.append(f"{FORM[normalised]}: {verdict}")
        figure = f"{FORM[normalised]}: change of the test perplexity by AdamP, %"
        why = f"{verdict}: 95 % interval [{low:+.2f}, {high:+.2f}], {change.n} pairs"
        checks.append(Check.finding(figure, change.mean, 100 * (adamp / adamw - 1), why, change.error))

    picture, (norms, ends, searching, paired) = panels(4, columns=2, width=5.2, height=3.5)
    data: list[Row] = []
    for arm, colour in zip(ARMS, (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3])):
        method, normalised = arm
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": "--" if method == "AdamP" else "-",
            "label": f"{method}, {FORM[normalised]}",
        }
        curves = [search[*arm, rates[-1], seed, steps]["norms"] for seed in searched]
        mean_curve = [statistics.fmean(n / c[0] for n, c in zip(at, curves)) for at in zip(*curves)]
        norms.plot([EVERY * i for i in range(len(mean_curve))], mean_curve, **look)
        ends.plot(rates, [statistics.fmean(1 + growth(search[*arm, lr, s, steps]) for s in searched) for lr in rates],
                  marker="o", markersize=4, **look)  # fmt: skip
        validated = [statistics.fmean(over(arm, lr, "validation")) for lr in rates]
        searching.plot(rates, validated, marker="o", markersize=4, **look)
        searching.plot(best[arm], min(validated), marker="o", markersize=10, fillstyle="none", color=colour)
        data += [
            {"phase": phase, "method": key[0], "form": FORM[key[1]], "lr": key[2], "seed": key[3],
             "growth": growth(result), "validation": result["validation"], "test": result["test"]}
            for phase, results in (("search", search), ("final", final))
            for key, result in results.items() if key[:2] == arm
        ]  # fmt: skip
    title = "‖w‖² (of v with weight norm) over its start"
    norms.set(title=f"{title}, lr {rates[-1]:g}", xlabel="step")
    ends.set(title=f"{title}, at the end", xlabel="learning rate", xscale="log")
    searching.set(title="the search: bits per character on validation", xlabel="learning rate", xscale="log")
    for panel in (ends, searching):
        panel.minorticks_off()
        panel.set_xticks(rates, [f"{lr:g}" for lr in rates])
    ends.legend(frameon=False, handlelength=3.5)
    for i, (normalised, own) in enumerate(pairs.items()):
        colour = COLOURS[3 if normalised else 1]
        paired.plot([i] * len(own), own, "o", color=colour, alpha=0.35, markersize=4)
        mean = summarise(own)
        paired.errorbar([i + 0.12], [mean.mean], yerr=[mean.half], fmt="s", color=colour, capsize=4)
    paired.axhline(0, color=COLOURS[0], linewidth=0.8)
    paired.set_xticks(range(len(pairs)), [FORM[normalised] for normalised in pairs])
    paired.set(title="bits on test, AdamP − AdamW: pairs, mean, 95 %", xlim=(-0.5, len(pairs) - 0.5))
    table = ["| | rate found | validation, bits | test, bits | perplexity per character | growth of ‖w‖² or ‖v‖² |"]
    table += ["|---|---|---|---|---|---|"]
    for arm in ARMS:
        rows = [final[*arm, best[arm], seed, steps] for seed in seeds]
        validation, test = ([row[of] for row in rows] for of in ("validation", "test"))
        cells = [f"{mean.mean:.3f} ± {mean.error:.3f}" for mean in map(summarise, (validation, test))]
        cells += [f"{2 ** statistics.fmean(test):.2f}", f"× {1 + statistics.fmean(map(growth, rows)):.2f}"]
        table.append(f"| {arm[0]}, {FORM[arm[1]]} | {best[arm]:g} | {' | '.join(cells)} |")
    take = (
        f"{'; '.join(verdicts)}. Plain linear layers are not scale invariant, and projection changes their growth "
        "little; with weight normalisation it takes nearly all of it away. The rate was searched for each arm and the "
        "training is short, which leaves growth little room to cost anything."
    )
    return Outcome(checks, {"trials": data}, picture, ["\n".join(table), take])
