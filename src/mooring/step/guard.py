"""Undoing a step on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Guard:
    """Undoes a step where the host does not know whether it was to be taken.

    What a step may change is copied before and put back where ``skip`` is true. Costs that copy until :meth:`restore`.
    """

    def __init__(self, skip: Tensor) -> None:
        self._skip = skip
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Copy what is about to be changed in place."""
        self._kept += [(t, t.clone()) for t in tensors]

    def restore(self) -> None:
        """Put the copies back where the step was to be skipped, and drop them."""
        for tensor, before in self._kept:
            tensor.copy_(torch.where(self._skip, before, tensor))
        self._kept = []
