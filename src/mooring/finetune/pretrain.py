"""Training a start from scratch on a task's source."""

from __future__ import annotations

import time

import torch
from torch import nn

from mooring.finetune.cache import Progress
from mooring.finetune.data import Split, batches
from mooring.finetune.spec import TrainSpec
from mooring.finetune.tasks.base import Task

BATCH_SIZE = 64
WEIGHT_DECAY = 1e-2
_REPORT_SECONDS = 0.1


def pretrain(
    task: Task, model: nn.Module, source: Split, steps: int, lr: float, order: torch.Generator, progress: Progress
) -> None:
    """Train the model in place with torch's AdamW (no method of ours has a hand in the starts) and leave it in eval."""
    schedule = TrainSpec(steps=steps, batch_size=BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    model.train()
    told = -_REPORT_SECONDS
    for step, rows in enumerate(batches(len(source), BATCH_SIZE, steps, order)):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.lr_factor(step)
        batch = source.rows(rows)
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if time.perf_counter() - told >= _REPORT_SECONDS or step + 1 == steps:
            told = time.perf_counter()
            progress({"event": "pretrain", "step": step + 1, "steps": steps, "loss": loss.item()})
    model.eval()
