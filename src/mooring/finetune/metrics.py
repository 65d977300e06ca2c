"""Every number that is computed from predictions, and from nothing else: it can be computed again from a saved file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
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


def accuracy(prediction: Prediction) -> float:
    """The share of examples whose largest logit is the label's."""
    return calibrated.accuracy(prediction.logits, prediction.labels)


def nll(prediction: Prediction) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return calibrated.nll(prediction.logits, prediction.labels)


def ece(prediction: Prediction, bins: int = calibrated.BINS) -> float:
    """Expected calibration error over bins of equal width (`mooring.measure.calibrated.ece`)."""
    return calibrated.ece(prediction.logits, prediction.labels, bins)


def summarize(predictions: Mapping[str, Prediction]) -> dict[str, float]:
    """All metrics of a model from its predictions, as ``split/metric``.

    A corruption has one split per severity, ``ood.<kind>.<severity>``; ``ood.<kind>`` is the mean over its severities,
    and ``ood`` the mean over the kinds with equal weight. ``retention`` is no OOD kind: a model that stands still would
    win it.
    """
    result: dict[str, float] = {}
    parts: dict[str, list[dict[str, float]]] = defaultdict(list)
    for split, prediction in predictions.items():
        own = {"accuracy": accuracy(prediction), "nll": nll(prediction), "ece": ece(prediction)}
        result |= {f"{split}/{metric}": value for metric, value in own.items()}
        if split.startswith("ood."):
            parts[split.split(".")[1]].append(own)
    kinds = {f"ood.{kind}": _mean(severities) for kind, severities in parts.items()}
    for name, values in {**kinds, "ood": _mean(list(kinds.values()))}.items():
        result |= {f"{name}/{metric}": value for metric, value in values.items()}
    result["train/loss"] = result["train/nll"]
    return result


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}


def save_predictions(path: Path, predictions: Mapping[str, Prediction]) -> None:
    """Write ``<split>/logits`` and ``<split>/labels`` arrays into one compressed file."""
    arrays: dict[str, Any] = {}
    for split, prediction in predictions.items():
        arrays[f"{split}/logits"] = prediction.logits
        arrays[f"{split}/labels"] = prediction.labels
    np.savez_compressed(path, **arrays)


def load_predictions(path: Path) -> dict[str, Prediction]:
    """What `save_predictions` wrote."""
    with np.load(path) as arrays:
        splits = [name.removesuffix("/logits") for name in arrays.files if name.endswith("/logits")]
        return {split: Prediction(arrays[f"{split}/logits"], arrays[f"{split}/labels"]) for split in splits}
