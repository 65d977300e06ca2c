"""Everything a comparison's folder holds, read once: what tables, plots and the report are made from."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mooring.compare import metrics
from mooring.compare.config import ZERO_SHOT, RunConfig
from mooring.compare.metrics import Metric
from mooring.compare.store import RunFolder, Status
from mooring.finetune.files import write_csv
from mooring.finetune.tasks.registry import task_info

_FIRST_COLUMNS = ("method", "seed", "status")
_GROUPS = ("id/", "id_val/", "train/", "ood/", "ood.", "retention/", "drift/", "time/", "memory/", "cost/")


@dataclass(frozen=True)
class Trial:
    """One method on one seed: its numbers if it is done, its error if it failed."""

    method: str
    seed: int
    status: Status
    final: dict[str, float]
    error: str
    folder: Path


@dataclass(frozen=True)
class Layer:
    """How far one parameter moved, in one trial."""

    name: str
    numel: int
    drift: float
    norm: float


class Results:
    """The trials of one folder."""

    def __init__(self, folder: RunFolder, config: RunConfig | None = None) -> None:
        self.folder = folder
        self.config = config or folder.stored_config()
        self.environment = folder.environment()
        self.trials = [self._read(spec.method.label, spec.seed, folder.status(spec)) for spec in self.config.trials()]
        self.zero_shot: dict[int, dict[str, float]] = {}
        for seed in self.config.seeds:
            path = folder.zero_shot_file(seed)
            if path.is_file():
                self.zero_shot[seed] = json.loads(path.read_text(encoding="utf-8"))

    def _read(self, label: str, seed: int, status: Status) -> Trial:
        path = self.folder.trial_folder(label, seed)
        final = json.loads((path / "final.json").read_text(encoding="utf-8")) if status == "done" else {}
        error = (path / "error.txt").read_text(encoding="utf-8") if status == "failed" else ""
        return Trial(label, seed, status, final, error, path)

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods, in the order of the configuration."""
        return self.config.labels

    @property
    def baseline(self) -> str:
        """The method the others are compared to."""
        return self.config.baseline

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the finished trials' numbers: what was learned first, what it cost last."""
        found = dict.fromkeys(key for trial in self.trials for key in trial.final)

        def group(key: str) -> int:
            return next((rank for rank, prefix in enumerate(_GROUPS) if key.startswith(prefix)), len(_GROUPS))

        return sorted(found, key=group)

    @cached_property
    def kinds(self) -> list[str]:
        """The OOD kinds that were measured."""
        return metrics.shift_kinds(self.keys)

    def has(self, metric: Metric) -> bool:
        """Whether any finished trial measured it."""
        return metric.key in self.keys

    @cached_property
    def primary(self) -> Metric:
        """What the methods are judged by: accuracy out of distribution, or where none was measured, in distribution.

        Of language models it is the loss.
        """
        if task_info(self.config.task.name).likelihood:
            return metrics.OOD_LOSS if self.has(metrics.OOD_LOSS) else metrics.ID_LOSS
        return metrics.OOD if self.has(metrics.OOD) else metrics.ID

    def values(self, metric: Metric) -> dict[str, dict[int, float]]:
        """Method → seed → value, over the finished trials."""
        found: dict[str, dict[int, float]] = {label: {} for label in self.labels}
        for trial in self.trials:
            if metric.key in trial.final:
                found[trial.method][trial.seed] = trial.final[metric.key]
        return found

    def zero_shot_values(self, metric: Metric) -> dict[int, float]:
        """Seed → value of the untouched start."""
        return {seed: row[metric.key] for seed, row in self.zero_shot.items() if metric.key in row}

    def with_status(self, status: Status) -> list[Trial]:
        """The trials that are done, failed or missing."""
        return [trial for trial in self.trials if trial.status == status]

    def curve(self, trial: Trial) -> list[dict[str, float]]:
        """The evaluations of one trial, in order."""
        lines = (trial.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def layers(self, trial: Trial) -> list[Layer]:
        """The drift of every parameter in one trial, in the model's order."""
        with (trial.folder / "layers.csv").open(newline="", encoding="utf-8") as file:
            return [
                Layer(row["name"], int(row["numel"]), float(row["drift_l2"]), float(row["norm0"]))
                for row in csv.DictReader(file)
            ]

    def pipeline(self, label: str) -> list[str]:
        """What a step of one method does, in order, as its trials recorded it; empty before any has begun."""
        for trial in self.trials:
            path = trial.folder / "provenance.json"
            if trial.method == label and path.is_file():
                stages: list[str] = json.loads(path.read_text(encoding="utf-8")).get("pipeline", [])
                return stages
        return []

    def shared_starts(self) -> bool:
        """Whether all finished trials of a seed recorded the same checksum of the pretrained weights."""
        seen: dict[int, set[str]] = {}
        for trial in self.with_status("done"):
            path = trial.folder / "provenance.json"
            if not path.is_file():
                return False
            checksum = json.loads(path.read_text(encoding="utf-8")).get("start_sha256", "")
            seen.setdefault(trial.seed, set()).add(checksum)
        return all(len(checksums) == 1 and "" not in checksums for checksums in seen.values())

    def write_csv_files(self) -> None:
        """Write ``results.csv``, ``results_long.csv``, ``curves.csv`` and ``layers.csv``."""
        rows = self._rows()
        write_csv(self.folder.path / "results.csv", [*_FIRST_COLUMNS, *self.keys, "error"], rows)
        write_csv(
            self.folder.path / "results_long.csv",
            ["method", "seed", "split", "kind", "severity", "metric", "value"],
            [_long(row, key) for row in rows for key in self.keys if key in row and "/" in key],
        )
        done = self.with_status("done")
        curves = [{"method": t.method, "seed": t.seed, **row} for t in done for row in self.curve(t)]
        columns = list(dict.fromkeys(key for row in curves for key in row))
        write_csv(self.folder.path / "curves.csv", columns or ["method", "seed", "step"], curves)
        write_csv(
            self.folder.path / "layers.csv",
            ["method", "seed", "layer", "numel", "drift_l2", "norm0"],
            [
                {
                    "method": t.method,
                    "seed": t.seed,
                    "layer": layer.name,
                    "numel": layer.numel,
                    "drift_l2": layer.drift,
                    "norm0": layer.norm,
                }
                for t in done
                for layer in self.layers(t)
            ],
        )

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {
                "method": ZERO_SHOT,
                "seed": seed,
                "status": "reference",
                **{key: row[key] for key in self.keys if key in row},
            }
            for seed, row in self.zero_shot.items()
        ]
        for label in self.labels:
            for trial in self.trials:
                if trial.method == label:
                    error = trial.error.partition("\n")[0]
                    rows.append(
                        {"method": label, "seed": trial.seed, "status": trial.status, **trial.final, "error": error}
                    )
        return rows


def _long(row: dict[str, Any], key: str) -> dict[str, Any]:
    split, _, metric = key.rpartition("/")
    split, kind, severity = [*split.split("."), "", ""][:3]
    return {
        "method": row["method"],
        "seed": row["seed"],
        "split": split,
        "kind": kind,
        "severity": severity,
        "metric": metric,
        "value": row[key],
    }
