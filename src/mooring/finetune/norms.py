"""Batch normalization over the batch of all processes, so that a batch split among them is normalised as one is."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mooring.finetune.errors import SpecError

_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchNormOverProcesses(_BatchNorm):
    """In train mode, mean and variance of the examples of all processes; otherwise torch's batch normalization.

    ``m = sum x / n`` and ``v = sum (x - m)^2 / n`` per channel, both sums in float64 over all processes, differentiated
    through them: four collectives of a vector of channels for a forward and a backward pass. torch's `SyncBatchNorm` is
    the same function, for GPUs alone. Running statistics are the same in every process.
    """

    group: Any

    def _check_input_dim(self, input: Tensor) -> None:
        """The class that this module was before has its own; shapes are known to be right by then."""

    def forward(self, input: Tensor) -> Tensor:
        """The normalised ``(n, channels, ...)``."""
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        own = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
        sums = _sum(torch.cat([x.sum(dims, dtype=torch.float64), own]), self.group)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.to(x.dtype).view(shape)
        variance = _sum(centred.square().sum(dims, dtype=torch.float64), self.group) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        result = centred * (variance + self.eps).rsqrt().to(x.dtype).view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - share).add_(new.to(running.dtype), alpha=share)


def _sum(x: Tensor, group: Any) -> Tensor:
    found: Tensor = _SumOverProcesses.apply(x, group)  # type: ignore[no-untyped-call]
    return found


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes. Everybody's loss depends on it, so its gradient is summed over processes as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def normalise_over(model: nn.Module, group: Any) -> None:
    """Let every batch normalization of the model see the batch of all processes; names and tensors stay.

    Raises:
        SpecError: A layer keeps running statistics in a way of its own, which would differ between processes.
    """
    for name, module in model.named_modules():
        if type(module) in _KNOWN:
            module.__class__ = BatchNormOverProcesses
            module.group = group
        elif module._buffers.get("running_mean") is not None:
            raise SpecError(
                f"the model's {name!r} is a {type(module).__name__}, which keeps running statistics of the examples "
                "that its own process sees: with several processes use BatchNorm1d, 2d or 3d, whose statistics are "
                "taken over all of them here, or train in one process"
            )
