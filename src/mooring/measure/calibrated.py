"""Whether a classifier's confidence is what it is right to have, and how much worse it does on new examples.

Everything here is computed from logits and labels, in float64, with numpy (extra ``cli``) and without torch, so that it
can be computed again from a file of predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

try:
    import numpy as np
    import numpy.typing as npt
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(f'calibration needs numpy: pip install "mooring[cli]" ({missing})') from missing

Floats = npt.NDArray[np.float64]

BINS = 15


@dataclass(frozen=True)
class Bin:
    """The examples whose confidence lies in one bin.

    Attributes:
        low: the bin's lower end.
        high: its upper end, which belongs to it.
        count: how many examples.
        confidence: their mean confidence; NaN without any.
        accuracy: the share that is right; NaN without any.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How well confidences fit.

    Attributes:
        accuracy: the share of examples whose largest logit is the label's.
        nll: mean negative log-likelihood of the labels, in nats.
        brier: mean over examples of the squared distance between the probabilities and the label's unit vector, 0 to 2.
        ece: expected calibration error over bins of equal width.
        adaptive_ece: the same over bins of equal mass.
        bins: the bins of equal width, for a reliability diagram.
        count: how many examples.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    adaptive_ece: float
    bins: tuple[Bin, ...]
    count: int


@dataclass(frozen=True)
class Gap:
    """Test minus train.

    Attributes:
        loss: mean negative log-likelihood on the test examples minus that on the training examples, in nats.
        loss_error: its standard error.
        accuracy: accuracy on the training examples minus that on the test examples: like ``loss`` > 0 where the
            model does worse on new ones.
        accuracy_error: its standard error.
    """

    loss: float
    loss_error: float
    accuracy: float
    accuracy_error: float


def log_probabilities(logits: Any) -> Floats:
    """Log-softmax over the classes, in float64."""
    values = _array(logits).astype(np.float64)
    shifted = values - values.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def accuracy(logits: Any, labels: Any) -> float:
    """The share of examples whose largest logit is the label's."""
    logits, labels = _checked(logits, labels)
    return float(_correct(logits, labels).mean())


def nll(logits: Any, labels: Any) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    logits, labels = _checked(logits, labels)
    return float(_losses(logits, labels).mean())


def brier(logits: Any, labels: Any) -> float:
    """Mean over examples of ``sum_c (p_c - [c = label])^2`` (Brier 1950), 0 to 2."""
    logits, labels = _checked(logits, labels)
    probabilities = np.exp(log_probabilities(logits))
    probabilities[np.arange(len(labels)), labels] -= 1
    return float(np.square(probabilities).sum(axis=1).mean())


def ece(logits: Any, labels: Any, bins: int = BINS, *, equal_mass: bool = False) -> float:
    """Expected calibration error: the mean over examples of ``|accuracy - confidence|`` of their bin.

    Bins of equal width: Guo et al. 2017, arXiv 1706.04599; a confidence on the edge of two belongs to the lower one.
    Bins of equal mass: Nguyen and O'Connor 2015, arXiv 1508.05154; the examples sorted by confidence, cut into ``bins``
    runs whose lengths differ by at most one. Both are biased upwards where bins hold few examples.

    Args:
        logits: (examples, classes), an array or a tensor.
        labels: (examples,), integers.
        bins: how many.
        equal_mass: which kind.

    Raises:
        ValueError: for shapes that do not fit, labels that are no class, or ``bins`` < 1.
    """
    logits, labels = _checked(logits, labels)
    return ece_of(_confidence(logits), _correct(logits, labels), bins, equal_mass=equal_mass)


def ece_of(confidence: Any, correct: Any, bins: int = BINS, *, equal_mass: bool = False) -> float:
    """The same from each example's confidence and whether it is right, where its logits were not kept."""
    index = _ranked(confidence, bins) if equal_mass else _bin_of(confidence, bins)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability(logits: Any, labels: Any, bins: int = BINS) -> tuple[Bin, ...]:
    """Mean confidence and accuracy in bins of equal width: a reliability diagram's bars."""
    logits, labels = _checked(logits, labels)
    confidence, correct = _confidence(logits), _correct(logits, labels)
    index = _bin_of(confidence, bins)
    rows = []
    for i in range(bins):
        inside = index == i
        count = int(inside.sum())
        sure, right = (float(x[inside].mean()) if count else math.nan for x in (confidence, correct))
        rows.append(Bin(i / bins, (i + 1) / bins, count, sure, right))
    return tuple(rows)


