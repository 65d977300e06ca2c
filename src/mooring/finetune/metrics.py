"""Every number that is computed from predictions, and from nothing else: it can be computed again from a saved file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ECE_BINS = 15


@dataclass(frozen=True)
class Prediction:
    """Logits and labels of one split, in the split's order."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-softmax over the classes, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def accuracy(prediction: Prediction) -> float:
    """The share of examples whose largest logit is the label's."""
    return float((prediction.logits.argmax(axis=1) == prediction.labels).mean())


def nll(prediction: Prediction) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    log_p = log_probabilities(prediction.logits)
    return float(-log_p[np.arange(len(prediction.labels)), prediction.labels].mean())


def ece(prediction: Prediction, bins: int = ECE_BINS) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy over bins of equal width.

    Guo et al. 2017, arXiv 1706.04599; a confidence on the edge of two bins belongs to the lower one.
    """
    confidence = np.exp(log_probabilities(prediction.logits).max(axis=1))
    correct = prediction.logits.argmax(axis=1) == prediction.labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


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
