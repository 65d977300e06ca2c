"""Running statistics of normalisation layers, which a perturbed pass must not move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NAMES = ("running_mean", "running_var", "num_batches_tracked")


def running(model: nn.Module | None) -> list[Tensor]:
    """The running statistics that a forward pass would move now: those of modules in train mode that keep any.

    Any class counts that has them under torch's names: batch, instance and synchronised norms, and other packages'.
    """
    if model is None:
        return []
    found: list[Tensor] = []
    for module in model.modules():
        buffers = [module._buffers.get(name) for name in _NAMES]
        if module.training and buffers[0] is not None:
            found += [b for b in buffers if b is not None]
    return found


class Frozen:
    """A copy of statistics, to be put back after a pass."""

    def __init__(self, model: nn.Module | None) -> None:
        self._kept = [(b, b.clone()) for b in running(model)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back. The modules are not touched, so nothing is compiled anew."""
        for buffer, value in self._kept:
            buffer.copy_(value)
