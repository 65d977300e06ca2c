"""Which tensors step together. Made anew only when parameters, gradients or the kind of options change."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import attrgetter, eq
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

_SHAPE, _DEVICE, _DTYPE = attrgetter("shape"), attrgetter("device"), attrgetter("dtype")

Member = tuple[Tensor, dict[str, Any], int]


class Plan:
    """Batches of the parameters that have a gradient, and (``empty``) those of them without elements.

    The latter have nothing to move, but state they must have: a checkpoint lacking it does not load strictly.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        gradients: Sequence[Sequence[Tensor | None]],
        moments: Moments,
        rules: Sequence[Rule],
    ) -> None:
        self._kinds = [_kind(group, moments, rules) for group in groups]
        self._members = [_Members(group, given) for group, given in zip(groups, gradients)]
        # Which state dictionaries were found complete: as long as they are the same objects, nothing has to be added.
        self.filled: list[int] | None = None
        families: dict[tuple[Hashable, torch.device, torch.dtype, Sharding], list[Member]] = {}
        self.empty: list[tuple[Tensor, dict[str, Any]]] = []
        position = 0
        for group, kind in zip(groups, self._kinds):
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

    def fits(
        self,
        groups: Sequence[dict[str, Any]],
        gradients: Sequence[Sequence[Tensor | None]],
        moments: Moments,
        rules: Sequence[Rule],
    ) -> bool:
        """Whether everything a plan depends on is as it was when this one was made."""
        if len(groups) != len(self._members):
            return False
        kinds = [_kind(group, moments, rules) for group in groups]
        same = kinds == self._kinds or _sharing(kinds) == _sharing(self._kinds)
        return same and all(map(_Members.are, self._members, groups, gradients))


def _sharing(kinds: Sequence[tuple[Hashable, ...]]) -> list[Hashable]:
    """What of the groups' kinds a plan depends on: which agree, so that a schedule changes nothing."""
    order: dict[Hashable, int] = {}
    return [(order.setdefault(kind, len(order)), kind[1:]) for kind in kinds]


class _Members:
    """The parameters of a group as a plan found them.

    Looked at in every step, so for thousands of small tensors nothing is kept of a look: what is equal is passed over
    by iterators that leave no objects for the garbage collector to walk over.
    """

    def __init__(self, group: dict[str, Any], gradients: Sequence[Tensor | None]) -> None:
        params = group["params"]
        self._group = id(group)
        self._ids = list(map(id, params))
        self._shapes = list(map(_SHAPE, params))
        self._devices = list(map(_DEVICE, params))
        self._dtypes = list(map(_DTYPE, params))
        self._without = [g is None for g in gradients]

    def are(self, group: dict[str, Any], gradients: Sequence[Tensor | None]) -> bool:
        """Whether a group still holds these parameters, of these shapes, types and places."""
        params = group["params"]
        return (
            id(group) == self._group
            and list(map(id, params)) == self._ids
            and [g is None for g in gradients] == self._without
            and all(map(eq, map(_SHAPE, params), self._shapes))
            and all(map(eq, map(_DTYPE, params), self._dtypes))
            and all(map(eq, map(_DEVICE, params), self._devices))
        )


def _batches(
    members: Sequence[Member], rules: Sequence[Rule], moments: Moments, split: Sharding, limit: int
) -> list[Batch]:
    def make(part: Sequence[Member]) -> Batch:
        owners, own_groups, positions = zip(*part)
        return Batch(owners, own_groups, rules, moments, split, positions)

    ordered = [member for part in _parts(members, limit) for member in part]
    together = make(ordered)
    if together.compiled is not None and not together.compiled.has_temporaries:
        return [together]
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
