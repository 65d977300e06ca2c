"""What the whole gradient decides before anything is written: its scale, its clipping, and whether to step at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mooring.step.batch import Batch
from mooring.step.processes import Processes
from mooring.step.shards import ordered_sum


@dataclass(frozen=True)
class Screen:
    """What was found. All tensors are 0-dim and on the device of the first batch.

    Attributes:
        factor: what gradients are multiplied by, float64; None is one.
        skip: whether this step must change nothing, bool; None is no.
        norm: the norm of the unscaled gradients over all parameters before clipping, float64; None if not asked for.
    """

    factor: Tensor | None = None
    skip: Tensor | None = None
    norm: Tensor | None = None

    @property
    def undecided(self) -> bool:
        """Whether only the device knows if the step is skipped."""
        return self.skip is not None and self.skip.device.type != "cpu"

    @property
    def skip_now(self) -> bool:
        """Whether the host knows that the step is skipped."""
        return self.skip is not None and self.skip.device.type == "cpu" and bool(self.skip)


def screen(
    batches: Sequence[Batch],
    max_norm: float | None,
    skip_non_finite: bool,
    processes: Processes,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> Screen:
    """Look over all gradients and tell every batch what to multiply its own by.

    ``norm = |g| / grad_scale`` over all tensors; the factor is ``min(1, max_norm / (norm + 1e-6)) / grad_scale``. The
    sum of squares per tensor stays with the batches for whoever needs it next. Costs one pass over the gradients and,
    where they are sharded, one collective, and one over the stages of a pipeline; nothing where neither a norm nor a
    scale is asked for.

    Args:
        batches: all batches of the step.
        max_norm: where to clip, or None.
        skip_non_finite: skip the step where the norm is not finite.
        processes: those that hold the rest of the model.
        grad_scale: what the loss was multiplied by (a GradScaler's scale), or None for 1.
        found_inf: a GradScaler's finding; above 0 the step is skipped.
    """
    for batch in batches:
        batch.look_again()
    if not batches and not processes.several_stages:
        return Screen()
    device = batches[0].device if batches else processes.home
    factor = None if grad_scale is None else _scalar(grad_scale, device).reciprocal()
    skip = None if found_inf is None else _scalar(found_inf, device) > 0
    norm = None
    # A scaler looks at this process's shards; whether to step has to be decided by all of them alike.
    shared = found_inf is not None and (processes.several_stages or any(b.shard_axes for b in batches))
    if max_norm is not None or skip_non_finite or shared:
        sums = processes.all_sum([(b.gradient_squares(), b.shard_axes) for b in batches])
        for batch, squares in zip(batches, sums):
            batch.squares = squares
        here = (
            ordered_sum(sums, [b.positions for b in batches])
            if sums
            else torch.zeros((), dtype=torch.float64, device=device)
        )
        norm = processes.over_model(here.reshape(1))[0].sqrt()
        if factor is not None:
            norm = norm * factor
        if skip_non_finite or shared:
            infinite = ~norm.isfinite()
            skip = infinite if skip is None else skip | infinite
        if max_norm is not None:
            clip = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            factor = clip if factor is None else factor * clip
    if factor is not None:
        for batch in batches:
            batch.factor = factor.to(batch.device, non_blocking=True)
    return Screen(factor, skip, norm)


def _scalar(x: Tensor, device: torch.device) -> Tensor:
    return x.detach().to(device=device, dtype=torch.float64, non_blocking=True).reshape(())
