"""What a group may be anchored to, and where the anchor is kept: the group options and their errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

STORES = ("device", "bfloat16", "cpu", "mmap")
ON_FILE = ("cpu", "mmap")
# The options beside `anchor` that every anchored optimizer's groups have; strings or None, as checkpoints want it.
OPTIONS: dict[str, Any] = {"anchor_store": "device", "anchor_file": None, "anchor_hash": None}

MISSING = (
    "{name} resumes in the middle of training but the checkpoint holds no anchor, and the weights of now are not the "
    "pretrained ones. Load a checkpoint that {name} saved, use anchor='zero' or a safetensors file of the pretrained "
    "weights, or start from step 0"
)
NOT_GIVEN = (
    "anchor='given': {what} has no anchor yet; call optimizer.anchor_to(state_dict) with the pretrained weights before "
    "the first step"
)


def check(group: Mapping[str, Any]) -> None:
    """Raise ValueError for an anchor, store or file that makes no sense; does not look at the disk."""
    anchor, store, file = group["anchor"], group.get("anchor_store", "device"), group.get("anchor_file")
    if not (anchor is None or (isinstance(anchor, str) and anchor)):
        raise ValueError(
            "anchor must be 'capture' (the weights at the first real step), 'zero', None (this group is free), or a "
            "safetensors file, a folder of them or of torch.distributed.checkpoint, or a hub id, got "
            f"{anchor!r}; a state dict goes to optimizer.anchor_to(state_dict)"
        )
    if store not in STORES:
        raise ValueError(f"anchor_store must be one of {', '.join(map(repr, STORES))}, got {store!r}")
    if not (file is None or (isinstance(file, str) and file)):
        raise ValueError(f"anchor_file must be the path of a safetensors file to write, or None, got {file!r}")
    if anchor == "capture" and store in ON_FILE and file is None:
        raise ValueError(
            f"anchor_file must be given with anchor_store={store!r}: captured weights are written there, for example "
            "anchor_file='run/anchor.safetensors', and a resumed run reads them from there"
        )
    if anchor == "given" and store in ON_FILE:
        raise ValueError(
            f"anchor_store={store!r} reads a file: save the state dict with safetensors.torch.save_file and pass that "
            "file as anchor"
        )


def is_source(group: Mapping[str, Any]) -> bool:
    """Whether the group's anchors are read by name from files that somebody else wrote."""
    return group.get("anchor") not in ("capture", "given", "zero", None)


def on_file(group: Mapping[str, Any]) -> bool:
    """Whether the group's anchors are captured into a file."""
    return group.get("anchor") == "capture" and group.get("anchor_store") in ON_FILE


def to_capture(group: Mapping[str, Any]) -> bool:
    """Whether that file has not been written yet."""
    return on_file(group) and group.get("anchor_hash") is None


def in_state(group: Mapping[str, Any]) -> bool:
    """Whether the group's anchors are state of the optimizer, and saved with it."""
    return group.get("anchor") in ("capture", "given") and not on_file(group)


def location(group: Mapping[str, Any]) -> str | None:
    """The file, folder or hub id that holds the group's anchors; None where no file does."""
    if is_source(group):
        return str(group["anchor"])
    return str(group["anchor_file"]) if on_file(group) else None


def stored_dtype(group: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The type in which a parameter's anchor is kept; types of two bytes are never converted to another."""
    halve = group.get("anchor_store") == "bfloat16" and dtype.is_floating_point and dtype.itemsize > 2
    return torch.bfloat16 if halve else dtype