def calibration(logits: Any, labels: Any, bins: int = BINS) -> Calibration:
    """Accuracy, likelihood, Brier score and both calibration errors of one set of predictions.

    Args:
        logits: (examples, classes), an array or a tensor.
        labels: (examples,), integers.
        bins: of the calibration errors.

    Raises:
        ValueError: for shapes that do not fit, labels that are no class, or ``bins`` < 1.

    Example:
        >>> from mooring.measure import calibration
        >>> found = calibration([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]], [0, 0, 1, 0])
        >>> round(found.accuracy, 2), round(found.ece, 2)  # 98 % sure, 75 % right
        (0.75, 0.23)
    """
    return Calibration(
        accuracy(logits, labels),
        nll(logits, labels),
        brier(logits, labels),
        ece(logits, labels, bins),
        ece(logits, labels, bins, equal_mass=True),
        reliability(logits, labels, bins),
        len(_array(labels)),
    )


def generalization_gap(train: tuple[Any, Any], test: tuple[Any, Any]) -> Gap:
    """How much worse a classifier does on new examples than on those it was trained on.

    The standard errors are those of a difference of two means over independent examples, ``sqrt(s_train^2 / n_train +
    s_test^2 / n_test)`` (variances with n - 1). They say how well the gap of *this* model is known, nothing about other
    trainings.

    Args:
        train: logits and labels of the training examples.
        test: logits and labels of others.

    Raises:
        ValueError: as :func:`calibration`, or for fewer than two examples in either.

    Example:
        >>> from mooring.measure import generalization_gap
        >>> right, half = ([[9.0, 0.0]] * 4, [0, 0, 0, 0]), ([[9.0, 0.0]] * 4, [0, 1, 0, 1])
        >>> gap = generalization_gap(right, half)
        >>> gap.loss, gap.accuracy
        (4.5, 0.5)
    """
    seen, new = _checked(*train), _checked(*test)
    for name, (_, labels) in (("train", seen), ("test", new)):
        if len(labels) < 2:
            raise ValueError(f"{name} must have at least two examples, got {len(labels)}")
    loss, loss_error = _difference(_losses(*new), _losses(*seen))
    share, share_error = _difference(_correct(*seen), _correct(*new))
    return Gap(loss, loss_error, share, share_error)


def _difference(a: Floats, b: Floats) -> tuple[float, float]:
    error = math.sqrt(float(a.var(ddof=1)) / len(a) + float(b.var(ddof=1)) / len(b))
    return float(a.mean() - b.mean()), error


def _losses(logits: Any, labels: Any) -> Floats:
    result: Floats = -log_probabilities(logits)[np.arange(len(labels)), labels]
    return result


def _correct(logits: Any, labels: Any) -> Floats:
    result: Floats = (logits.argmax(axis=1) == labels).astype(np.float64)
    return result


def _confidence(logits: Any) -> Floats:
    result: Floats = np.exp(log_probabilities(logits).max(axis=1))
    return result


def _bin_of(confidence: Floats, bins: int) -> npt.NDArray[np.intp]:
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins!r}")
    return np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)


def _ranked(confidence: Floats, bins: int) -> npt.NDArray[np.intp]:
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins!r}")
    index = np.empty(len(confidence), dtype=np.intp)
    index[np.argsort(confidence, kind="stable")] = np.arange(len(confidence)) * bins // len(confidence)
    return index


def _array(x: Any) -> npt.NDArray[Any]:
    if hasattr(x, "detach"):  # a tensor, which numpy would take only from the CPU and without a graph
        x = x.detach().cpu()
        x = x.float().numpy() if x.is_floating_point() and x.element_size() < 4 else x.numpy()
    return np.asarray(x)


def _checked(logits: Any, labels: Any) -> tuple[Any, Any]:
    logits, labels = _array(logits), _array(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits must have shape (examples, classes) and labels (examples,), got {logits.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}, got {labels.min()} to {labels.max()}")
    return logits, labels
