"""NSO and the sharpness-aware family against their base on real handwritten digits, at equal gradient evaluations.

    python benchmarks/nso_digits.py --output benchmarks/nso_digits

Every method fine-tunes the embedded task's pretrained network on 100 handwritten digits around the same AdamW, with the
same budget of gradient evaluations: a method that needs q of them per step takes 1/q of the base's steps, on the same
stretched schedule. Its own size (sigma, rho) is a conventional value and was not tuned, nor was the learning rate,
which is the one that was tuned for AdamW alone at one gradient per step; read the outcome accordingly.

Measured at several points along training, on the training examples: the trace of the Hessian (Hutchinson, 16 probes,
the same for all) and its largest eigenvalue; at the end: accuracy in and out of distribution, and the generalisation
gap, test loss less training loss. Differences are paired by seed; intervals are 95 %, p-values exact sign-flip tests,
adjusted after Holm. Writes a CSV of all values, a table, and a picture.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

import mooring as mo
from mooring.compare.statistics import compare_paired, summarise
from mooring.finetune.data import Split, batches
from mooring.finetune.seeds import generator, own_global_rng, threads
from mooring.finetune.spec import TaskSpec, TrainSpec
from mooring.finetune.tasks import prepare
from mooring.finetune.tasks.starts import load_start
from mooring.measure import Hessian

Base = torch.optim.Optimizer
METHODS: dict[str, Callable[[Base, nn.Module, int], Base]] = {
    "AdamW": lambda base, model, seed: base,
    "NSO, k=1": lambda base, model, seed: mo.NSO(base, sigma=0.01, k=1, seed=seed, model=model),
    "NSO, k=2": lambda base, model, seed: mo.NSO(base, sigma=0.01, k=2, seed=seed, model=model),
    "one point, 2 draws": lambda base, model, seed: mo.NSO(
        base, sigma=0.01, k=2, two_point=False, seed=seed, model=model
    ),
    "SAM": lambda base, model, seed: mo.SAM(base, rho=0.05, model=model),
    "USAM": lambda base, model, seed: mo.USAM(base, rho=0.05, model=model),
    "ASAM": lambda base, model, seed: mo.ASAM(base, rho=0.5, model=model),
    "RSAM": lambda base, model, seed: mo.RSAM(base, rho=0.05, sigma=0.01, seed=seed, model=model),
}
BASELINE = "AdamW"
BUDGET, POINTS, PROBES = 600, 3, 16
METRICS = {
    "id": "ID accuracy, %",
    "ood": "later rows, %",
    "gap": "test less training loss",
    "trace": "tr H",
    "top": "λ max",
}


def accuracy(model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy in percent and mean loss, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        logits = model(split.inputs)
    model.train()
    return float((logits.argmax(1) == split.labels).double().mean() * 100), float(cross_entropy(logits, split.labels))


def curvature(model: nn.Module, train: Split) -> dict[str, float]:
    hessian = Hessian(model, lambda m, s: cross_entropy(m(s.inputs), s.labels), [train])
    trace = hessian.trace(PROBES)
    return {"trace": trace.value, "trace_error": trace.error, "top": hessian.top(1, tolerance=2e-2)[0]}


def trial(job: tuple[str, int, int]) -> list[dict[str, Any]]:
    """One method, one seed: a row for every point along training, the last with the final scores."""
    name, seed, budget = job
    with threads(1), own_global_rng(torch.device("cpu"), "trial", seed):
        start = load_start(TaskSpec(), seed)
        model, data = start.model, start.data
        optimizer = METHODS[name](mo.AdamW(model.named_parameters(), lr=9.5e-4, weight_decay=4.9e-4), model, seed)
        perturbed = optimizer if hasattr(optimizer, "passes") else None
        cost = perturbed.gradients_per_step if perturbed is not None else 1
        spec = TrainSpec(steps=budget // cost)
        rows: list[dict[str, Any]] = []
        model.train()

        def note(step: int) -> None:
            rows.append({"method": name, "seed": seed, "gradients": step * cost, **curvature(model, data.train)})

        note(0)
        order = batches(len(data.train), spec.batch_size, spec.steps, generator("order", seed))
        for step, index in enumerate(order, start=1):
            batch = data.train.rows(index)
            for group in optimizer.param_groups:
                group["lr"] = 9.5e-4 * spec.lr_factor(step - 1)
            optimizer.zero_grad()
            if perturbed is None:
                cross_entropy(model(batch.inputs), batch.labels).backward()
            else:
                for pass_ in perturbed.passes():
                    with pass_:
                        pass_.backward(cross_entropy(model(batch.inputs), batch.labels))
            optimizer.step()
            if step * POINTS // spec.steps > (step - 1) * POINTS // spec.steps:
                note(step)
        scored = {key: accuracy(model, data.evaluation[split]) for key, split in SPLITS.items()}
        train_loss = accuracy(model, data.train)[1]
        rows[-1] |= {"id": scored["id"][0], "ood": scored["ood"][0], "gap": scored["id"][1] - train_loss}
    return rows


SPLITS = {"id": "id", "ood": "ood.later_rows"}


def table(final: dict[str, dict[str, dict[int, float]]]) -> str:
    """Markdown: mean, and the paired difference to the base with its interval; p where it is below 0.05."""
    lines = ["| method | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name in METHODS:
        cells = []
        for metric in METRICS:
            values = final[metric]
            mean = summarise(list(values[name].values())).mean
            cell = f"{mean:.4g}"
            if name != BASELINE:
                found = compare_paired(values, BASELINE)[name]
                low, high = found.difference.low, found.difference.high
                cell += f" ({found.difference.mean:+.3g}, [{low:.3g}, {high:.3g}]"
                cell += f", p {found.p_adjusted:.3g})" if found.p_adjusted < 0.05 else ")"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Trace and largest eigenvalue along training, means over seeds with their standard errors."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    colours = dict(zip(METHODS, mpl.colormaps["tab10"].colors, strict=False))  # type: ignore[attr-defined]
    for axes, metric in zip(figure.subplots(1, 2), ("trace", "top"), strict=True):
        for name in METHODS:
            points: dict[int, list[float]] = {}
            for row in rows:
                if row["method"] == name:
                    points.setdefault(row["gradients"], []).append(row[metric])
            x = sorted(points)
            means = [sum(points[g]) / len(points[g]) for g in x]
            errors = [torch.tensor(points[g]).std().item() / len(points[g]) ** 0.5 for g in x]
            axes.errorbar(x, means, errors, label=name, color=colours[name], capsize=2, lw=1.6)
        axes.set(title=f"{METRICS[metric]} of the training loss", xlabel="gradient evaluations", yscale="log")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right", frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="path without suffix; .csv, .md, .png are written")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two seeds, a tenth of the budget")
    arguments = parser.parse_args()
    seeds, budget = (2, BUDGET // 10) if arguments.quick else (arguments.seeds, BUDGET)
    prepare(TaskSpec())
    jobs = [(name, seed, budget) for seed in range(seeds) for name in METHODS]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done, found in enumerate(pool.map(trial, jobs), start=1):
            rows += found
            print(f"\r{done}/{len(jobs)} trials", end="", flush=True)
    print()
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    last = [row for row in rows if "id" in row]
    final = {
        metric: {name: {r["seed"]: r[metric] for r in last if r["method"] == name} for name in METHODS}
        for metric in METRICS
    }
    text = table(final)
    arguments.output.with_suffix(".md").write_text(text + "\n")
    print(text)
    picture(rows, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
