"""Which tensors step together. Made anew only when parameters, gradients or the kind of options change."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.kernels import choice
from mooring.moments.base import Moments
from mooring.step.batch import Batch, host_value_is_remote
from mooring.step.rule import Rule
from mooring.step.shards import Sharding, local, sharding

# Elements per batch: on a CPU small enough that a batch's temporaries stay near the cache and do not double the memory
# of the process, on an accelerator large enough that launches do not matter.
_BATCH_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}

Member = tuple[Tensor, dict[str, Any], int]


class Plan:
    """Batches of the parameters that have a gradient, and (``empty``) those of them without elements.

    The latter have nothing to move, but state they must have: a checkpoint lacking it does not load strictly.
    """

    def __init__(
        self, key: Hashable, groups: Sequence[dict[str, Any]], moments: Moments, rules: Sequence[Rule]
    ) -> None:
        self.key = key
        # Which state dictionaries were found complete: as long as they are the same objects, nothing has to be added.
        self.filled: list[int] | None = None
        families: dict[tuple[Hashable, torch.device, torch.dtype, Sharding], list[Member]] = {}
        self.empty: list[tuple[Tensor, dict[str, Any]]] = []
        position = 0
        for group in groups:
            kind = _kind(group, moments, rules)
            for p in group["params"]:
                position += 1
                if p.grad is None:
                    continue
                if p.numel() == 0:
                    self.empty.append((p, group))
                    continue
                split = sharding(p, group.get("row_dim", 0))
                family = (kind, local(p).device, p.dtype, split)
                families.setdefault(family, []).append((p, group, position))
        self.batches: list[Batch] = []
        for (_, device, _, split), members in families.items():
            active = tuple(rule for rule in rules if rule.active(members[0][1]))
            limit = _BATCH_ELEMENTS.get(device.type, _BATCH_ELEMENTS["cuda"])
            self.batches += _batches(members, active, moments, split, limit)

    @staticmethod
    def signature(
        groups: Sequence[dict[str, Any]],
        gradients: Sequence[Sequence[Tensor | None]],
        moments: Moments,
        rules: Sequence[Rule],
    ) -> Hashable:
        """What a plan depends on. Options enter by which groups share them, so a schedule does not change it.

        Asked at every step, so for thousands of small tensors it is made of lists that cost little each.
        """
        kinds: dict[Hashable, int] = {}
        out = []
        for group, given in zip(groups, gradients):
            kind = _kind(group, moments, rules)
            params = group["params"]
            members = (
                tuple(map(id, params)),
                tuple([p.shape for p in params]),
                tuple([p.device for p in params]),
                tuple([p.dtype for p in params]),
                tuple([g is None for g in given]),
            )
            out.append((kinds.setdefault(kind, len(kinds)), kind[1:], id(group), members))
        return tuple(out)


def _batches(
    members: Sequence[Member], rules: Sequence[Rule], moments: Moments, split: Sharding, limit: int
) -> list[Batch]:
    def make(part: Sequence[Member]) -> Batch:
        owners, own_groups, positions = zip(*part)
        return Batch(owners, own_groups, rules, moments, split, positions)

    ordered = [member for part in _parts(members, limit) for member in part]
    together = make(ordered)
    if together.compiled is not None and not together.draws():
        return [together]  # kernels have no temporaries
    parts = _parts(members, limit)
    return [together] if len(parts) == 1 else [make(part) for part in parts]


def _kind(group: dict[str, Any], moments: Moments, rules: Sequence[Rule]) -> tuple[Hashable, ...]:
    """What all groups of one batch must agree on; the first item is free to change from step to step."""
    return (
        moments.shared(group),
        tuple([(rule.active(group), rule.shared(group)) for rule in rules]),
        group.get("anchor"),
        group.get("anchor_store"),
        group.get("anchor_file"),
        group.get("row_dim"),
        host_value_is_remote(group["lr"]),
        group.get("rounding"),
        group.get("state_dtype"),
        group.get("backend"),
        choice.wanted(),
    )


def _parts(members: Sequence[Member], limit: int) -> list[list[Member]]:
    """Split into runs of at most ``limit`` elements, counted over all shards so that every process splits alike.

    Tensors of one shape come together first, because equal rows share a matrix.
    """
    first: dict[torch.Size, int] = {}
    for i, (p, _, _) in enumerate(members):
        first.setdefault(p.shape, i)
    ordered = sorted(members, key=lambda m: first[m[0].shape])
    parts: list[list[Member]] = []
    size = limit + 1
    for member in ordered:
        if size + member[0].numel() > limit:
            parts.append([])
            size = 0
        parts[-1].append(member)
        size += member[0].numel()
    return parts
