"""Anchors captured at the first step that can move the weights, kept in the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("capture", "zero", None)

MISSING = (
    "{name} resumes in the middle of training but the checkpoint holds no anchor, and the weights of now are not the "
    "pretrained ones. Load a checkpoint that {name} saved, use anchor='zero', or start from step 0"
)


def check(group: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown kind of anchor."""
    if group["anchor"] not in KINDS:
        raise ValueError(
            f"anchor must be 'capture' (the weights at the first real step), 'zero', or None (this group is free), "
            f"got {group['anchor']!r}"
        )
