"""What noise on the weights costs: the mean rise of the loss, and the trace of the Hessian that it implies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from mooring.kernels import random
from mooring.measure.estimate import Estimate, mean_of
from mooring.measure.point import Loss, Point, Progress
from mooring.perturb.noise import LAWS, draw
from mooring.perturb.weights import Member


@dataclass(frozen=True)
class Stability:
    """The loss under noise of one size.

    Attributes:
        sigma: standard deviation of the noise on every weight.
        rise: mean and standard error over draws of ``[f(W+U) + f(W-U)] / 2 - f(W)``, in units of the loss.
        trace: ``2 / sigma^2`` times as much: the trace of the Hessian, up to terms of order ``sigma^2``.
    """

    sigma: float
    rise: Estimate
    trace: Estimate


def noise_stability(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    sigmas: Sequence[float] = (0.001, 0.003, 0.01, 0.03),
    draws: int = 16,
    *,
    sizes: Sequence[float] | None = None,
    law: str = "normal",
    seed: int = 0,
    params: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> list[Stability]:
    """How much the loss rises on average when noise is added to all weights.

    For each sigma, ``E f(W + U) - f(W)`` with ``U ~ N(0, sigma^2 I)`` from pairs ``+U, -U``, which cancel every odd
    term exactly. What is left is ``sigma^2/2 tr H + O(sigma^4)``; the quantity that NSO minimises (Zhang, Li and Ju
    2024, arXiv 2306.08553). The same draws serve every sigma, scaled.

    At small sigma the rise drowns in the rounding of the loss (relative 1e-7 in float32); at large sigma the terms of
    fourth order count. In between the implied trace is flat over sigma.

    Cost: ``2 draws`` forward passes over the data per sigma and one more, one copy of the weights. The noise belongs to
    (seed, draw, parameter, element) and is never stored, so every sharding sees the same. Everything is left as it was
    found, the weights to the bit.

    Args:
        model: the module, measured in evaluation mode; parameters with ``requires_grad`` are moved.
        loss: the mean loss over one batch.
        batches: what ``loss`` is given, one after the other.
        sigmas: standard deviations of the noise, each a finite number > 0.
        draws: pairs per sigma.
        sizes: how many examples each batch has; equal where not given.
        law: ``"normal"``, ``"laplace"`` or ``"uniform"``, each of mean zero and variance ``sigma ** 2``.
        seed: of the noise.
        params: the parameters that are moved, if not all.
        progress: told after every pair.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> import torch
        >>> from mooring.measure import noise_stability
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> [found] = noise_stability(model, lambda m, x: m(x).square().sum(), [torch.eye(2)], [0.1], draws=1000)
        >>> abs(found.trace.value - 4) < 4 * found.trace.error
        True
    """
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws must be an integer >= 1, got {draws!r}")
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(map(repr, LAWS))}, got {law!r}")
    if not sigmas or not all(0 < s < math.inf for s in sigmas):
        raise ValueError(f"sigmas must be finite numbers > 0, at least one, got {list(sigmas)!r}")
    point = Point(model, loss, batches, sizes, params)
    found = []
    with point.measuring():
        rest = point.value()
        for i, sigma in enumerate(sigmas):
            rises = []
            for j in range(draws):
                pair = 0.0
                for signed in (sigma, -sigma):
                    point.move(partial(_noise, law, seed, j, signed))
                    pair += point.value() / 2
                rises.append(pair - rest)
                if progress is not None:
                    progress(i * draws + j + 1, len(sigmas) * draws)
            rise = mean_of(rises)
            found.append(Stability(float(sigma), rise, rise.scaled(2 / sigma**2)))
    return found


def _noise(law: str, seed: int, j: int, scale: float, member: Member, wide: Tensor) -> Tensor:
    return draw(member, law, random.key("stability", seed, j, member.name), scale)
