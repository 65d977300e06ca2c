"""How far training moved the weights from where it started. Buffers (running statistics) are not counted."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerDrift:
    """One parameter: its distance from the start, absolute and relative to the start's norm (nan where that is 0)."""

    name: str
    numel: int
    drift_l2: float
    drift_relative: float
    norm0: float


def layers(model: nn.Module, start: Mapping[str, Tensor]) -> list[LayerDrift]:
    """The drift of every parameter; differences are taken element by element, in float64."""
    rows = []
    for name, parameter in model.named_parameters():
        origin = start[name].double()
        distance = float((parameter.detach().cpu().double() - origin).norm())
        norm0 = float(origin.norm())
        rows.append(LayerDrift(name, parameter.numel(), distance, distance / norm0 if norm0 else math.nan, norm0))
    return rows


def total(rows: list[LayerDrift]) -> dict[str, float]:
    """The drift of the model as one vector."""
    distance = math.hypot(*(row.drift_l2 for row in rows))
    return {"drift/l2": distance, "drift/relative": distance / math.hypot(*(row.norm0 for row in rows))}


def weight_norm(model: nn.Module) -> float:
    """The Euclidean norm of all parameters as one vector."""
    return math.hypot(*(float(parameter.detach().double().norm()) for parameter in model.parameters()))


def to_csv(rows: list[LayerDrift]) -> str:
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(LayerDrift.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
