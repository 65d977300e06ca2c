"""Adam's moments (Kingma and Ba, ICLR 2015; amsgrad: Reddi et al., ICLR 2018)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.kernels.eager import TensorList, row_sums
from mooring.moments.base import Moments
from mooring.step.shards import all_sum

if TYPE_CHECKING:
    from mooring.step.batch import Batch


class Adam(Moments):
    """``m <- b1 m + (1-b1) g``, ``v <- b2 v + (1-b2) g^2``, ``u = m̂ / (sqrt(v̂) + eps)``.

    ``m̂ = m/(1-b1^t)``, ``v̂ = v/(1-b2^t)``, with t counted per tensor. With ``amsgrad``, v̂ is the running maximum of
    the *uncorrected* v, divided by the current ``1-b2^t``, as in torch. With ``nesterov``, the numerator is
    ``(b1 m + (1-b1) g)/(1-b1^t)`` after the moments were updated, as in AdamP's released code (this is not NAdam).

    State: ``step``, ``exp_avg``, ``exp_avg_sq`` (and ``max_exp_avg_sq``): 8 (12) bytes per float32 element.

    Args:
        track_sum: scan the gradients and keep ``exp_avg_sq_sum``, the sum of all elements of v, for stable weight
            decay. It follows v's own recursion, so one pass over the gradient is enough and v is not read.
    """

    def __init__(self, track_sum: bool = False) -> None:
        self.scans = track_sum

    @override
    def shared(self, group: Mapping[str, Any]) -> Hashable:
        return (*group["betas"], group["eps"], group["amsgrad"], group.get("nesterov", False), group["maximize"])

    @override
    def check(self, group: Mapping[str, Any]) -> None:
        betas = group["betas"]
        if len(betas) != 2 or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        if not group["eps"] >= 0:
            raise ValueError(f"eps must be >= 0, got {group['eps']!r}")

    @override
    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    @override
    def fill(self, state: dict[str, Any], group: Mapping[str, Any], zeros: Tensor) -> None:
        if group["amsgrad"] and "exp_avg_sq" in state and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()  # amsgrad switched on: the maximum starts here
        if self.scans and "exp_avg_sq" not in state:
            state["exp_avg_sq_sum"] = torch.zeros((), dtype=torch.float64, device=zeros.device)
        super().fill(state, group, zeros)

    @override
    def update(self, batch: Batch, grads: TensorList, params: TensorList) -> TensorList:
        group = batch.group
        beta1, beta2 = group["betas"]
        m, v = batch.state("exp_avg"), batch.state("exp_avg_sq")
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            largest = batch.state("max_exp_avg_sq")
            torch._foreach_maximum_(largest, v)
            v = largest
        # Both bias corrections go into the denominator, (sqrt(v)/sqrt(c2) + eps) * c1, which saves a pass over u.
        c1 = [_correction(beta1, t) for t in batch.steps]
        denominator = torch._foreach_sqrt(v)
        torch._foreach_mul_(denominator, [c / math.sqrt(_correction(beta2, t)) for c, t in zip(c1, batch.steps)])
        torch._foreach_add_(denominator, [c * group["eps"] for c in c1])
        numerator: TensorList = m
        if group.get("nesterov", False):
            numerator = torch._foreach_mul(m, beta1)
            torch._foreach_add_(numerator, torch._foreach_mul(grads, 1 - beta1))
        return torch._foreach_div(numerator, denominator)

    @override
    def scan(self, batches: list[Batch]) -> Tensor:
        """The mean of v̂ over all elements of all batches, as it will be after this step; 0-dim float64.

        Without amsgrad, ``sum(v)`` follows v's own recursion from ``sum(g^2)``, so v is not read. The running maximum
        has no such recursion, so with amsgrad the new maximum is formed here once more.
        """
        self._recover_sums(batches)
        sums = all_sum([(self._new_sums(b), b.shard_groups) for b in batches])
        device = sums[0].device
        means = []
        for batch, new in zip(batches, sums):
            _, beta2 = batch.group["betas"]
            if not batch.group["amsgrad"]:
                tracked = [s["exp_avg_sq_sum"] for s in batch.states]
                new = torch.stack(tracked) * beta2 + new * (1 - beta2)
                torch._foreach_copy_(tracked, list(new.unbind()))
            corrections = batch.vector([_correction(beta2, t) for t in batch.steps], new.device)
            means.append((new / corrections).to(device, non_blocking=True))
        # In the order of the parameters, so that the way they were batched does not change a bit.
        order = [i for b in batches for i in b.positions]
        by_position = torch.cat(means)[torch.tensor(sorted(range(len(order)), key=order.__getitem__)).to(device)]
        return row_sums(by_position.unsqueeze(0))[0] / max(sum(n for b in batches for n in b.global_numels), 1)

    def _new_sums(self, batch: Batch) -> Tensor:
        grads = batch.gradients()
        if not batch.group["amsgrad"]:
            return batch.sums_of_squares(grads)
        _, beta2 = batch.group["betas"]
        v = torch._foreach_mul(batch.state("exp_avg_sq"), beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        torch._foreach_maximum_(v, batch.state("max_exp_avg_sq"))
        return batch.sums(v)

    def _recover_sums(self, batches: list[Batch]) -> None:
        """Sum v once where the sum is unknown: state that comes from another optimizer's checkpoint."""
        unknown = [b for b in batches if any("exp_avg_sq_sum" not in s for s in b.states)]
        for batch, sums in zip(unknown, all_sum([(b.sums(b.state("exp_avg_sq")), b.shard_groups) for b in unknown])):
            for state, total in zip(batch.states, sums.unbind()):
                state.setdefault("exp_avg_sq_sum", total.clone())

    @override
    def stable_scale(self, batch: Batch) -> Tensor:
        """``1/sqrt(mean v̂)``; no decay while the mean is zero."""
        mean = batch.scanned
        assert mean is not None, "the scan computes it wherever a rule needs it"
        return torch.where(mean > 0, mean.rsqrt(), torch.zeros_like(mean))

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        extras = "".join(f", {name}" for name in ("amsgrad", "nesterov", "maximize") if group.get(name))
        return f"adam(betas={tuple(group['betas'])}, eps={group['eps']:g}{extras})"


def _correction(beta: float, t: float) -> float:
    """``1 - beta**t`` without cancellation; 1 where beta is 0."""
    return -math.expm1(t * math.log(beta)) if beta > 0 else 1.0
