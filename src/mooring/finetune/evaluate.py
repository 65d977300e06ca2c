"""Predictions of a model on every split."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mooring.finetune.data import Split, TaskData
from mooring.finetune.metrics import Prediction

_CHUNK = 1024


def evaluation_splits(data: TaskData) -> dict[str, Split]:
    """All splits that are evaluated: the training examples and those of the task."""
    return {"train": data.train, **data.evaluation}


@torch.no_grad()
def predict(model: nn.Module, splits: Mapping[str, Split]) -> dict[str, Prediction]:
    """Logits of every split with the model in eval mode; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    result = {}
    for name, split in splits.items():
        chunks = [split.inputs[first : first + _CHUNK] for first in range(0, len(split), _CHUNK)]
        logits = torch.cat([model(chunk) for chunk in chunks])
        result[name] = Prediction(logits.float().cpu().numpy(), split.labels.cpu().numpy())
    model.train(was_training)
    return result
