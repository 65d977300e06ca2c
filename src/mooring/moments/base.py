"""The interface of moments."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mooring.kernels.eager import TensorList

if TYPE_CHECKING:
    from mooring.step.batch import Batch
    from mooring.step.shards import Request


class Moments:
    """Turns gradients into an update direction and keeps the state that this takes.

    Attributes:
        scans: whether a scan over all gradients must come before the update, for :meth:`stable_scale`.
        scans_first: whether :meth:`update` itself reads what the scan found. Where it does not, the scan's sums may
            travel with the first that the rules ask for.
        compiled: the kind of moments in ``kernels/cpu/blocks.py``; empty where there is none, and torch does the work.
        always_wide: state that is kept in the compute type also where moments are kept in bfloat16.
    """

    scans: bool = False
    scans_first: bool = False
    compiled: str = ""
    always_wide: frozenset[str] = frozenset()

    def shared(self, group: Mapping[str, Any]) -> Hashable:
        """The options that all tensors of one batch must have in common."""
        return ()

    def check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError naming the option, its value and what would be right."""

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Parameter-shaped state, in the type that the group keeps moments in."""
        return ()

    def fill(self, state: dict[str, Any], group: Mapping[str, Any], zeros: Tensor) -> None:
        """Add what is missing in a parameter's state; ``zeros`` is a parameter-shaped tensor to clone."""
        for name in self.state_names(group):
            if name not in state:
                state[name] = zeros.clone()

    def loaded(self, state: dict[str, Any]) -> None:
        """Look over a parameter's state that came from a checkpoint, perhaps another optimizer's."""

    def update(self, batch: Batch, grads: TensorList, params: TensorList) -> TensorList:
        """Update the state in place and return u. ``grads`` and ``params`` are never written."""
        raise TypeError(f"{type(self).__name__} must define update")

    def compiled_options(self, group: Mapping[str, Any]) -> tuple[bool, bool, bool]:
        """For kernels: whether a group asks for amsgrad, for nesterov, and whether u is the gradient itself."""
        return False, False, False

    def compiled_numbers(self, batch: Batch, step: float) -> dict[str, float]:
        """For kernels: the numbers of ``kernels/cpu/blocks.py`` by name, for the tensors of a batch at a step.

        Args:
            batch: the batch.
            step: how many steps these tensors have taken, this one included.
        """
        raise TypeError(f"{type(self).__name__} has no kernel")

    def step_size(self, batch: Batch) -> Tensor:
        """The coefficient of u before any rule, per tensor: the learning rate."""
        return batch.option("lr")

    def scan(self, batches: list[Batch]) -> list[Request]:
        """What has to be summed for :meth:`stable_scale`, one request per batch, before anything is written."""
        raise TypeError(f"{type(self).__name__} has nothing to scan")

    def scanned(self, batches: list[Batch], sums: list[Tensor]) -> tuple[Tensor, int]:
        """From the sums, complete over all shards: a sum over the model, 0-dim float64, and what to divide it by."""
        raise TypeError(f"{type(self).__name__} has nothing to scan")

    def stable_scale(self, batch: Batch) -> Tensor:
        """What stable weight decay multiplies the decay by, per tensor."""
        raise ValueError(f"stable weight decay is not defined for {type(self).__name__} moments")

    def remade_from(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The tensors from which u can be formed once more when the state is updated: it need not be kept."""
        return self.state_names(group)

    def scan_reads(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The tensors that :meth:`scan` reads."""
        return ("gradient",)

    def describe(self, group: Mapping[str, Any]) -> str:
        """One line for ``print(optimizer)``."""
        return type(self).__name__.lower()
