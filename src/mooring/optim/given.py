"""What hosts hand over in place of a model's whole parameters: flat pieces, some of the tensors, one at a time."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.anchors import kinds
from mooring.moments.base import Moments
from mooring.optim.common import describe_screen, screens
from mooring.step.rule import Rule

_FSDP1 = "FSDP version 1"
INSTEAD = (
    "use fully_shard (FSDP2); or a recipe that works element by element, such as AdamW, with the host's own clipping"
)


def called(group: Mapping[str, Any], i: int) -> str:
    """How errors name a parameter of a group."""
    names = group.get("param_names")
    return f"parameter {names[i]!r}" if names else f"parameter {i} of its group"


def flattened_by(p: Tensor) -> str | None:
    """Which host has made a parameter a flat piece, where the parameter says so; else None."""
    if getattr(p, "_fsdp_flattened", False):
        return _FSDP1
    return "ZeRO stage 3" if hasattr(p, "ds_id") else None


class Given:
    """The parameters as they were given, to notice what a host puts in their place.

    Keeps none of them alive, and holds no weak reference: torch swaps no tensor that has one, and then moves no sharded
    module to another device (``to_empty``, ``to``) whose optimizer is there already.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._groups: list[list[tuple[int, torch.Size]]] = []  # by identity, which a dead tensor may hand on
        for group in groups:
            self.add(group)

    def add(self, group: Mapping[str, Any]) -> None:
        """Remember the parameters of a group; to be called for all groups in their order."""
        self._groups.append([(id(p), p.shape) for p in group["params"]])

    def replaced(self, groups: Sequence[Mapping[str, Any]]) -> tuple[int, Tensor] | None:
        """A flat tensor that stands where parameters were given, and the number of its group; None if there is none.

        Hosts also swap parameters for others of the same shape (FSDP2, float32 copies), and users swap one layer for
        another. Flat pieces are what is left where every parameter has at most one dimension and one of them is
        neither a given one nor of the shape of the one in whose place it stands.
        """
        now = [(i, p) for i, group in enumerate(groups) for p in group["params"] if p.numel()]
        if any(p.ndim > 1 for _, p in now):
            return None
        known = {identity: shape for given in self._groups for identity, shape in given}
        for i, p in now:
            if known.get(id(p)) == p.shape:
                continue
            given = [shape for _, shape in self._groups[i]] if i < len(self._groups) else []
            if given != [q.shape for q in groups[i]["params"]]:
                return i, p
        return None


def reads_whole(group: Mapping[str, Any], moments: Moments, rules: Sequence[Rule]) -> str | None:
    """The first stage of a group's recipe that reads more than one element at a time, in words."""
    if reads_model(group, moments):
        return reads_model(group, moments)
    for rule in rules:
        if rule.active(group) and rule.scope in ("row", "tensor"):
            return rule.describe(group)
    if any(rule.active(group) and rule.needs_anchor for rule in rules) and kinds.location(group) is not None:
        return f"an anchor in a file ({kinds.location(group)})"
    return None


def reads_model(group: Mapping[str, Any], moments: Moments) -> str | None:
    """The first stage of a group's recipe that reads all parameters of the model, in words."""
    if screens(group):
        return describe_screen(group)
    return f"{moments.describe(group)} with its mean over the model" if moments.scans else None


def refuse_flat(name: str, host: str, stage: str, instead: str = INSTEAD) -> None:
    """Raise ValueError for a parameter that says that it is a flat piece."""
    raise ValueError(
        f"params: {name} is a flat piece of {host}, which hides the rows, shapes and sums that {stage} reads; {instead}"
    )


def refuse_replaced(number: int, p: Tensor, stage: str, instead: str = INSTEAD) -> None:
    """Raise ValueError for what a host has put in the place of the parameters given."""
    raise ValueError(
        f"params: group {number} now holds a flat tensor of {p.numel()} elements in the place of the parameters that "
        "were given, as ZeRO, other optimizers on flat masters and Megatron's distributed optimizer partition them; it "
        f"hides the rows, shapes and sums that {stage} reads; {instead}"
    )


def refuse_part(title: str, count: int, stage: str) -> None:
    """Raise ValueError where a host is seen to hand over some of a model's parameters, which has no sign on them.

    Args:
        title: the optimizer's name.
        count: how many parameters it got.
        stage: what reads the whole model.
    """
    if _built_by_zero_redundancy():
        raise ValueError(
            f"params: ZeroRedundancyOptimizer gives {title} some of the parameters on each process, and {stage} "
            "reads the whole model; use fully_shard (FSDP2), or a recipe without such a stage, AdamW or AdamSPD"
        )
    if count == 1:
        raise ValueError(
            f"params: {title} got one parameter, and {stage} reads the whole model. A host that makes an optimizer for "
            "each parameter (steps inside the backward pass, layer-wise or offloaded steps) needs a recipe without "
            "such a stage, AdamW or AdamSPD; else make one optimizer over all parameters. Where this parameter is the "
            "whole model, say so with one_parameter=True"
        )


def refuse_inside_backward(title: str, stage: str) -> None:
    """Raise RuntimeError where a step is taken in the middle of a backward pass, when gradients are still missing."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{title}.step() was called inside the backward pass, and {stage} reads the gradients of the whole model; "
            "make one optimizer over all parameters and step after backward, or use a recipe without such a stage"
        )


def _built_by_zero_redundancy() -> bool:
    """Whether a ZeroRedundancyOptimizer of several processes is making this optimizer.

    What it hands over are ordinary parameters, so only the caller tells.
    """
    module: Any = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe() if module is not None else None
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, module.ZeroRedundancyOptimizer) and owner.world_size > 1:
            return True
        frame = frame.f_back
    return False
