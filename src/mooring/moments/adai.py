"""Adai's moments: Xie et al., ICML 2022 (arXiv 2006.15815); AdaiS in arXiv 2011.11152."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.kernels.eager import TensorList
from mooring.moments.second import SecondMoment, correction, correction_at
from mooring.step.scalars import factors

if TYPE_CHECKING:
    from mooring.step.batch import Batch


class Adai(SecondMoment):
    """Adaptive inertia: each element's momentum follows from its second moment instead of its step size.

    ::

        v <- b2 v + (1-b2) g^2,   v̂ = v / (1-b2^t),   v̄ = mean of v̂ over all elements of all parameters
        b  = clip(1 - b0 v̂/v̄, 0, 1-eps)  element by element;   v̂/v̄ = 0 where v̄ = 0
        q <- q b (from 1);   m <- b m + (1-b) g;   u = m / (1-q)

    State: ``exp_avg``, ``exp_avg_sq``, ``beta1_prod`` (q): 12 bytes per float32 element.
    """

    scans = True
    scans_first = True
    compiled = "adai"
    always_wide = frozenset({"beta1_prod"})  # 1 - q begins near 0, where bfloat16 would leave two digits of it

    @override
    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "beta1_prod")

    @override
    def fill(self, state: dict[str, Any], group: Mapping[str, Any], zeros: Tensor) -> None:
        if "beta1_prod" not in state:
            state["beta1_prod"] = torch.ones_like(zeros, dtype=torch.promote_types(zeros.dtype, torch.float32))
        super().fill(state, group, zeros)

    @override
    def update(self, batch: Batch, grads: TensorList, params: TensorList) -> TensorList:
        beta0, beta2 = batch.group["betas"]
        m, v, product = batch.moment("exp_avg"), batch.moment("exp_avg_sq"), batch.moment("beta1_prod")
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        mean = self.mean(batch)
        # 1 - b = b0 v̂/v̄; a mean of zero means that every v is zero.
        share = torch._foreach_mul(v, factors(beta0 / correction(beta2, batch.steps), batch.dtype))
        torch._foreach_mul_(share, torch.where(mean > 0, mean.reciprocal(), torch.zeros_like(mean)).to(share[0]))
        torch._foreach_clamp_min_(share, batch.group["eps"])
        torch._foreach_clamp_max_(share, 1.0)
        keep = torch._foreach_neg(share)
        torch._foreach_add_(keep, 1.0)
        torch._foreach_mul_(product, keep)
        torch._foreach_lerp_(m, grads, share)
        rest = torch._foreach_neg(product)
        torch._foreach_add_(rest, 1.0)
        return torch._foreach_div(m, rest)

    @override
    def compiled_numbers(self, batch: Batch, step: float) -> dict[str, float]:
        beta0, beta2 = batch.group["betas"]
        mean = float(self.mean(batch).numpy())
        share = 1 / correction_at(beta2, step) * beta0  # as torch divides a number by a tensor
        return {
            "keep1": 1.0, "keep2": beta2, "fresh2": 1 - beta2, "floor": batch.group["eps"],
            "share": share, "root": 1 / mean if mean > 0 else 0.0,
        }  # fmt: skip

    @override
    def remade_from(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "beta1_prod")

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        maximize = ", maximize" if group["maximize"] else ""
        return f"adai(betas={tuple(group['betas'])}, eps={group['eps']:g}{maximize})"
