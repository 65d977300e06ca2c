"""The second moment and its mean over the whole model, which Adam's stable decay and Adai read."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.moments.base import Moments
from mooring.step.scalars import moved
from mooring.step.shards import Request, all_sum, ordered_sum

if TYPE_CHECKING:
    from mooring.step.batch import Batch


class SecondMoment(Moments):
    """Moments that keep ``v <- b2 v + (1-b2) g^2`` in ``exp_avg_sq``.

    Where ``scans`` is set they also keep ``exp_avg_sq_sum``, the sum of all elements of v, one number per tensor. It
    follows v's own recursion, so one pass over the gradient gives the mean over the model and v is not read.
    ``exp_avg_sq_sum_step`` is the step at which that sum was true.
    """

    @override
    def shared(self, group: Mapping[str, Any]) -> Hashable:
        return (*group["betas"], group["eps"], group["maximize"])

    @override
    def check(self, group: Mapping[str, Any]) -> None:
        betas = group["betas"]
        if len(betas) != 2 or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        if not 0 <= group["eps"] < float("inf"):
            raise ValueError(f"eps must be a finite number >= 0, got {group['eps']!r}")

    @override
    def fill(self, state: dict[str, Any], group: Mapping[str, Any], zeros: Tensor) -> None:
        if self.scans and "exp_avg_sq" not in state:
            state["exp_avg_sq_sum"] = torch.zeros((), dtype=torch.float64, device=zeros.device)
            state["exp_avg_sq_sum_step"] = torch.zeros((), dtype=torch.float32)
        super().fill(state, group, zeros)

    @override
    def loaded(self, state: dict[str, Any]) -> None:
        # Optimizers that do not know the sum keep it unchanged while v goes on; its own step count tells.
        known = "exp_avg_sq_sum" in state and "exp_avg_sq_sum_step" in state
        if known and float(state["exp_avg_sq_sum_step"]) == float(state["step"]):
            state["exp_avg_sq_sum_step"] = state["step"].clone()  # on the host, where steps are counted
        else:
            state.pop("exp_avg_sq_sum", None)
            state.pop("exp_avg_sq_sum_step", None)

    @override
    def scan(self, batches: list[Batch]) -> list[Request]:
        """Each tensor's sum of g^2, from which ``sum(v)`` follows by v's own recursion, so v is not read.

        The running maximum has no such recursion, so with amsgrad the new maximum is formed here once more and summed.
        """
        self._recover_sums(batches)
        return [self._new_sums(b) for b in batches]

    @override
    def scanned(self, batches: list[Batch], sums: list[Tensor]) -> tuple[Tensor, int]:
        """The sum of v̂ over all elements of all batches, as it will be after this step, and how many they are."""
        means = []
        for batch, new in zip(batches, sums):
            _, beta2 = batch.group["betas"]
            if not self._keeps_maximum(batch):
                new = batch.scalars("exp_avg_sq_sum") * beta2 + new * (1 - beta2)
                batch.put_scalars("exp_avg_sq_sum", new)
                batch.put_scalars("exp_avg_sq_sum_step", batch.steps.to(torch.float32))
            means.append(new / moved(correction(beta2, batch.steps), new.device))
        return ordered_sum(means, [b.positions for b in batches]), sum(b.elements for b in batches)

    def _keeps_maximum(self, batch: Batch) -> bool:
        """Whether v̂ is a running maximum. Moments that know no amsgrad may still meet the option in a group."""
        return "max_exp_avg_sq" in self.state_names(batch.group)

    def _new_sums(self, batch: Batch) -> Request:
        """Each tensor's sum of g^2 (with amsgrad, of the new maximum), and where it has to be added up."""
        amsgrad = self._keeps_maximum(batch)
        if not amsgrad and batch.squares is not None and not any(rule.couples for rule in batch.rules):
            scale = 1.0 if batch.factor is None else batch.factor * batch.factor
            return batch.squares * scale, ()  # the clipping has formed them, over all shards
        if not amsgrad:
            return batch.gradient_squares(coupled=True), batch.shard_axes
        if batch.compiled is not None:
            return batch.compiled.maximum_sums(), batch.shard_axes
        grads = batch.moment_gradients()
        _, beta2 = batch.group["betas"]
        v = torch._foreach_mul(batch.moment("exp_avg_sq"), beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        torch._foreach_maximum_(v, batch.moment("max_exp_avg_sq"))
        return batch.sums(v), batch.shard_axes

    def _recover_sums(self, batches: list[Batch]) -> None:
        """Sum v once where the sum is unknown: state that comes from another optimizer's checkpoint."""
        unknown = [b for b in batches if any("exp_avg_sq_sum" not in s for s in b.states)]
        for batch, sums in zip(unknown, all_sum([(self._sums(b), b.shard_axes) for b in unknown])):
            for state, total in zip(batch.states, sums.unbind()):
                state.setdefault("exp_avg_sq_sum", total.clone())
                state.setdefault("exp_avg_sq_sum_step", state["step"].clone())

    @staticmethod
    def _sums(batch: Batch) -> Tensor:
        return batch.sums(batch.widen(batch.state("exp_avg_sq")))

    @override
    def scan_reads(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("gradient", *(("exp_avg_sq", "max_exp_avg_sq") if group.get("amsgrad", False) else ()))

    def mean(self, batch: Batch) -> Tensor:
        """The scanned mean of v̂, 0-dim float64."""
        assert batch.scanned is not None, "the scan comes before every step of moments that ask for it"
        return batch.scanned

    @override
    def stable_scale(self, batch: Batch) -> Tensor:
        """``1/sqrt(mean v̂)``; no decay while the mean is zero."""
        if not self.scans:
            raise ValueError(f"{type(self).__name__}: stable weight decay needs moments that scan the gradients")
        mean = self.mean(batch)
        return torch.nan_to_num(mean.rsqrt(), nan=0.0, posinf=0.0, neginf=0.0)


def correction(beta: float, t: Tensor) -> Tensor:
    """``1 - beta**t`` without cancellation; 1 where beta is 0. ``t`` is a float64 vector of step counts."""
    if beta == 0:
        return torch.ones_like(t)
    if t.device.type == "cpu":  # the C library's expm1 is the more exact one
        steps = t.tolist()
        known = {n: correction_at(beta, n) for n in set(steps)}  # most tensors are at the same step
        if len(known) == 1:
            return torch.full_like(t, *known.values())
        return torch.tensor([known[n] for n in steps], dtype=t.dtype)
    return -torch.expm1(t * math.log(beta))


def correction_at(beta: float, step: float) -> float:
    """The same at one step, on the host."""
    return 1.0 if beta == 0 else -math.expm1(step * math.log(beta))
