"""What was measured, as data, and its files: JSON with everything, CSV and Markdown of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mooring.bench.statistics import Interval, Verdict
from mooring.finetune.files import write_csv, write_json

Status = Literal["timed", "failed", "left out"]
CURVES = ("size", "rows", "tensors", "threads")


@dataclass(frozen=True)
class Size:
    """What was stepped on: a title, its counts, and what was changed to fit the machine."""

    title: str
    tensors: int
    elements: int
    note: str = ""

    def __str__(self) -> str:
        """All of it in a line."""
        note = f"; {self.note}" if self.note else ""
        return f"{self.title}: {self.tensors:,} tensors, {self.elements:,} parameters{note}"


@dataclass(frozen=True)
class Row:
    """One method on the shapes of one model.

    Attributes:
        shapes: the model's name.
        method: the row's id in the table of methods.
        package: whose it is.
        backend: which kernels served it; empty for what is not ours.
        status: ``failed`` and ``left out`` rows were not timed.
        why: the reason for that.
        deviation: of its step from the float64 reference, relative.
        allowed: what rounding explains.
        verified: how many tensors were compared.
        branch: the shares of elements that its rules acted on, by telemetry, before and after it was timed.
        ratio: time per step over fused AdamW's, pair by pair.
        seconds: the median step.
        baseline: fused AdamW's, in the same pairs.
        declared: bytes per element that the method has to move on this branch.
        most: bytes per element that ``mooring.cost`` declares for the recipe.
        target: the most that the ratio should be; None for what is not ours.
        met: whether it is.
        bandwidth: declared bytes per second over those of a copy in the same run.
        temporaries: bytes taken at the peak of a step, beside weights, gradients and state.
    """

    shapes: str
    method: str
    package: str
    backend: str
    status: Status
    why: str = ""
    deviation: float | None = None
    allowed: float | None = None
    verified: int = 0
    branch: dict[str, float] = field(default_factory=dict)
    ratio: Interval | None = None
    seconds: float | None = None
    baseline: float | None = None
    declared: float | None = None
    most: float | None = None
    target: float | None = None
    met: Verdict | None = None
    bandwidth: float | None = None
    temporaries: int | None = None


@dataclass(frozen=True)
class Launch:
    """What a step costs where there is nothing to compute.

    Attributes:
        step: seconds for one tensor of one element.
        per_tensor: seconds for many such tensors (``about["launch_tensors"]``), over their number.
        step_ratio: the first over fused AdamW's.
        tensor_ratio: the second over fused AdamW's.
    """

    method: str
    backend: str
    step: float
    per_tensor: float
    step_ratio: Interval
    tensor_ratio: Interval


@dataclass(frozen=True)
class Between:
    """What a step costs right after a matrix product, as in training.

    Attributes:
        seconds: the median.
        ratio: over fused AdamW's, after a product as well.
        alone: over the same step with nothing before it.
    """

    shapes: str
    method: str
    backend: str
    seconds: float
    ratio: Interval
    alone: Interval


@dataclass(frozen=True)
class Perturbation:
    """What a method that moves the weights adds to its passes.

    Attributes:
        what: what was timed.
        against: what ran in turn with it.
        seconds: the median.
        ratio: over the other.
        why: the reason why it was not timed.
    """

    shapes: str
    what: str
    against: str
    backend: str
    seconds: float | None
    ratio: Interval | None
    why: str = ""


@dataclass(frozen=True)
class Point:
    """One point of a growth curve: a method at one size.

    Attributes:
        curve: what grows: ``size``, ``rows``, ``tensors`` or ``threads``.
        x: elements, rows, tensors or threads.
        seconds: the median step.
        ratio: over fused AdamW at the same size.
    """

    curve: str
    x: int
    method: str
    backend: str
    seconds: float
    ratio: Interval


@dataclass
class Results:
    """One run of the bench; rows are added as they are measured.

    Attributes:
        about: what it ran on and how: versions, processor, threads, pairs, bandwidths.
        models: name -> what its shapes are.
        left_out: what was not run at all, and why.
    """

    about: dict[str, Any]
    models: dict[str, Size] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    between: list[Between] = field(default_factory=list)
    perturbations: list[Perturbation] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    interrupted: bool = False

    @property
    def wrong(self) -> list[Row]:
        """Rows of ours whose step was not the right one."""
        return [row for row in self.rows if row.status == "failed" and row.package == "mooring"]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write everything but the pictures.

        Raises:
            OSError: where the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "bench.json", self.as_dict())
        for name, found in (
            ("steps", self.rows), ("launches", self.launches), ("between", self.between),
            ("perturbations", self.perturbations), ("growth", self.points),
        ):  # fmt: skip
            if found:
                flat = [_flat(asdict(row)) for row in found]
                columns = list(dict.fromkeys(key for row in flat for key in row))
                write_csv(folder / f"{name}.csv", columns, flat)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            out.update({f"{key}_{name}": inner for name, inner in value.items()})
        else:
            out[key] = value
    return out
