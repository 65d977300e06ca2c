"""What was measured of a checkpoint, and its files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mooring.finetune.files import write_csv, write_json
from mooring.measure.calibrated import Calibration, Gap
from mooring.measure.distance import Drift
from mooring.measure.estimate import Estimate
from mooring.measure.hessian import Block
from mooring.measure.slices import Slice
from mooring.measure.spectrum import Density
from mooring.measure.stability import Stability

REPORT, LAYERS, PICTURE = "inspect.json", "layers.csv", "inspect.png"


@dataclass
class Results:
    """Everything that was measured; None where it was not.

    Attributes:
        about: where the model, anchor and data came from, and the options.
        loss: over the data.
        size: how many weights.
        layers: name and size of every parameter, in the model's order.
        method: how products with the Hessian were made.
        notes: sentences about what was left out or looks wrong.
    """

    about: dict[str, Any]
    loss: float
    size: int
    layers: list[tuple[str, int]]
    method: str | None = None
    drift: Drift | None = None
    trace: Estimate | None = None
    positive_trace: Estimate | None = None
    top: list[float] | None = None
    blocks: list[Block] | None = None
    density: Density | None = None
    noise: list[Stability] | None = None
    slices: list[Slice] | None = None
    calibration: Calibration | None = None
    calibrated_on: str = ""
    gap: Gap | None = None
    bound: float | None = None
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer with everything that is known of it; what is not is None."""
        drifts = {row.name: row for row in self.drift.layers} if self.drift else {}
        blocks = {block.name: block for block in self.blocks or ()}
        rows = []
        for name, size in self.layers:
            row: dict[str, Any] = {"name": name, "size": size}
            moved, block = drifts.get(name), blocks.get(name)
            for key in ("distance", "relative", "angle", "norm", "anchor_norm"):
                row[key] = None if moved is None else _finite(getattr(moved, key))
            row["trace"] = None if block is None else block.trace.value
            row["trace_error"] = None if block is None else _finite(block.trace.error)
            row["top"] = None if block is None else block.top
            rows.append(row)
        return rows

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: measures that were not taken are left out, numbers that are not finite are null."""
        out: dict[str, Any] = {**self.about, "loss": self.loss, "weights": self.size, "notes": self.notes}
        if self.method is not None:
            out["hessian"] = {
                "method": self.method,
                "trace": self.trace and asdict(self.trace),
                "positive_trace": self.positive_trace and asdict(self.positive_trace),
                "top": self.top,
                "density": self.density and self._density(self.density),
            }
            out["hessian"] = {key: value for key, value in out["hessian"].items() if value is not None}
        if self.drift is not None:
            out["drift"] = {**asdict(self.drift.total), "missing": list(self.drift.missing)}
        if self.noise is not None:
            out["noise"] = [asdict(row) for row in self.noise]
        if self.slices is not None:
            out["slices"] = [asdict(one) for one in self.slices]
        if self.calibration is not None:
            out["calibration"] = {"data": self.calibrated_on, **asdict(self.calibration)}
        if self.gap is not None:
            out["gap"] = asdict(self.gap)
        if self.bound is not None:
            out["flatness_bound"] = self.bound
        out["layers"] = self.rows()
        clean: dict[str, Any] = _clean(out)
        return clean

    @staticmethod
    def _density(density: Density) -> dict[str, Any]:
        return {
            "width": density.width,
            "grid": density.grid.tolist(),
            "density": density.density.tolist(),
            "error": density.error.tolist(),
            "nodes": [x.tolist() for x in density.nodes],
            "weights": [x.tolist() for x in density.weights],
        }

    def write(self, folder: Path) -> None:
        """Write ``inspect.json``, ``layers.csv`` and ``inspect.png``, each atomically."""
        from mooring.inspect.picture import save

        write_json(folder / REPORT, self.as_dict())
        rows = self.rows()
        write_csv(folder / LAYERS, list(rows[0]), rows)
        save(self, folder / PICTURE)


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _clean(x: Any) -> Any:
    if isinstance(x, float):
        return _finite(x)
    if isinstance(x, dict):
        return {key: _clean(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_clean(value) for value in x]
    return x
