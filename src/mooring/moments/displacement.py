"""What another optimizer's step did, taken as the update direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from mooring.kernels.eager import TensorList
from mooring.moments.base import Moments

if TYPE_CHECKING:
    from mooring.step.batch import Batch


class Displacement(Moments):
    """``u = p_before - p_after``, with coefficient 1: the learning rate is already in it.

    Args:
        name: the wrapped optimizer, for ``print``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @override
    def update(self, batch: Batch, grads: TensorList, params: TensorList) -> TensorList:
        return torch._foreach_sub(params, batch.widen(batch.params))

    @override
    def step_size(self, batch: Batch) -> Tensor:
        return batch.vector([1.0] * len(batch.params), batch.rule_device)

    @override
    def describe(self, group: Mapping[str, Any]) -> str:
        return f"step of {self.name}"
