"""Which figures a report has, in the order of its sections."""

from __future__ import annotations

from pathlib import Path

from mooring.compare import metrics
from mooring.compare.metrics import Metric
from mooring.compare.plots.curves import Across, learning_curve, read_curves
from mooring.compare.plots.heat import drift_by_layer, shifts_by_severity
from mooring.compare.plots.intervals import difference_intervals
from mooring.compare.plots.scatter import accuracy_scatter
from mooring.compare.plots.style import style
from mooring.compare.plots.svg import Panel
from mooring.compare.results import Results
from mooring.compare.tables import unequal_gradients

BATCH_LOSS = Metric("train/batch_loss", "training loss", "loss", unit="number", better="lower")


AXES: tuple[Across, ...] = ("step", "seconds")


def draw(results: Results) -> dict[str, list[Panel]]:
    """Section → its figures; a section without a figure has an empty list."""
    curves = read_curves(results)
    shift_scatters: list[Panel | None] = [
        accuracy_scatter(results, metrics.ID, metric, f"id_{_stem(metric)}", with_start=False)
        for metric in map(metrics.shift, results.kinds)
    ]
    sections: dict[str, list[Panel | None]] = {
        "differences": [
            difference_intervals(results, metric, f"difference_{_stem(metric)}")
            for metric in dict.fromkeys((results.primary, metrics.ID, metrics.OOD, metrics.RETENTION, metrics.DRIFT))
            if results.has(metric)
        ],
        "scatter": [
            accuracy_scatter(results, metrics.ID, metrics.OOD, "id_ood"),
            accuracy_scatter(results, metrics.ID, metrics.OOD, "id_ood_methods", with_start=False),
        ]
        if results.has(metrics.OOD)
        else [],
        "shifts": [shifts_by_severity(results, "shifts"), *shift_scatters[:1]] if results.kinds else [],
        "shift_scatter": shift_scatters[1:],
        "retention": [
            accuracy_scatter(results, metrics.ID, metrics.RETENTION, "id_retention"),
            learning_curve(results, curves, metrics.RETENTION, "step", "curve_retention_step"),
        ]
        if results.has(metrics.RETENTION)
        else [],
        "curves": [
            learning_curve(results, curves, metric, x, f"curve_{_stem(metric)}_{x}")
            for metric in dict.fromkeys((results.primary, metrics.OOD, metrics.ID))
            for x in (AXES if not unequal_gradients(results) else ("step", "gradients", "seconds"))
        ]
        + [learning_curve(results, curves, BATCH_LOSS, "step", "curve_loss_step")],
        "drift": [
            drift_by_layer(results, "drift_by_layer"),
            learning_curve(results, curves, metrics.DRIFT, "step", "curve_drift_step"),
        ],
    }
    return {name: [panel for panel in panels if panel is not None] for name, panels in sections.items()}


def render(results: Results, folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Draw everything, write PNG and PDF to ``folder``, and return name and inline SVG of each figure by section."""
    if not results.with_status("done"):
        return {}
    with style():
        sections = draw(results)
        for panels in sections.values():
            for panel in panels:
                panel.save(folder)
        return {
            name: [(panel.name, panel.inline()) for panel in panels]
            for name, panels in sections.items()
        }  # fmt: skip


def _stem(metric: Metric) -> str:
    known = {
        metrics.ID: "id",
        metrics.OOD: "ood",
        metrics.ID_LOSS: "id_loss",
        metrics.OOD_LOSS: "ood_loss",
        metrics.DRIFT: "drift",
        BATCH_LOSS: "loss",
    }
    return known.get(metric, metric.key.split("/")[0].removeprefix("ood."))
