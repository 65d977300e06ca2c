"""What the seeds allow to be said, in sentences. Nothing is claimed that the statistics do not resolve."""

from __future__ import annotations

from dataclasses import dataclass

from mooring.compare import metrics
from mooring.compare.metrics import Metric
from mooring.compare.results import Results
from mooring.compare.statistics import ALPHA, Comparison, compare_paired, smallest_p
from mooring.compare.tables import best_method, show_interval, show_p


@dataclass(frozen=True)
class Verdict:
    """One sentence about OOD accuracy, and what else is resolved or stands in the way.

    Attributes:
        sentence: the answer.
        points: one sentence per further metric.
        warnings: what weakens the numbers (failed or missing trials, too few seeds).
    """

    sentence: str
    points: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(results: Results) -> Verdict:
    """Judge a comparison by its OOD accuracy."""
    warnings = tuple(_warnings(results))
    others = [label for label in results.labels if label != results.baseline]
    if not results.values(metrics.OOD)[results.baseline]:
        return Verdict(f"Nothing can be compared: the baseline {results.baseline} has no finished trial.", (), warnings)
    if not others:
        return Verdict(f"Nothing is compared: {results.baseline} is the only method.", (), warnings)
    paired = compare_paired(results.values(metrics.OOD), results.baseline)
    if not paired:
        return Verdict(
            f"Nothing can be compared: no method shares a finished seed with {results.baseline}.", (), warnings
        )
    attainable = min(comparison.p_attainable for comparison in paired.values())
    if attainable > ALPHA:
        return Verdict(
            f"No difference to {results.baseline} can be resolved with {_seeds_text(paired)}: the smallest adjusted "
            f"p-value that they can give is {show_p(attainable)}, and it takes {_enough(len(paired))} seeds to get "
            f"below {ALPHA}.",
            (),
            warnings,
        )
    points = tuple(
        _sentence(results, metric) for metric in (metrics.ID, metrics.RETENTION, metrics.DRIFT) if results.has(metric)
    )
    return Verdict(_sentence(results, metrics.OOD), points, warnings)


def _sentence(results: Results, metric: Metric) -> str:
    found = compare_paired(results.values(metric), results.baseline)
    pairs = _seeds_text(found)
    resolved = {method: comparison for method, comparison in found.items() if comparison.resolved}
    if not resolved:
        return f"No difference in {metric.title} to {results.baseline} is resolved with {pairs}."
    up = {method: comparison for method, comparison in resolved.items() if comparison.difference.mean > 0}
    down = {method: comparison for method, comparison in resolved.items() if method not in up}
    parts = []
    if up:
        parts.append(f"higher with {_list(metric, up)}")
    if down:
        parts.append(f"lower with {_list(metric, down)}")
    text = f"{_capital(metric.title)} is {' and '.join(parts)} than with {results.baseline} ({pairs})"
    rest = [method for method in found if method not in resolved]
    if rest:
        text += f"; {_names(rest)} cannot be told from it"
    winner = best_method(results, metric)
    if winner and len(results.labels) > 2:
        text += f". {winner} is the best: it separates from every other method"
    return text + "."


def _list(metric: Metric, comparisons: dict[str, Comparison]) -> str:
    ordered = sorted(comparisons.items(), key=lambda item: -abs(item[1].difference.mean))
    unit = " points" if metric.unit == "percent" else ""
    texts = [
        f"{method} ({metric.show_difference(found.difference.mean)}{unit if index == 0 else ''} "
        f"{show_interval(metric, found.difference, signed=True)})"
        for index, (method, found) in enumerate(ordered)
    ]
    return _names(texts)


def _names(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _seeds_text(found: dict[str, Comparison]) -> str:
    counts = sorted({len(comparison.seeds) for comparison in found.values()})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {span} paired seed{'s' if counts[-1] > 1 else ''}"


def _enough(methods: int) -> int:
    seeds = 1
    while methods * smallest_p(seeds) > ALPHA:
        seeds += 1
    return seeds


def _warnings(results: Results) -> list[str]:
    found = []
    for label in results.labels:
        trials = [trial for trial in results.trials if trial.method == label]
        failed = [trial.seed for trial in trials if trial.status == "failed"]
        if failed:
            seeds = f"seed{'s' if len(failed) > 1 else ''} {_names([str(seed) for seed in failed])}"
            text = f"{label} failed on {seeds} ({len(failed)} of {len(trials)} trials)"
            if len(failed) < len(trials):
                text += "; its numbers are over the seeds that finished, which may flatter it"
            found.append(text + ".")
        missing = sum(trial.status == "missing" for trial in trials)
        if missing:
            found.append(f"{label}: {missing} of {len(trials)} trials have not been run yet.")
    if results.environment.get("earlier"):
        found.append("The trials ran under more than one set of versions; see the environment below.")
    return found
