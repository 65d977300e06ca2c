"""A comparison's folder with made-up trials: what a real one holds, without torch and in milliseconds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring.compare.config import RunConfig, build_config
from mooring.compare.environment import describe_environment
from mooring.compare.store import RunFolder

KINDS = ("later_rows", "noise", "contrast")
SEVERITIES = ("1", "2", "3")
LAYERS = (("features.0.weight", 288), ("features.0.bias", 32), ("head.weight", 640), ("head.bias", 10))

# What each made-up method does to (ID, OOD, retention, drift), beside what the seed does to all of them.
EFFECTS = {
    "adamw": (0.0, 0.0, 0.0, 5.0),
    "adamp": (0.001, 0.0, -0.01, 4.9),
    "adamspd": (0.0, 0.03, 0.15, 3.2),
    "sgd": (-0.01, -0.02, -0.1, 5.1),
}

MakeRun = Callable[..., RunFolder]


def metrics_of(label: str, seed: int, share: float = 1.0) -> dict[str, float]:
    """The numbers of one method and seed; ``share`` of the way from the start."""
    common = np.random.default_rng([7, seed])
    own = np.random.default_rng([sum(map(ord, label)), seed])
    effect_id, effect_ood, effect_retention, drift = EFFECTS.get(label, (0.0, 0.0, 0.0, 5.0))
    shared_id, shared_ood = common.normal(0, 0.008), common.normal(0, 0.02)

    def accuracy(base: float, effect: float, noise: float) -> float:
        value = base + share * effect + own.normal(0, noise)
        return float(np.clip(np.round(value * 200) / 200, 0.0, 1.0))

    found: dict[str, float] = {}
    for split, base in (("id", 0.96), ("id_val", 0.96), ("train", 1.0)):
        found[f"{split}/accuracy"] = accuracy(base + shared_id, effect_id, 0.004)
        found[f"{split}/nll"] = float(0.1 + own.uniform(0, 0.05))
        found[f"{split}/ece"] = float(own.uniform(0.01, 0.05))
    for kind in KINDS:
        if kind == "later_rows":
            found[f"ood.{kind}/accuracy"] = accuracy(0.88 + shared_ood, effect_ood, 0.006)
            continue
        for severity in SEVERITIES:
            base = 0.9 - 0.05 * int(severity) + shared_ood
            found[f"ood.{kind}.{severity}/accuracy"] = accuracy(base, effect_ood, 0.006)
        found[f"ood.{kind}/accuracy"] = float(np.mean([found[f"ood.{kind}.{s}/accuracy"] for s in SEVERITIES]))
    found["ood/accuracy"] = float(np.mean([found[f"ood.{kind}/accuracy"] for kind in KINDS]))
    found["retention/accuracy"] = accuracy(0.75, effect_retention, 0.02)
    found["drift/l2"] = float(share * (drift + own.normal(0, 0.1)))
    found["drift/relative"] = found["drift/l2"] / 12
    return found


def final_of(label: str, seed: int, steps: int) -> dict[str, float]:
    """What ``final.json`` of one trial holds."""
    rng = np.random.default_rng([99, sum(map(ord, label)), seed])
    step = float(rng.uniform(0.003, 0.005))
    return {
        **metrics_of(label, seed),
        "time/train_s": step * steps,
        "time/step_s": step,
        "time/step_update_s": step / 4,
        "memory/peak_bytes": 400_000_000 + int(rng.integers(0, 10_000_000)),
        "memory/optimizer_state_bytes": 7760,
        "cost/gradient_evaluations": steps,
        "start": seed % 5,
        "steps": steps,
    }


def write_trial(folder: RunFolder, config: RunConfig, label: str, seed: int, final: Mapping[str, Any]) -> Path:
    """Write a finished trial as a real one would."""
    (spec,) = [s for s in config.trials() if (s.method.label, s.seed) == (label, seed)]
    path = folder.clear_trial(spec)
    (path / "spec.json").write_text(spec.model_dump_json())
    (path / "provenance.json").write_text(json.dumps({"start_sha256": f"start {spec.start}"}))
    steps = config.train.steps
    rows = [
        {
            "step": step,
            "seconds": step * final.get("time/step_s", 0.004),
            "lr": 0.001,
            **metrics_of(label, seed, step / steps),
            **({"train/batch_loss": 1.0 / (1 + step)} if step else {}),
        }
        for step in range(0, steps + 1, max(1, steps // 4))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = np.random.default_rng([3, sum(map(ord, label)), seed])
    with (path / "layers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "numel", "drift_l2", "drift_relative", "norm0"])
        for name, numel in LAYERS:
            drift, norm = float(rng.uniform(0.1, 2)), 0.0 if name == "head.bias" else float(rng.uniform(3, 5))
            writer.writerow([name, numel, drift, drift / norm if norm else "nan", norm])
    (path / "final.json").write_text(json.dumps(dict(final)))
    return path


def make_run_in(
    path: Path,
    *,
    methods: Any = "adamw,adamp,adamspd,sgd",
    seeds: Any = 10,
    failed: Sequence[tuple[str, int]] = (),
    missing: Sequence[tuple[str, int]] = (),
    changes: Mapping[tuple[str, int], Mapping[str, float]] | None = None,
    error: str = "RuntimeError: it broke\n\nTraceback (most recent call last):\n  it broke\n",
    zero_shot: bool = True,
    config: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Make a folder of made-up trials.

    Args:
        path: where.
        methods: as in a configuration.
        seeds: as in a configuration.
        failed: pairs of label and seed that failed, with ``error``.
        missing: pairs that were not run.
        changes: pair → numbers that replace the made-up ones.
        error: the content of ``error.txt``.
        zero_shot: whether the start was evaluated.
        config: more sections.
    """
    resolved = build_config({"compare": {"methods": methods, "seeds": seeds}, "train": {"steps": 40}}, config or {})
    folder = RunFolder(path)
    with folder:
        folder.open(resolved, {**describe_environment(), "jobs": 2})
    for spec in resolved.trials():
        pair = (spec.method.label, spec.seed)
        if pair in failed:
            (folder.clear_trial(spec) / "error.txt").write_text(error)
        elif pair not in missing:
            final = {**final_of(*pair, resolved.train.steps), **(changes or {}).get(pair, {})}
            write_trial(folder, resolved, *pair, final)
    if zero_shot:
        for seed in resolved.seeds:
            file = folder.zero_shot_file(seed)
            file.parent.mkdir(exist_ok=True)
            start = metrics_of("zero", seed, 0.0)
            start.update({key: value - 0.3 for key, value in start.items() if key.endswith("accuracy")})
            file.write_text(json.dumps({**start, "retention/accuracy": 0.995, "drift/l2": 0.0}))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run_in` with a name in the test's own folder."""

    def make(name: str = "run", **options: Any) -> RunFolder:
        return make_run_in(tmp_path / name, **options)

    return make
