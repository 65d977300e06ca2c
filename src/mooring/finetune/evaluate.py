"""Predictions of a model on every split."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mooring.finetune.data import Examples, TaskData
from mooring.finetune.metrics import Prediction, Scored
from mooring.finetune.tasks.base import Objective


def evaluation_splits(data: TaskData) -> dict[str, Examples]:
    """All splits that are evaluated: the training examples, or a sample of them, and those of the task."""
    return {"train": data.train_sample or data.train, **data.evaluation}


@torch.no_grad()
def predict(task: Objective, model: nn.Module, splits: Mapping[str, Examples]) -> dict[str, Prediction | Scored]:
    """The task's logits of every split with the model in eval mode; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    result = {name: task.logits(model, split) for name, split in splits.items()}
    model.train(was_training)
    return result
