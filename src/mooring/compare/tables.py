"""The tables of a comparison as text cells: one model for the terminal, the page and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from mooring.compare import metrics
from mooring.compare.config import ZERO_SHOT
from mooring.compare.metrics import Metric
from mooring.compare.results import Results
from mooring.compare.statistics import Comparison, Summary, compare_paired, separated_best, summarise

_ARROWS = {"+": "▲", metrics.MINUS: "▼"}
Tone = Literal["better", "worse", "different", ""]


@dataclass(frozen=True)
class Cell:
    """One method on one metric.

    Attributes:
        mean: the mean over seeds (the median for costs), as printed.
        difference: the paired difference to the baseline, signed; empty for the baseline itself.
        interval: the difference's 95 % interval, as ``[low, high]``; empty below two pairs.
        ratio: for costs, the ratio to the baseline's median, as ``×1.04``.
        tone: what the difference says, if it is resolved.
        best: the difference to every other method is resolved, in this one's favour.
        resolved: the difference is resolved.
    """

    mean: str
    difference: str = ""
    interval: str = ""
    ratio: str = ""
    tone: Tone = ""
    best: bool = False

    @property
    def resolved(self) -> bool:
        """Whether the difference to the baseline may be claimed."""
        return self.tone != ""

    @property
    def arrow(self) -> str:
        """Where a resolved difference points; nothing if it rounds to nothing."""
        return _ARROWS.get(self.difference[:1], "") if self.resolved else ""


@dataclass(frozen=True)
class Row:
    """One method, or the untouched start."""

    label: str
    role: Literal["reference", "baseline", "method"]
    finished: int
    planned: int
    failed: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows of methods, columns of metrics."""

    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]


def headline_metrics(results: Results) -> tuple[Metric, ...]:
    """The columns everybody reads first."""
    # Where methods take different numbers of steps, a step's time says little.
    time = metrics.STEP if results.config.compare.budget == "steps" else metrics.TRAIN_SECONDS
    wanted = [metrics.ID, metrics.OOD, metrics.RETENTION, metrics.DRIFT, time]
    if results.primary in (metrics.ID_LOSS, metrics.OOD_LOSS):
        wanted = [metrics.ID_LOSS, metrics.OOD_LOSS, *wanted]
    if unequal_gradients(results):
        wanted.append(metrics.GRADIENTS)
    return tuple(metric for metric in wanted if results.has(metric))


def unequal_gradients(results: Results) -> bool:
    """Whether the finished trials differ in how many gradients they evaluated."""
    return len({value for by_seed in results.values(metrics.GRADIENTS).values() for value in by_seed.values()}) > 1


def shift_metrics(results: Results) -> tuple[Metric, ...]:
    """A column for every OOD kind."""
    return tuple(metrics.shift(kind) for kind in results.kinds)


def build_table(results: Results, columns: Sequence[Metric]) -> Table:
    """Means over the finished seeds, with paired differences to the baseline."""
    values = {metric: results.values(metric) for metric in columns}
    comparisons = {metric: compare_paired(values[metric], results.baseline) for metric in columns}
    best = {metric: best_method(results, metric) for metric in columns}
    rows = []
    if results.zero_shot:
        cells = tuple(Cell(_mean(metric, results.zero_shot_values(metric))) for metric in columns)
        rows.append(Row(ZERO_SHOT, "reference", len(results.zero_shot), len(results.config.seeds), 0, cells))
    for label in results.labels:
        trials = [trial for trial in results.trials if trial.method == label]
        made = tuple(
            _cell(metric, values[metric], label, results.baseline, comparisons[metric].get(label), best[metric])
            for metric in columns
        )
        statuses = [trial.status for trial in trials]
        role: Literal["baseline", "method"] = "baseline" if label == results.baseline else "method"
        rows.append(Row(label, role, statuses.count("done"), len(trials), statuses.count("failed"), made))
    return Table(tuple(columns), tuple(rows))


def best_method(results: Results, metric: Metric) -> str | None:
    """The method that beats every other on a metric, if the seeds can say so."""
    if metric.better is None:
        return None
    return separated_best(results.values(metric), higher_is_better=metric.better == "higher")


def _mean(metric: Metric, by_seed: dict[int, float]) -> str:
    if not by_seed:
        return "–"
    values = list(by_seed.values())
    # One slow step of the machine moves a mean of times, not their median.
    return metric.show(median(values) if metric.is_cost else summarise(values).mean)


def _cell(
    metric: Metric,
    values: dict[str, dict[int, float]],
    label: str,
    baseline: str,
    comparison: Comparison | None,
    best: str | None,
) -> Cell:
    mean = _mean(metric, values[label])
    if metric.is_cost:
        return Cell(mean, ratio=_ratio(values[label], values[baseline]))
    if comparison is None or math.isnan(comparison.difference.mean):
        return Cell(mean, best=label == best)
    return Cell(
        mean,
        difference=metric.show_difference(comparison.difference.mean),
        interval=show_interval(metric, comparison.difference, signed=True),
        tone=tone_of(metric, comparison),
        best=label == best,
    )


