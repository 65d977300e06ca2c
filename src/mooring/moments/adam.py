"""Adam's moments (Kingma and Ba, ICLR 2015; amsgrad: Reddi et al., ICLR 2018)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.kernels.eager import TensorList
from mooring.moments.second import SecondMoment, correction, correction_at
from mooring.step.scalars import factors

if TYPE_CHECKING:
    from mooring.step.batch import Batch


class Adam(SecondMoment):
    """``m <- b1 m + (1-b1) g``, ``v <- b2 v + (1-b2) g^2``, ``u = m̂ / (sqrt(v̂) + eps)``.

    ``m̂ = m/(1-b1^t)``, ``v̂ = v/(1-b2^t)``, with t counted per tensor. With ``amsgrad``, v̂ is the running maximum of
    the *uncorrected* v, divided by the current ``1-b2^t``, as in torch. With ``nesterov``, the numerator is
    ``(b1 m + (1-b1) g)/(1-b1^t)`` after the moments were updated, as in AdamP's released code (this is not NAdam).

    State: ``step``, ``exp_avg``, ``exp_avg_sq`` (and ``max_exp_avg_sq``): 8 (12) bytes per float32 element.

    Args:
        track_sum: scan the gradients for the mean of v̂, which stable weight decay reads.
        nesterov: read the group option ``nesterov``. Where the optimizer has no such option, a group that was made for
            another optimizer may still hold it, and it means nothing.
    """

    compiled = "adam"

    def __init__(self, track_sum: bool = False, nesterov: bool = False) -> None:
        self.scans = track_sum
        self._has_nesterov = nesterov

    def _nesterov(self, group: Mapping[str, Any]) -> bool:
        return bool(self._has_nesterov and group["nesterov"])

    @override
    def shared(self, group: Mapping[str, Any]) -> Hashable:
        return (super().shared(group), group["amsgrad"], self._nesterov(group))

    @override
    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    @override
    def fill(self, state: dict[str, Any], group: Mapping[str, Any], zeros: Tensor) -> None:
        if group["amsgrad"] and "exp_avg_sq" in state and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()  # amsgrad switched on: the maximum starts here
        super().fill(state, group, zeros)

    @override
    def update(self, batch: Batch, grads: TensorList, params: TensorList) -> TensorList:
        group = batch.group
        beta1, beta2 = group["betas"]
        m, v = batch.moment("exp_avg"), batch.moment("exp_avg_sq")
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            largest = batch.moment("max_exp_avg_sq")
            torch._foreach_maximum_(largest, v)
            v = largest
        # Both bias corrections go into the denominator, (sqrt(v)/sqrt(c2) + eps) * c1, which saves a pass over u.
        c1, c2 = correction(beta1, batch.steps), correction(beta2, batch.steps)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_mul_(denominator, factors(c1 / c2.sqrt(), batch.dtype))
        torch._foreach_add_(denominator, factors(c1 * group["eps"], batch.dtype))
        numerator: TensorList = m
        if self._nesterov(group):
            numerator = torch._foreach_mul(m, beta1)
            torch._foreach_add_(numerator, torch._foreach_mul(grads, 1 - beta1))
        return torch._foreach_div(numerator, denominator)

    @override
    def compiled_options(self, group: Mapping[str, Any]) -> tuple[bool, bool, bool]:
        return group["amsgrad"], self._nesterov(group), False

    @override
    def compiled_numbers(self, batch: Batch, step: float) -> dict[str, float]:
        beta1, beta2 = batch.group["betas"]
        c1, c2 = correction_at(beta1, step), correction_at(beta2, step)
        return {
            "fresh": 1 - beta1, "keep1": beta1, "keep2": beta2, "fresh2": 1 - beta2,
            "root": c1 / math.sqrt(c2), "floor": c1 * batch.group["eps"],
        }  # fmt: skip

    @override
    def remade_from(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        largest = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        return ("exp_avg", largest, *(("gradient",) if group.get("nesterov", False) else ()))

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        shown = {"amsgrad": group["amsgrad"], "nesterov": self._nesterov(group), "maximize": group["maximize"]}
        extras = "".join(f", {name}" for name, value in shown.items() if value)
        return f"adam(betas={tuple(group['betas'])}, eps={group['eps']:g}{extras})"
