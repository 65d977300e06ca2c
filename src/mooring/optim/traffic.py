"""What a step sends to other processes, found by taking it on tensors without values."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from mooring.optim.around import Around
from mooring.optim.base import Optimizer
from mooring.step.shards import is_sharded, like_shard, local


@dataclass(frozen=True)
class Collective:
    """One reduction over processes.

    Attributes:
        bytes: what this process hands over and gets back.
        processes: how many take part.
    """

    bytes: int
    processes: int

    @property
    def sent(self) -> float:
        """Bytes that each process sends in a ring: ``2 (n - 1) / n`` times what it hands over."""
        return 2 * (self.processes - 1) / self.processes * self.bytes


def communication(optimizer: Optimizer) -> list[Collective]:
    """The reductions over processes that one step of this process takes, in their order. Sends and changes nothing.

    They follow from the recipe, the shapes and the placements: a twin of the optimizer with the same groups takes its
    step on tensors without values, as split as the parameters are, and what it would send is noted instead. So it is
    the step's own account, and an empty list where nothing is sharded or the recipe is pointwise. All parameters that
    require gradients count as having one. A step that telemetry records sends one more. Where sums of slices of a mesh
    travel with those of the mesh, the room for them is what this process needs; what others need it cannot know.

    Args:
        optimizer: one of this package, or what :func:`mooring.wrap` returned; then without what the wrapped one sends.

    Raises:
        TypeError: for another optimizer.

    Example:
        >>> import torch, mooring as mo
        >>> mo.communication(mo.AdamSPD(torch.nn.Linear(8, 4).parameters()))
        []
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"communication knows mooring's optimizers and wrap(...), got {type(optimizer).__name__}")
    if not dist.is_available() or not dist.is_initialized():
        return []
    noted = Noting()
    with noted:
        _twin(optimizer).step()
    return noted.found


class Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reductions over processes inside the block are noted and not taken."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Collective] = []

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.c10d.allreduce_.default:
            return func(*args, **(kwargs or {}))
        from torch._C._distributed_c10d import FakeWork

        tensors, group = args[:2]
        self.found.append(
            Collective(sum(t.numel() * t.element_size() for t in tensors), dist.ProcessGroup.unbox(group).size())
        )
        return tensors, FakeWork().boxed()


def _twin(optimizer: Optimizer) -> Optimizer:
    """The same recipe and groups on parameters without values or state, about to take a step that moves them."""
    groups = [_without_values(group) for group in optimizer.param_groups]
    state = optimizer.__getstate__()
    state["_processes"] = copy.deepcopy(state["_processes"])  # what they agree on is theirs
    if isinstance(optimizer, Around):  # what it wraps may be anything, and only the rules' part is asked for
        base = torch.optim.SGD([p for group in groups for p in group["params"]], foreach=False)
        base.defaults.update({**optimizer.defaults, "foreach": False, "momentum": 0, "nesterov": False, "lr": 1.0})
        base.param_groups = [{**base.defaults, **group, "momentum": 0, "nesterov": False} for group in groups]
        state = {**state, "base": base, "_given": {}}
    else:
        state = {**state, "param_groups": groups, "state": defaultdict(dict)}
    twin: Optimizer = object.__new__(type(optimizer))
    twin.__setstate__(state)
    return twin


def _without_values(group: dict[str, Any]) -> dict[str, Any]:
    params = []
    for p in group["params"]:
        if p.requires_grad:
            params.append(_empty(p).requires_grad_())
            params[-1].grad = _empty(p)
    anchored = group.get("anchor") not in (None, "zero")
    return {
        **group,
        "params": params,
        "lr": 1.0,
        **({"anchor": "capture", "anchor_store": "device", "anchor_file": None} if anchored else {}),
    }


def _empty(p: Tensor) -> Tensor:
    part = torch.empty_like(local(p.detach()), device="meta")
    return like_shard(part, p.detach()) if is_sharded(p) else part
