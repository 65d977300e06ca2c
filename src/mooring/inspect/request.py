"""What ``mooring inspect`` is asked for, and which measures there are. Importing this does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mooring.finetune.errors import SpecError, suggestion

MEASURES = {
    "drift": "distance from the anchor, per layer",
    "trace": "trace of the Hessian",
    "top": "largest eigenvalues of the Hessian",
    "blocks": "trace of each layer's diagonal block",
    "block-top": "largest eigenvalue of each layer's diagonal block",
    "density": "spectral density of the Hessian",
    "noise": "rise of the loss under noise on the weights",
    "slices": "loss along random directions and the gradient",
    "calibration": "calibration of the predictions",
    "gap": "generalisation gap",
    "bound": "flatness term of a PAC-Bayes bound",
}
_OPTIONAL = ("block-top",)
"""Only where they are named: a Lanczos iteration for every layer."""

SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True)
class Request:
    """The command's options, checked.

    Attributes:
        checkpoint: what is inspected.
        anchor: what its drift is measured from; by default the start of a trial.
        data: what the loss is taken over; by default the training examples of a task.
        test_data: what calibration and the gap are taken on; by default the split ``id`` of a task.
        task: whose model and splits; by default a trial's own.
        model: ``package.module:factory``.
        measures: which, in the order of ``MEASURES``; empty for all that can be had.
        probes: Hutchinson's vectors, and pairs of noise.
        top: how many eigenvalues.
        density: Lanczos steps per probe; 0 leaves the density out.
        sigma: standard deviations of the noise.
        batch_size: of the batches that are cut here.
        max_examples: of each data set.
        device: where it runs.
        seed: of probes, noise, directions, and of the splits of a task that is named.
        output_dir: where to write; None for a folder named by the time.
    """

    checkpoint: Path
    anchor: Path | None = None
    data: str | None = None
    test_data: str | None = None
    task: str | None = None
    model: str | None = None
    measures: tuple[str, ...] = ()
    probes: int = 32
    top: int = 5
    density: int = 40
    sigma: tuple[float, ...] = SIGMAS
    batch_size: int = 256
    max_examples: int = 1000
    device: str = "cpu"
    seed: int = 0
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("probes", 1),
            ("top", 1),
            ("density", 0),
            ("batch_size", 1),
            ("max_examples", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise SpecError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if self.task is not None and self.model is not None:
            raise SpecError("give --task or --model, not both")

    def wants(self, measure: str) -> bool:
        """Whether a measure is asked for, by name or by default."""
        return measure in self.measures if self.measures else measure not in _OPTIONAL

    def names(self, measure: str) -> bool:
        """Whether a measure is asked for by name, so that it is an error if it cannot be had."""
        return measure in self.measures


def parse_measures(text: str | None) -> tuple[str, ...]:
    """``trace,top`` as names, in the order of ``MEASURES``.

    Raises:
        SpecError: for a name that is none of them.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in MEASURES:
            raise SpecError(
                f"unknown measure {name!r}{suggestion(name, MEASURES)}; the measures are {', '.join(MEASURES)}"
            )
    return tuple(name for name in MEASURES if name in names)


def parse_sigmas(text: str | None) -> tuple[float, ...]:
    """``0.001,0.01`` as numbers, ascending.

    Raises:
        SpecError: for what is no finite number above 0.
    """
    if text is None:
        return SIGMAS
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise SpecError(f"--sigma must be numbers above 0 separated by commas, as in 0.001,0.01, got {text!r}")
    return tuple(values)