def _ratio(own: dict[int, float], baseline: dict[int, float]) -> str:
    if not own or not baseline:
        return ""
    return f"×{median(own.values()) / median(baseline.values()):.2f}"


def show_interval(metric: Metric, summary: Summary, *, signed: bool) -> str:
    """``[low, high]``, or nothing where there is no interval."""
    if summary.low is None or summary.high is None:
        return ""
    show = metric.show_difference if signed else metric.show
    return f"[{show(summary.low)}, {show(summary.high)}]"


def tone_of(metric: Metric, comparison: Comparison) -> Tone:
    """What a resolved difference means for the method; nothing if it is not resolved."""
    if not comparison.resolved:
        return ""
    if metric.better is None:
        return "different"
    return "better" if (comparison.difference.mean > 0) == (metric.better == "higher") else "worse"


@dataclass(frozen=True)
class CostRow:
    """What one method costs."""

    label: str
    cells: tuple[str, ...]


COST_METRICS = (
    metrics.STEP,
    metrics.UPDATE,
    metrics.TRAIN_SECONDS,
    metrics.GRADIENTS,
    metrics.STATE,
    metrics.PEAK,
)


def cost_table(results: Results) -> Table:
    """Medians of times and memory per method, with ratios to the baseline."""
    columns = tuple(metric for metric in COST_METRICS if results.has(metric))
    rows = []
    for label in results.labels:
        cells = []
        for metric in columns:
            values = results.values(metric)
            own = values[label]
            ratio = _ratio(own, values[results.baseline])
            cells.append(Cell(metric.show(median(own.values())) if own else "–", ratio=ratio))
        done = len(results.values(metrics.STEP)[label])
        role: Literal["baseline", "method"] = "baseline" if label == results.baseline else "method"
        rows.append(Row(label, role, done, len(results.config.seeds), 0, tuple(cells)))
    return Table(columns, tuple(rows))


@dataclass(frozen=True)
class TestRow:
    """One paired comparison with everything that was computed for it."""

    method: str
    metric: str
    n: int
    difference: str
    interval: str
    kind: str
    p: str
    p_adjusted: str
    p_attainable: str
    resolved: bool


def test_rows(results: Results, columns: Sequence[Metric]) -> list[TestRow]:
    """Every paired comparison to the baseline on the given metrics."""
    rows = []
    for metric in columns:
        if metric.is_cost:
            continue
        for method, found in compare_paired(results.values(metric), results.baseline).items():
            rows.append(
                TestRow(
                    method,
                    metric.title,
                    len(found.seeds),
                    metric.show_difference(found.difference.mean),
                    show_interval(metric, found.difference, signed=True),
                    found.difference.interval,
                    show_p(found.p),
                    show_p(found.p_adjusted),
                    show_p(found.p_attainable),
                    found.resolved,
                )
            )
    return rows


def show_p(p: float) -> str:
    """A p-value with two significant digits."""
    if math.isnan(p):
        return "–"
    return f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


@dataclass(frozen=True)
class SpreadRow:
    """One metric's mean, standard deviation and interval for every method."""

    metric: Metric
    cells: tuple[tuple[str, str, str], ...]  # mean, sd, interval; one per method


def spread_rows(results: Results) -> list[SpreadRow]:
    """Mean, standard deviation and own 95 % interval of all accuracies, losses and calibration errors."""
    rows = []
    for key in results.keys:
        metric = describe(key)
        if metric is None:
            continue
        values = results.values(metric)
        cells = []
        for label in results.labels:
            summary = summarise(list(values[label].values()))
            sd = metric.show(summary.sd) if summary.sd is not None else ""
            cells.append((metric.show(summary.mean), sd, show_interval(metric, summary, signed=False)))
        rows.append(SpreadRow(metric, tuple(cells)))
    return rows


def describe(key: str) -> Metric | None:
    """The metric of a key such as ``ood.noise.2/nll``; None for keys that are not about quality or drift."""
    split, _, name = key.rpartition("/")
    first, *rest = split.split(".")
    known = {"id": "ID", "id_val": "ID validation", "ood": "OOD"}
    words = " ".join([known.get(first, first), *(part.replace("_", " ") for part in rest)])
    if split == "drift":
        return Metric(key, f"drift, {name}", f"drift {name}", unit="number", better=None)
    if name in ("accuracy", "ece"):
        better: Literal["higher", "lower"] = "higher" if name == "accuracy" else "lower"
        return Metric(key, f"{words} {name if name == 'accuracy' else 'ECE'}", key, better=better)
    if name in ("nll", "loss"):
        return Metric(key, f"{words} {'NLL' if name == 'nll' else name}", key, unit="number", better="lower")
    return None
