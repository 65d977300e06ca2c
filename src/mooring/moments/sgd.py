"""The momentum buffer of stochastic gradient descent, as torch defines it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.kernels.eager import TensorList
from mooring.moments.base import Moments
from mooring.step.scalars import factors

if TYPE_CHECKING:
    from mooring.step.batch import Batch


class Momentum(Moments):
    """``b <- momentum b + (1-dampening) g``; ``u = b``, or ``g + momentum b`` with ``nesterov``.

    State: ``step`` and, with momentum, ``momentum_buffer``: 4 bytes per float32 element.

    Args:
        zero_start: the buffer starts at zero, so the first step is dampened too (SGDP). Otherwise the first buffer is
            the gradient itself (torch's convention).
    """

    compiled = "momentum"

    def __init__(self, zero_start: bool = False) -> None:
        self.zero_start = zero_start

    @override
    def shared(self, group: Mapping[str, Any]) -> Hashable:
        return (group["momentum"], group["dampening"], group["nesterov"], group["maximize"])

    @override
    def check(self, group: Mapping[str, Any]) -> None:
        momentum, dampening = group["momentum"], group["dampening"]
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
        if not 0 <= dampening <= 1:
            raise ValueError(f"dampening must be in [0, 1], got {dampening!r}")
        if group["nesterov"] and not self.zero_start and (momentum == 0 or dampening != 0):
            raise ValueError(
                "nesterov=True needs momentum > 0 and dampening = 0, "
                f"got momentum={momentum!r}, dampening={dampening!r}"
            )

    @override
    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    @override
    def update(self, batch: Batch, grads: TensorList, params: TensorList) -> TensorList:
        group = batch.group
        momentum, fresh = group["momentum"], 1 - group["dampening"]
        if momentum == 0:
            return torch._foreach_mul(grads, fresh) if self.zero_start and fresh != 1 else grads
        buffer = batch.moment("momentum_buffer")
        share = torch.full_like(batch.steps, fresh)
        if not self.zero_start:
            share = torch.where(batch.steps == 1, torch.ones_like(share), share)
        torch._foreach_mul_(buffer, momentum)  # zero before the first step
        torch._foreach_add_(buffer, torch._foreach_mul(grads, factors(share, batch.dtype)))
        if not group["nesterov"]:
            return buffer
        u = torch._foreach_mul(buffer, momentum)
        torch._foreach_add_(u, grads)
        return u

    @override
    def compiled_options(self, group: Mapping[str, Any]) -> tuple[bool, bool, bool]:
        return False, bool(group["nesterov"]), group["momentum"] == 0

    @override
    def compiled_numbers(self, batch: Batch, step: float) -> dict[str, float]:
        momentum, fresh = batch.group["momentum"], 1 - batch.group["dampening"]
        if momentum == 0:
            return {"keep1": 0.0, "share": fresh if self.zero_start else 1.0}
        return {"keep1": momentum, "share": 1.0 if step == 1 and not self.zero_start else fresh}

    @override
    def stable_scale(self, batch: Batch) -> Tensor:
        """``(1-dampening)/(1-momentum)``: what the decay would have reached in the buffer after many steps."""
        scale = (1 - batch.group["dampening"]) / (1 - batch.group["momentum"])
        return batch.vector([scale] * len(batch.params), batch.rule_device)

    @override
    def remade_from(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        bare = group["momentum"] == 0 or group["nesterov"]
        return (*self.state_names(group), *(("gradient",) if bare else ()))

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        extras = "".join(f", {name}" for name in ("nesterov", "maximize") if group.get(name))
        return f"momentum(momentum={group['momentum']:g}, dampening={group['dampening']:g}{extras})"
