"""What a setting of one method corresponds to in another, from measurements of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.step.shards import is_sharded

Numbers = Mapping[str, float]


def mean_second_moment(optimizer: torch.optim.Optimizer) -> float:
    """The mean of v̂ over all elements that have one, as AdamS reads it; with amsgrad of the running maxima.

    Args:
        optimizer: any with Adam's state (``exp_avg_sq``, ``step``), of this library or of torch. Reads the state once
            and waits for the device; sharded, every process must call it.

    Raises:
        ValueError: if no parameter has such a state yet.
    """
    sums: list[Tensor] = []
    count = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            state: Mapping[str, Any] = optimizer.state.get(p, {})
            if "exp_avg_sq" not in state or not state["step"] > 0:
                continue
            v = state["max_exp_avg_sq"] if group.get("amsgrad", False) else state["exp_avg_sq"]
            total = v.sum(dtype=torch.float64)
            beta2 = float(group["betas"][1])
            total = (total.full_tensor() if is_sharded(total) else total).cpu()
            sums.append(total / (-math.expm1(float(state["step"]) * math.log(beta2)) if beta2 > 0 else 1.0))
            count += v.numel()
    if not count:
        raise ValueError("optimizer: no parameter has a second moment (exp_avg_sq) yet; measure after some steps")
    return float(torch.stack(sums).sum()) / count


def stable_from_decoupled(weight_decay: float, optimizer: torch.optim.Optimizer) -> float:
    """The weight decay of AdamS or SGDS that shrinks as decoupled decay (AdamW's) does.

    With Adam's state ``weight_decay * sqrt(mean v̂)``, with a momentum buffer
    ``weight_decay * (1 - momentum) / (1 - dampening)``. The second is an identity. The first holds where it is
    measured: the mean falls as training goes on, so AdamS's decay grows beside AdamW's, which is its purpose.
    Measure where AdamW's decay was tuned to matter, say at half of a run.

    Args:
        weight_decay: of decoupled decay, ``p <- p - lr * weight_decay * p``.
        optimizer: the one to measure.

    Raises:
        ValueError: for an optimizer without Adam's state or a momentum, without a step, or whose groups disagree.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> model(torch.ones(3, 4)).sum().backward()
        >>> adamw.step()
        >>> opt = mo.AdamS(model.parameters(), lr=1e-3, weight_decay=mo.convert.stable_from_decoupled(0.1, adamw))
    """
    return weight_decay / _stable_scale(optimizer)


def decoupled_from_stable(weight_decay: float, optimizer: torch.optim.Optimizer) -> float:
    """The inverse of :func:`stable_from_decoupled`, at the same measured mean.

    Args:
        weight_decay: of AdamS or SGDS.
        optimizer: the one to measure.

    Raises:
        ValueError: as :func:`stable_from_decoupled`.
    """
    return weight_decay * _stable_scale(optimizer)


def l2sp_from_strength(strength: float, telemetry: Numbers | Sequence[Numbers], lr: float) -> float:
    """The decay toward the anchor (L2-SP) that takes as much of the distance per step as selective projection took.

    Selective projection takes the fraction ``strength * r`` of the distance of a tensor, on the steps that it acts on;
    decoupled decay toward the anchor takes ``lr * weight_decay`` on all of them. Their means agree for::

        weight_decay = strength * mean r / lr          r = 0 on steps and tensors that were not pulled back

    It is valid at the mean it was measured at and no further: r is made by the step itself, so it changes with the
    learning rate, with the strength, and along a run. And the two spread the same pull differently, one over
    the inconsistent steps, the other evenly.

    Args:
        strength: of :class:`mooring.SelectiveProjection`.
        telemetry: ``optimizer.telemetry()`` of a recorded step, or a list of them from along a run.
        lr: the learning rate of those steps.

    Raises:
        ValueError: for a learning rate that is not positive, or telemetry without selective projection.

    Example:
        >>> import torch, mooring as mo
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = mo.AdamSPD(model.parameters(), lr=1e-3)
        >>> opt.record(every=1)
        >>> seen = []
        >>> for _ in range(5):
        ...     opt.zero_grad()
        ...     model(torch.randn(3, 4)).square().sum().backward()
        ...     opt.step()
        ...     seen.append(opt.telemetry())
        >>> decay = mo.convert.l2sp_from_strength(1.0, seen, lr=1e-3)
    """
    return strength * _mean_ratio(telemetry) / _positive(lr)


def strength_from_l2sp(weight_decay: float, telemetry: Numbers | Sequence[Numbers], lr: float) -> float:
    """The inverse of :func:`l2sp_from_strength`: ``lr * weight_decay / mean r``, valid at the measured mean.

    Args:
        weight_decay: of decoupled decay toward the anchor.
        telemetry: of a run with selective projection.
        lr: the learning rate of the run.

    Raises:
        ValueError: as :func:`l2sp_from_strength`, or if no tensor was pulled back on any of those steps.
    """
    ratio = _mean_ratio(telemetry)
    if ratio == 0:
        raise ValueError("telemetry: no tensor was pulled back on these steps, so no strength is comparable")
    return _positive(lr) * weight_decay / ratio


def _stable_scale(optimizer: torch.optim.Optimizer) -> float:
    """What stable decay multiplies a decay by."""
    name = type(optimizer).__name__
    if all("betas" in group for group in optimizer.param_groups):
        mean = mean_second_moment(optimizer)
        if mean == 0:
            raise ValueError("optimizer: all its gradients were zero, so its second moment has no scale")
        return 1 / math.sqrt(mean)
    if not all("momentum" in group for group in optimizer.param_groups):
        raise ValueError(f"optimizer: {name} has neither betas nor a momentum, and stable decay is defined for those")
    scales = {(1 - g.get("dampening", 0)) / (1 - g["momentum"]) for g in optimizer.param_groups}
    if len(scales) > 1 or 0 in scales:
        raise ValueError(
            f"optimizer: (1 - dampening)/(1 - momentum) of its groups must be one number > 0, got {sorted(scales)}"
        )
    return float(scales.pop())


def _mean_ratio(telemetry: Numbers | Sequence[Numbers]) -> float:
    steps = [telemetry] if isinstance(telemetry, Mapping) else list(telemetry)
    share, ratio = "model/selective_projection/contracted", "model/selective_projection/ratio"
    if not steps or not all(share in numbers for numbers in steps):
        raise ValueError(
            f"telemetry: it lacks {share!r}; give what optimizer.telemetry() returned after record(), "
            "for an optimizer with selective projection"
        )
    return math.fsum(numbers[share] * numbers.get(ratio, 0.0) for numbers in steps) / len(steps)


def _positive(lr: float) -> float:
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a finite number > 0, got {lr!r}")
    return lr
