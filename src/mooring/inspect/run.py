"""All measures of one checkpoint, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mooring.finetune.errors import SpecError, TrialError
from mooring.finetune.metrics import Prediction
from mooring.inspect.data import loss_of, predictions
from mooring.inspect.request import MEASURES, Request
from mooring.inspect.results import Results
from mooring.inspect.subject import Subject
from mooring.measure.bound import flatness_bound
from mooring.measure.calibrated import calibration, generalization_gap
from mooring.measure.distance import drift
from mooring.measure.estimate import mean_of
from mooring.measure.hessian import Hessian
from mooring.measure.point import Point
from mooring.measure.slices import loss_along
from mooring.measure.stability import noise_stability

Stage = Callable[[str, int | None, int | None], None]
"""Told what is being measured, how much of it is done, and of how much."""

DENSITY_PROBES = 4
LANCZOS_TOLERANCE = 1e-3
_POINTS = 21
_SLICES = (("filter", 0, 0.5), ("filter", 1, 0.5), ("random", 0, 0.5), ("gradient", 0, 0.05))
"""Direction, added to the seed, reach: the loss changes sooner along its gradient."""
_APART = 4  # standard errors


def inspect(request: Request, subject: Subject, stage: Stage) -> Results:
    """Take the measures that a request asks for.

    Raises:
        SpecError: A measure that is named cannot be had.
        TrialError: The loss is not finite.
    """
    for name, there, lack in (
        ("drift", subject.anchor is not None, "an anchor; give --anchor"),
        ("bound", subject.anchor is not None, "an anchor; give --anchor"),
        ("gap", subject.test is not None, "test data; give --test-data"),
    ):
        if request.names(name) and not there:
            raise SpecError(f"the measure {name!r} needs {lack}")
    inspector = _Inspector(request, subject, stage)
    for name in MEASURES:
        take = getattr(inspector, name.replace("-", "_"), None)
        if take is not None and request.wants(name):
            stage(MEASURES[name], None, None)
            take()
    return inspector.finished()


class _Inspector:
    """The measures share the model, the loss and what one has found for another; each method takes one."""

    def __init__(self, request: Request, subject: Subject, stage: Stage) -> None:
        self.request, self.subject, self.stage = request, subject, stage
        self.loss = loss_of(subject.task)
        data = subject.data
        self.where: tuple[Any, Any, Any] = (subject.model, self.loss, data.batches)
        self.sizes = data.sizes
        point = Point(*self.where, self.sizes)
        try:
            value = point.value()
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
            raise SpecError(f"the model cannot take the loss of the data {data.name!r}: {_first(error)}") from error
        if not math.isfinite(value):
            raise TrialError(f"the loss over {data.name!r} is {value}; there is nothing to measure")
        sizes = [p.numel() for p in point.params]
        options = {
            "probes": request.probes,
            "sigma": list(request.sigma),
            "seed": request.seed,
            "batch_size": request.batch_size,
        }
        self.results = Results({**subject.about, "options": options}, value, point.size, list(zip(point.names, sizes)))
        self._hessian: Hessian | None = None
        self._predicted: dict[str, Prediction | None] = {}

    @property
    def hessian(self) -> Hessian:
        """Made when the first measure needs it."""
        if self._hessian is None:
            self._hessian = Hessian(*self.where, self.sizes)
        return self._hessian

    def finished(self) -> Results:
        """The results, with what they say together."""
        results = self.results
        if self._hessian is not None:
            method = self._hessian.method
            results.method = "double_backward" if method == "auto" else method
        if results.noise and results.trace is not None:
            implied, trace = results.noise[0].trace, results.trace
            if abs(implied.value - trace.value) > _APART * math.hypot(implied.error, trace.error):
                results.notes.append(
                    f"Noise of σ = {results.noise[0].sigma:g} implies a trace of {implied.value:.4g}, second "
                    f"derivatives add up to {trace.value:.4g}: kinks of the loss (ReLU, max), which only the "
                    "first sees, terms of higher order, or rounding of the loss."
                )
        return results

    def tell(self, measure: str) -> Callable[[int, int | None], None]:
        return lambda done, total: self.stage(MEASURES[measure], done, total)

    def drift(self) -> None:
        if self.subject.anchor is None:
            return
        try:
            self.results.drift = drift(self.subject.model, self.subject.anchor, skip_missing=True)
        except ValueError as error:
            raise SpecError(f"the anchor does not fit: {error}") from None
        if self.results.drift.missing:
            names = self.results.drift.missing
            self.results.notes.append(f"The anchor has no {', '.join(names[:3])}{' …' if len(names) > 3 else ''}.")

    def trace(self) -> None:
        if self.request.wants("blocks"):
            return  # the blocks add up to it
        self.results.trace = self.hessian.trace(self.request.probes, self.request.seed, self.tell("trace"))

    def top(self) -> None:
        k = min(self.request.top, self.hessian.size - 1)
        if k >= 1:
            tell = self.tell("top")
            self.results.top = self.hessian.top(k, LANCZOS_TOLERANCE, self.request.seed, progress=tell)

    def blocks(self) -> None:
        request, tops = self.request, self.request.wants("block-top")
        rows = self.hessian.quadratic(request.probes, request.seed, self.tell("blocks"))
        if request.wants("trace"):
            self.results.trace = mean_of(rows.sum(1).tolist())
        self.results.blocks = self.hessian.blocks(
            seed=request.seed, top=tops, tolerance=LANCZOS_TOLERANCE, rows=rows, progress=self.tell("block-top")
        )

    def block_top(self) -> None:
        if not self.request.wants("blocks"):
            self.blocks()

    def density(self) -> None:
        if self.request.density == 0:
            return
        probes = min(DENSITY_PROBES, self.request.probes)
        found = self.hessian.density(self.request.density, probes, self.request.seed, progress=self.tell("density"))
        self.results.density = found
        self.results.positive_trace = found.trace_of(lambda x: x.clamp(min=0))

    def noise(self) -> None:
        request = self.request
        draws = max(2, request.probes // 2)
        self.results.noise = noise_stability(
            *self.where, request.sigma, draws, sizes=self.sizes, seed=request.seed, progress=self.tell("noise")
        )

    def slices(self) -> None:
        found = []
        for i, (kind, shift, reach) in enumerate(_SLICES):

            def tell(done: int, _: int | None, before: int = i * _POINTS) -> None:
                self.stage(MEASURES["slices"], before + done, len(_SLICES) * _POINTS)

            try:
                found.append(
                    loss_along(
                        *self.where,
                        kind,
                        reach=reach,
                        points=_POINTS,
                        sizes=self.sizes,
                        seed=self.request.seed + shift,
                        progress=tell,
                    )
                )
            except ValueError as error:
                self.results.notes.append(f"No slice along the {kind}: {error}.")
        self.results.slices = found

    def calibration(self) -> None:
        name = self._test_name()
        predicted = self._predictions(name)
        if predicted is not None:
            self.results.calibration = calibration(predicted.logits, predicted.labels)
            self.results.calibrated_on = name
        elif self.request.names("calibration"):
            raise SpecError(f"the measure 'calibration' needs logits and integer labels, which {name!r} does not give")

    def gap(self) -> None:
        if self.subject.test is None:
            return
        train, test = self._predictions(self.subject.data.name), self._predictions(self.subject.test.name)
        if train is not None and test is not None and min(len(train.labels), len(test.labels)) > 1:
            self.results.gap = generalization_gap((train.logits, train.labels), (test.logits, test.labels))

    def bound(self) -> None:
        if self.subject.anchor is None:
            return
        results = self.results
        if results.drift is None:
            self.drift()
        if results.trace is None and results.positive_trace is None:
            results.trace = self.hessian.trace(self.request.probes, self.request.seed, self.tell("bound"))
        trace = results.positive_trace or results.trace
        assert results.drift is not None and trace is not None
        results.bound = flatness_bound(trace.value, results.drift.total.distance, self.subject.trained_on)

    def _test_name(self) -> str:
        return (self.subject.test or self.subject.data).name

    def _predictions(self, name: str) -> Prediction | None:
        if name not in self._predicted:
            data = self.subject.data if name == self.subject.data.name else self.subject.test
            assert data is not None
            self._predicted[name] = predictions(self.subject.task, self.subject.model, data)
        return self._predicted[name]


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
