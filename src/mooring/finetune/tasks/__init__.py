"""Embedded tasks: a registry that can be listed without torch, and the pretrained starts.

The functions import torch when they are called, not when this package is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mooring.finetune.tasks.registry import TASKS, TaskInfo, task_info

if TYPE_CHECKING:
    from mooring.finetune.spec import TaskSpec

__all__ = ["TASKS", "TaskInfo", "prepare", "task_info", "zero_shot"]


def prepare(task: TaskSpec, progress: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Render and pretrain what is not in the cache yet; see `mooring.finetune.tasks.starts.prepare`."""
    from mooring.finetune.cache import silent
    from mooring.finetune.tasks import starts

    starts.prepare(task, progress or silent)


def zero_shot(task: TaskSpec, seed: int, device: str = "cpu", threads: int = 1) -> dict[str, float]:
    """The metrics of the untouched start on the splits of one seed."""
    from mooring.finetune.tasks import starts

    return starts.zero_shot(task, seed, device, threads)
