"""The drift from the start as a trial writes it: as metrics, and as a file of layers."""

from __future__ import annotations

from mooring.finetune.files import csv_text
from mooring.measure.distance import Drift


def metrics(found: Drift) -> dict[str, float]:
    """The drift of the model as one vector."""
    return {"drift/l2": found.total.distance, "drift/relative": found.total.relative}


def to_csv(found: Drift) -> str:
    """One row per parameter, with a header."""
    columns = ("name", "numel", "drift_l2", "drift_relative", "norm0", "drift_angle")
    rows = ((row.name, row.size, row.distance, row.relative, row.anchor_norm, row.angle) for row in found.layers)
    return csv_text(columns, (dict(zip(columns, row, strict=True)) for row in rows))
