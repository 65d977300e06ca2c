"""The results as plain data, for ``--json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mooring.compare import metrics
from mooring.compare.equal_cost import View, views
from mooring.compare.results import Results
from mooring.compare.statistics import Comparison, compare_paired, summarise
from mooring.compare.tables import headline_metrics, shift_metrics
from mooring.compare.verdict import judge


def summary(results: Results) -> dict[str, Any]:
    """Means, paired differences and the verdict; accuracies as fractions."""
    columns = [*headline_metrics(results), *shift_metrics(results)]
    comparisons = {
        metric.key: compare_paired(results.values(metric), results.baseline) for metric in columns if not metric.is_cost
    }
    verdict = judge(results)
    written = {method.label: str(method) for method in results.config.compare.methods}
    return {
        "folder": str(results.folder.path),
        "task": results.config.task.name,
        "seeds": list(results.config.seeds),
        "baseline": results.baseline,
        "verdict": verdict.sentence,
        "further": {point.topic: point.text for point in verdict.points},
        "warnings": list(verdict.warnings),
        "budget": results.config.compare.budget,
        "equal_cost": {view.cost: _view(view) for view in views(results)},
        "zero_shot": {
            metric.key: _clean(summarise(list(results.zero_shot_values(metric).values())))
            for metric in columns
            if results.zero_shot_values(metric)
        },
        "methods": {
            label: {
                "optimizer": written[label],
                "pipeline": results.pipeline(label),
                "finished": len(results.values(metrics.ID)[label]),
                "failed": [t.seed for t in results.with_status("failed") if t.method == label],
                "metrics": {
                    metric.key: _clean(summarise(list(results.values(metric)[label].values()))) for metric in columns
                },
                "differences": {key: _comparison(found[label]) for key, found in comparisons.items() if label in found},
            }
            for label in results.labels
        },
    }


def _view(view: View) -> dict[str, Any]:
    columns = [metric.key for metric in view.table.metrics]
    return {
        row.label: dict(zip(columns, (cell.mean for cell in row.cells), strict=True))
        for row in view.table.rows
        if row.role != "reference"
    }


def _clean(found: Any) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in asdict(found).items()}  # NaN is not JSON


def _comparison(found: Comparison) -> dict[str, Any]:
    difference = _clean(found.difference)
    return {
        **{f"difference_{key}" if key in ("mean", "sd") else key: value for key, value in difference.items()},
        "p": None if found.p != found.p else found.p,
        "p_adjusted": found.p_adjusted,
        "p_attainable": found.p_attainable,
        "resolved": found.resolved,
    }
