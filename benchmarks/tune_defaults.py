"""Choose the default hyper-parameters of the built-in methods on the embedded vision task, with equal effort.

    python benchmarks/tune_defaults.py --output benchmarks/tune_defaults.csv

Every method gets the same number of scrambled Halton points in its two-dimensional space, every point the same seeds.
The choice looks at ID validation alone: the highest mean accuracy over the seeds, ties by the lowest mean loss. The
seeds are none of those that comparisons report (0-9), so the splits differ, though they redraw the same 300 rows; each
of the five starts comes up once.
Its outcome is kept in `benchmarks/tune_defaults.csv`; the defaults in `mooring.finetune.methods` are its best rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from scipy.stats import qmc

from mooring.finetune.errors import TrialError
from mooring.finetune.methods import METHODS, Range, resolve
from mooring.finetune.spec import TaskSpec, TrainSpec, TrialSpec
from mooring.finetune.tasks import prepare

Point = dict[str, float]


def scaled(unit: float, space: Range) -> float:
    """A number of [0, 1) in the range, rounded to two digits so that the chosen value can be written as it is."""
    if space.log:
        value = math.exp(math.log(space.low) + unit * math.log(space.high / space.low))
    else:
        value = space.low + unit * (space.high - space.low)
    return float(f"{value:.1e}")


def points(method: str, count: int) -> list[Point]:
    """The same points of the unit square for every method, scaled to its space."""
    space = METHODS[method].space
    unit = qmc.Halton(d=len(space), scramble=True, rng=0).random(count)
    return [{name: scaled(u, space[name]) for name, u in zip(space, row, strict=True)} for row in unit]


def validation(train: TrainSpec, method: str, point: Point, seed: int) -> tuple[float, float]:
    """ID validation accuracy and loss after one trial; a failed trial counts as knowing nothing."""
    from mooring.finetune.trial import run_trial

    tuned = resolve({"name": method, **point})
    with tempfile.TemporaryDirectory() as folder:
        try:
            final = run_trial(TrialSpec(method=tuned, task=TaskSpec(), train=train, seed=seed), Path(folder))
        except TrialError:
            return 0.0, math.inf
    return final["id_val/accuracy"], final["id_val/nll"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    tuned = [name for name, info in METHODS.items() if info.tuned]
    parser.add_argument("--methods", nargs="+", default=tuned, choices=list(METHODS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/tune_defaults.csv"))
    args = parser.parse_args()

    prepare(TaskSpec())
    # Evaluated at the start and the end only: the curve is not looked at.
    train = TrainSpec(eval_every=TrainSpec().steps)
    jobs = [
        (method, point, seed) for method in args.methods for point in points(method, args.points) for seed in args.seeds
    ]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(partial(validation, train), *zip(*jobs, strict=True)))

    rows = []
    for first in range(0, len(jobs), len(args.seeds)):
        method, point, _ = jobs[first]
        accuracies, losses = zip(*outcomes[first : first + len(args.seeds)], strict=True)
        rows.append((method, point, statistics.fmean(accuracies), statistics.fmean(losses)))
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "options", "id_val/accuracy", "id_val/nll"])
        writer.writerows([method, json.dumps(point), f"{acc:.4f}", f"{loss:.4f}"] for method, point, acc, loss in rows)

    print(
        "method   chosen                               id_val accuracy  loss   (of the points: median, worst accuracy)"
    )
    for method in args.methods:
        mine = [row for row in rows if row[0] == method]
        _, point, accuracy, loss = max(mine, key=lambda row: (row[2], -row[3]))
        spread = [row[2] for row in mine]
        options = ", ".join(f"{name}={value:g}" for name, value in point.items())
        others = f"({statistics.median(spread):.3f}, {min(spread):.3f})"
        print(f"{method:8} {options:36} {accuracy:.3f}            {loss:.3f}  {others}")


if __name__ == "__main__":
    main()
