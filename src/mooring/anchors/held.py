"""Anchors that a file holds, as an optimizer uses them: found by name, verified, kept where the group says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.anchors import kinds
from mooring.anchors.names import first, match
from mooring.anchors.sources import Source

Part = Callable[[Tensor], "tuple[slice, ...] | None"]


class Held:
    """The anchors of one optimizer that are not in its state.

    Nothing here is saved, copied or pickled: from the strings in the groups it is found again. Every process opens and
    hashes the files and takes its own part of the tensors.

    Args:
        part: which part of a parameter this process holds, None for all of it.
        local: this process's piece of a parameter.
    """

    def __init__(self, part: Part, local: Callable[[Tensor], Tensor]) -> None:
        self._part, self._local = part, local
        self._sources: dict[str, Source] = {}
        # By location too, and by store, because a user may change a group's options at any time. Keys by name, because
        # parameters that a host replaces before the first step are not to be kept alive.
        self._keys: dict[tuple[str, str], str] = {}
        self._values: dict[tuple[str, str, Tensor], Tensor] = {}

    def find(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Find the tensor of every parameter; reads headers alone.

        Raises:
            ValueError: for missing files, names or tensors, shapes that differ, and names that fit two tensors.
        """
        written = {group["anchor_file"] for group in groups if kinds.on_file(group) and not kinds.to_capture(group)}
        by_location: dict[str, list[tuple[str, Tensor]]] = {}
        for i, group in enumerate(groups):
            where = kinds.location(group)
            if kinds.to_capture(group):
                if where in written:
                    raise ValueError(
                        f"anchor_file={where!r} is written and other groups are anchored to it; give the new group an "
                        "anchor_file of its own"
                    )
            elif where is not None:
                source = self._open(where)  # a word that is no file is a better error than names that are missing
                if group["anchor_store"] == "mmap" and not source.mapped:
                    raise ValueError(
                        f"anchor_store='mmap' maps safetensors files, and anchor={where!r} is a checkpoint of "
                        "torch.distributed.checkpoint; use 'device', 'bfloat16' or 'cpu', or save safetensors"
                    )
                by_location.setdefault(where, []).extend(named(group, i))
        for where, members in by_location.items():
            self._match(self._open(where), members, captured=where in written)

    def _open(self, where: str) -> Source:
        if where not in self._sources or self._sources[where].stale():
            self._sources[where] = Source(where)
        return self._sources[where]

    def _match(self, source: Source, members: Sequence[tuple[str, Tensor]], captured: bool) -> None:
        names = [name for name, _ in members]
        keys = {n: n for n in names if n in set(source.keys)} if captured else match(names, source.keys, source.anchor)
        missing = [name for name in names if name not in keys]
        if missing:
            raise ValueError(
                f"anchor={source.anchor!r} has no tensor for {first(missing)}; it has {first(sorted(source.keys))}. "
                "Put new parameters into a group with anchor=None, as param_groups(model, anchor=...) does"
            )
        for name, p in members:
            check_shape(name, tuple(p.shape), tuple(source.shape(keys[name])), source.anchor)
            self._keys[source.anchor, name] = keys[name]

    def verify(self, groups: Sequence[dict[str, Any]]) -> None:
        """Compare the files with the hashes in the groups, and fill those that are None.

        Raises:
            ValueError: for files that changed or are missing.
        """
        for group in groups:
            where = kinds.location(group)
            if where is not None and not kinds.to_capture(group):
                group["anchor_hash"] = self._open(where).verify(group.get("anchor_hash"))

    def of(self, owners: Sequence[Tensor], group: Mapping[str, Any], groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        """The anchors of parameters, this process's part of each, where the group's store keeps them.

        Args:
            owners: the parameters; all in groups of the same source and store.
            group: one of these groups.
            groups: all groups, where the names are.
        """
        where, store = str(kinds.location(group)), str(group["anchor_store"])
        new = [p for p in owners if (where, store, p) not in self._values]
        if new:
            names = {p: name for i, g in enumerate(groups) if kinds.location(g) == where for name, p in named(g, i)}
            if any((where, names[p]) not in self._keys for p in new):
                self.find(groups)
            self.verify(groups)
            source, rounded = self._sources[where], Rounding()
            known = {p for g in groups for p in g["params"]}
            self._values = {key: value for key, value in self._values.items() if key[2] in known}
            for p in new:
                key = self._keys[where, names[p]]
                check_shape(names[p], tuple(p.shape), tuple(source.shape(key)), where)
                self._values[where, store, p] = self._read(source, key, p, group, rounded)
            rounded.announce()
        for p in owners:
            value, device = self._values[where, store, p], self._local(p).device
            if store not in kinds.ON_FILE and value.device != device:
                self._values[where, store, p] = value.to(device)
        return [self._values[where, store, p] for p in owners]

    def _read(self, source: Source, key: str, p: Tensor, group: Mapping[str, Any], rounded: Rounding) -> Tensor:
        piece, value = self._local(p), source.read(key, self._part(p))
        store = group["anchor_store"]
        if store == "mmap":
            return value
        value = value.to(p.dtype)
        if store == "cpu":
            value = value.clone()
            return value.pin_memory() if piece.device.type == "cuda" else value
        kept = value.to(kinds.stored_dtype(group, p.dtype), copy=True)
        rounded.add(value, kept)
        return kept.to(piece.device)


def fetch(values: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Held anchors on the parameters' device and in their type; what is already so is not copied."""
    return [t.to(device, non_blocking=True).to(dtype) for t in values]


def check_shape(name: str, shape: tuple[int, ...], anchor: tuple[int, ...], source: str) -> None:
    """Raise ValueError where a parameter has another shape than its anchor."""
    if shape != anchor:
        raise ValueError(
            f"anchor={source!r}: parameter {name!r} has shape {shape}, its anchor {anchor}. A resized tensor has no "
            "pretrained value for its new rows: put it into a group with anchor=None (param_groups(..., head=...))"
        )


def named(group: Mapping[str, Any], index: int) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) of a group; captured tensors without names are known by their position."""
    names = group.get("param_names")
    if names is None and kinds.is_source(group):
        raise ValueError(
            f"anchor={group['anchor']!r} is read by name, and these parameters have none: pass "
            "model.named_parameters() or mo.param_groups(model, anchor=...) to the optimizer"
        )
    for i, p in enumerate(group["params"]):
        yield (names[i] if names is not None else f"{index}.{i}"), p


class Rounding:
    """What keeping anchors in bfloat16 costs them, for one warning."""

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, exact: Tensor, kept: Tensor) -> None:
        """Count a tensor, before and after."""
        if exact.dtype != kept.dtype and exact.device.type != "meta":
            self._errors.append((exact - kept.to(exact.dtype)).norm().double())
            self._squares.append(exact.norm().double())

    def announce(self) -> None:
        """Warn where the rounding was not exact. Waits for the device where tensors were counted."""
        if self._errors:
            device = self._errors[0].device
            error, size = (float(torch.stack([t.to(device) for t in x]).norm()) for x in (self._errors, self._squares))
            if error > 0:
                warnings.warn(
                    f"anchor_store='bfloat16' moves the anchor by {error / size:.1e} of its norm: p - anchor is not "
                    "zero at the first step, selective projection may act from there on, and drifts that small are "
                    "not resolved. It is exact for weights that come from a bfloat16 file",
                    UserWarning,
                    stacklevel=2,
                )
