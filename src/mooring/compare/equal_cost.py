"""What a comparison looks like where every method stops at the baseline's cost: read from the recorded curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mooring.compare import metrics
from mooring.compare.metrics import Metric
from mooring.compare.results import Results, Trial
from mooring.compare.tables import Table, build_table, unequal_gradients

_WHOLE = " With --budget gradients every method gets a whole schedule within equal gradient evaluations."
Cost = Literal["gradients", "seconds"]


class AtEqualCost(Results):
    """The same trials, each read at its last evaluation within what the baseline's whole training of that seed cost.

    Nothing is trained anew, so a method that is cut off has not come to the end of its learning rate's schedule. A
    method that costs less than the baseline is read at its own end.

    Args:
        results: The comparison.
        cost: ``gradients``: gradient evaluations; ``seconds``: seconds of training.
    """

    def __init__(self, results: Results, cost: Cost) -> None:
        self.__dict__.update(results.__dict__)
        key = metrics.GRADIENTS.key if cost == "gradients" else metrics.TRAIN_SECONDS.key
        budget = {t.seed: t.final[key] for t in results.with_status("done") if t.method == results.baseline}
        self._read_at = {
            (trial.method, trial.seed): self._last_within(trial, cost, budget[trial.seed])
            for trial in results.with_status("done")
            if trial.seed in budget
        }

    def _last_within(self, trial: Trial, cost: Cost, budget: float) -> dict[str, float]:
        def spent(row: dict[str, float]) -> float:
            if cost in row:
                return row[cost]
            # Folders from before gradients were recorded along training.
            return trial.final[metrics.GRADIENTS.key] * row["step"] / trial.final["steps"]

        return [row for row in self.curve(trial) if spent(row) <= budget][-1]

    def values(self, metric: Metric) -> dict[str, dict[int, float]]:
        """Method → seed → value, over the trials whose seed the baseline has finished."""
        key = "step" if metric is metrics.STEPS else metric.key
        found: dict[str, dict[int, float]] = {label: {} for label in self.labels}
        for (label, seed), row in self._read_at.items():
            if key in row:
                found[label][seed] = row[key]
        return found


@dataclass(frozen=True)
class View:
    """One table at equal cost, with a title and what to know about it."""

    cost: Cost
    title: str
    note: str
    table: Table


def views(results: Results) -> list[View]:
    """The comparison at the baseline's gradient evaluations, where methods differ in them, and at its seconds."""
    if len(results.labels) < 2 or not any(trial.method == results.baseline for trial in results.with_status("done")):
        return []
    at_gradients = unequal_gradients(results) and results.config.compare.budget == "steps"
    wanted: list[tuple[Cost, str]] = [("gradients", "gradient evaluations")] if at_gradients else []
    columns = [m for m in (metrics.ID, metrics.OOD, metrics.RETENTION, metrics.DRIFT) if results.has(m)]
    return [
        View(
            cost,
            f"At {results.baseline}’s {words}",
            f"Every method at its last evaluation within the {words} that {results.baseline} took for all its steps on "
            "that seed. Nothing was trained anew: a method that is cut off here had not come to the end of its "
            "schedule." + (_WHOLE if cost == "gradients" else ""),
            build_table(AtEqualCost(results, cost), [*columns, metrics.STEPS]),
        )
        for cost, words in [*wanted, ("seconds", "seconds of training")]
    ]
