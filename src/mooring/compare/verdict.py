"""What the seeds allow to be said, in sentences. Nothing is claimed that the statistics do not resolve."""

from __future__ import annotations

from dataclasses import dataclass

from mooring.compare import metrics
from mooring.compare.metrics import Metric
from mooring.compare.results import Results
from mooring.compare.statistics import ALPHA, Comparison, compare_paired, smallest_p
from mooring.compare.tables import best_method, show_interval, show_p

_SIDES = {"+": "above", metrics.MINUS: "below"}


@dataclass(frozen=True)
class Point:
    """What is resolved on one further metric."""

    topic: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """One sentence about the primary metric, and what else is resolved or stands in the way.

    Attributes:
        sentence: the answer.
        points: what is resolved on the other metrics.
        warnings: what weakens the numbers (failed or missing trials, changed versions).
    """

    sentence: str
    points: tuple[Point, ...]
    warnings: tuple[str, ...]


def judge(results: Results) -> Verdict:
    """Judge a comparison by its primary metric, OOD accuracy where there is one."""
    warnings = tuple(_warnings(results))
    others = [label for label in results.labels if label != results.baseline]
    primary = results.primary
    if not results.values(primary)[results.baseline]:
        return Verdict(f"Nothing can be compared: the baseline {results.baseline} has no finished trial.", (), warnings)
    if not others:
        return Verdict(f"Nothing is compared: {results.baseline} is the only method.", (), warnings)
    paired = compare_paired(results.values(primary), results.baseline)
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
    points = [
        Point(metric.name, _findings(results, metric))
        for metric in (metrics.ID, metrics.RETENTION, metrics.DRIFT)
        if results.has(metric) and metric != primary
    ]
    by_shift = _by_shift(results)
    if by_shift:
        points.insert(0, Point("By shift", by_shift))
    sentence = f"{primary.name}: {_findings(results, primary).removesuffix('.')} ({_seeds_text(paired)})."
    return Verdict(sentence, tuple(points), warnings)


def _findings(results: Results, metric: Metric) -> str:
    found = compare_paired(results.values(metric), results.baseline)
    resolved = {method: comparison for method, comparison in found.items() if comparison.resolved}
    if not resolved:
        return f"no difference to {results.baseline} is resolved."
    shown = {method: metric.show_difference(comparison.difference.mean) for method, comparison in resolved.items()}
    tiny = [method for method, text in shown.items() if text[0] not in _SIDES]
    ordered = [method for method in resolved if method not in tiny]
    ordered.sort(key=lambda method: (resolved[method].difference.mean < 0, -abs(resolved[method].difference.mean)))
    unit = " points" if metric.unit == "percent" else ""
    parts = []
    for index, method in enumerate(ordered):
        difference = resolved[method].difference
        side = "above" if difference.mean > 0 else "below"
        amount = metric.show(abs(difference.mean))
        interval = show_interval(metric, difference, signed=True)
        whole = f"{amount}{unit} {side} {results.baseline}" if index == 0 else f"{amount} {side}"
        parts.append(f"{method} {'is ' if index == 0 else ''}{whole} {interval}")
    clauses = [_names(parts)] if parts else []
    if tiny:
        verb = "differ" if len(tiny) > 1 else "differs"
        clauses.append(f"{_names(tiny)} {verb} from {results.baseline} by less than is printed")
    rest = [method for method in found if method not in resolved]
    if rest:
        clauses.append(f"{_names(rest)} cannot be told from {'it' if parts else results.baseline}")
    text = "; ".join(clauses)
    winner = best_method(results, metric)
    if winner and len(results.labels) > 2:
        text += f". {winner} separates from every other method"
    return text + "."


def _by_shift(results: Results) -> str:
    """Methods whose resolved differences point different ways, or exist at all, under single shifts."""
    sides: dict[str, dict[str, list[str]]] = {label: {"above": [], "below": []} for label in results.labels}
    for kind in results.kinds:
        metric = metrics.shift(kind)
        for method, found in compare_paired(results.values(metric), results.baseline).items():
            amount = metric.show_difference(found.difference.mean)
            if found.resolved and amount[0] in _SIDES:
                sides[method][_SIDES[amount[0]]].append(f"{metric.short} ({amount})")
    texts = []
    for method, by_side in sides.items():
        parts = [f"{side} {results.baseline} on {_names(kinds)}" for side, kinds in by_side.items() if kinds]
        if parts:
            texts.append(f"{method} is {_names(parts)}")
    return "; ".join(texts) + "." if texts else ""


def _names(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


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
