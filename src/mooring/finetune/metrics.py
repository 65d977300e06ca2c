"""Every number that is computed from predictions, and from nothing else: it can be computed again from a saved file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mooring.measure import calibrated


@dataclass(frozen=True)
class Prediction:
    """Logits and labels of one split, in the split's order."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """Three numbers for every label, in place of logits that are too many to keep.

    Attributes:
        log_p: Log-probability of the label, in nats.
        confidence: Probability of the class with the largest logit.
        correct: Whether that class is the label.
    """

    log_p: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]


def score(prediction: Prediction | Scored) -> Scored:
    """What accuracy, likelihood and calibration need of a prediction."""
    if isinstance(prediction, Scored):
        return prediction
    log_p = calibrated.log_probabilities(prediction.logits)
    return Scored(
        log_p[np.arange(len(prediction.labels)), prediction.labels],
        np.exp(log_p.max(axis=1)),
        prediction.logits.argmax(axis=1) == prediction.labels,
    )


def accuracy(prediction: Prediction | Scored) -> float:
    """The share of examples whose largest logit is the label's."""
    return float(score(prediction).correct.mean())


def nll(prediction: Prediction | Scored) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return float(-score(prediction).log_p.mean())


def ece(prediction: Prediction | Scored, bins: int = calibrated.BINS) -> float:
    """Expected calibration error over bins of equal width (`mooring.measure.calibrated.ece`)."""
    scored = score(prediction)
    return calibrated.ece_of(scored.confidence, scored.correct, bins)


def summarize(predictions: Mapping[str, Prediction | Scored]) -> dict[str, float]:
    """All metrics of a model from its predictions, as ``split/metric``.

    A corruption has one split per severity, ``ood.<kind>.<severity>``; ``ood.<kind>`` is the mean over its severities,
    and ``ood`` the mean over the kinds with equal weight. ``retention`` is no OOD kind: a model that stands still would
    win it. Without OOD splits there is no ``ood``.
    """
    result: dict[str, float] = {}
    parts: dict[str, list[dict[str, float]]] = defaultdict(list)
    for split, prediction in predictions.items():
        scored = score(prediction)
        own = {"accuracy": accuracy(scored), "nll": nll(scored), "ece": ece(scored)}
        result |= {f"{split}/{metric}": value for metric, value in own.items()}
        if split.startswith("ood."):
            parts[split.split(".")[1]].append(own)
    kinds = {f"ood.{kind}": _mean(severities) for kind, severities in parts.items()}
    overall = {"ood": _mean(list(kinds.values()))} if kinds else {}
    for name, values in {**kinds, **overall}.items():
        result |= {f"{name}/{metric}": value for metric, value in values.items()}
    result["train/loss"] = result["train/nll"]
    return result


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}


def save_predictions(path: Path, predictions: Mapping[str, Prediction | Scored]) -> None:
    """Write the arrays of every split into one compressed file.

    They are ``<split>/logits`` and ``<split>/labels``, or ``<split>/log_p``, ``<split>/confidence`` and
    ``<split>/correct``.
    """
    arrays: dict[str, Any] = {}
    for split, prediction in predictions.items():
        arrays |= {f"{split}/{field.name}": getattr(prediction, field.name) for field in fields(prediction)}
    np.savez_compressed(path, **arrays)


def load_predictions(path: Path) -> dict[str, Prediction | Scored]:
    """What `save_predictions` wrote."""
    with np.load(path) as arrays:
        result: dict[str, Prediction | Scored] = {}
        for split in dict.fromkeys(name.rpartition("/")[0] for name in arrays.files):
            kind = Prediction if f"{split}/logits" in arrays.files else Scored
            result[split] = kind(**{field.name: arrays[f"{split}/{field.name}"] for field in fields(kind)})
        return result
