"""A term of a PAC-Bayes bound on the generalisation gap: curvature times squared distance from the anchor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

from torch import Tensor, nn

from mooring.measure.estimate import Estimate
from mooring.measure.hessian import Hessian
from mooring.measure.point import Loss, Progress


def flatness_bound(
    traces: float | Sequence[float], distances: float | Sequence[float], examples: int, loss_bound: float = 1.0
) -> float:
    """``sum_i sqrt(C T_i r_i^2 / n)``, in units of the loss: what curvature and drift contribute to a bound on the gap.

    Source: Theorem 2.1 of Ju, Li and Zhang 2022 ("Robust fine-tuning of deep neural networks with Hessian-based
    generalization guarantees", arXiv 2206.02659), with probability 0.99 and for every fixed small e::

        L(W) <= (1 + e) L_train(W) + (1 + e) sqrt(C) sum_i sqrt(H_i) / sqrt(n) + O(n^-3/4)
        H_i = max over (x, y) of v_i' Hess_i+ [loss(x, y)] v_i  <=  r_i^2 max over (x, y) of tr Hess_i+ [loss(x, y)]

    ``v_i = W_i - anchor_i`` for layer i, ``r_i = |v_i|``, ``Hess_i+`` the positive part of that layer's block, C a
    bound of the loss. The second line, their remark for distance-based regularisation, makes the term above, with
    ``T_i`` in place of the maximum. With all weights as one layer it is ``sqrt(C T r^2 / n)``, the shape of the bound
    of Zhang, Li and Ju 2024 (NSO, arXiv 2306.08553: a trace and the radius of the weights). The theorem was read in a
    reader's transcription, not in the paper itself; therefore also derived here: with posterior ``N(W, s^2 I)`` and
    prior ``N(anchor, s^2 I)`` the divergence is ``r^2 / 2 s^2`` and the noise costs ``s^2/2 T`` (to second order), so a
    linear PAC-Bayes bound adds ``s^2 T / 2 + C r^2 / (2 n s^2)``, which is least, ``sqrt(C T r^2 / n)``, at
    ``s^2 = r sqrt(C / (n T))``.

    What it leaves out: the factors ``1 + e``, the constants and the logarithm of the confidence, and the remainder of
    order ``n^-3/4``. Given the trace of the *mean* loss it also replaces the maximum over examples by their mean, and
    is then smaller (:func:`largest_trace` gives the maximum). It ranks models; it is no guarantee: cross-entropy has no
    bound C, the prior must not depend on the training examples, and where the trace is not that of the positive part,
    negative curvature is counted as a gain.

    Args:
        traces: T, or one per layer; a negative one counts as 0.
        distances: r, or one per layer.
        examples: n, how many the weights were trained on.
        loss_bound: C.

    Raises:
        ValueError: for numbers out of range, or other numbers of traces than of distances.

    Example:
        >>> from mooring.measure import flatness_bound
        >>> flatness_bound(traces=50.0, distances=2.0, examples=200)
        1.0
    """
    ts = [float(traces)] if isinstance(traces, (int, float)) else [float(t) for t in traces]
    rs = [float(distances)] if isinstance(distances, (int, float)) else [float(r) for r in distances]
    if len(ts) != len(rs) or not ts:
        raise ValueError(f"traces and distances must be equally many, at least one, got {len(ts)} and {len(rs)}")
    if not all(math.isfinite(t) for t in ts):
        raise ValueError(f"traces must be finite, got {ts}")
    if not all(0 <= r < math.inf for r in rs):
        raise ValueError(f"distances must be finite numbers >= 0, got {rs}")
    if examples < 1:
        raise ValueError(f"examples must be >= 1, got {examples!r}")
    if not 0 < loss_bound < math.inf:
        raise ValueError(f"loss_bound must be a finite number > 0, got {loss_bound!r}")
    return math.fsum(math.sqrt(loss_bound * max(t, 0.0) * r * r / examples) for t, r in zip(ts, rs))


def largest_trace(
    model: nn.Module,
    loss: Loss,
    examples: Iterable[Any],
    probes: int = 8,
    seed: int = 0,
    *,
    params: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> tuple[Estimate, int]:
    """The largest trace of the Hessian over examples one by one, and which example has it.

    The maximum of noisy estimates is too large on average; the same probes for every example, and enough of them, keep
    that small.

    Args:
        model: the module.
        loss: the mean loss over one batch.
        examples: batches of one example each.
        probes: per example; each costs one product with one example.
        seed: of the probes.
        params: the parameters that count, if not all.
        progress: told after every example.

    Raises:
        ValueError: without examples, or as :class:`Hessian` does.

    Example:
        >>> import torch
        >>> from mooring.measure import largest_trace
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> rows = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])]
        >>> found, index = largest_trace(model, lambda m, x: m(x).square().mean(), rows)
        >>> found.value, index
        (18.0, 1)
    """
    best: tuple[Estimate, int] | None = None
    total = len(examples) if isinstance(examples, Sized) else None
    for i, example in enumerate(examples):
        found = Hessian(model, loss, [example], params=params).trace(probes, seed)
        if best is None or found.value > best[0].value:
            best = found, i
        if progress is not None:
            progress(i + 1, total)
    if best is None:
        raise ValueError("examples must hold at least one batch")
    return best
