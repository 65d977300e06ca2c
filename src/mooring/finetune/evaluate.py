"""Predictions of a model on every split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from mooring.finetune.data import Examples, Some, TaskData
from mooring.finetune.metrics import Prediction, Scored, score
from mooring.finetune.tasks.base import Objective
from mooring.finetune.team import ALONE, Team


def evaluation_splits(data: TaskData) -> dict[str, Examples]:
    """All splits that are evaluated: the training examples, or a sample of them, and those of the task."""
    return {"train": data.train_sample or data.train, **data.evaluation}


@torch.no_grad()
def predict(
    task: Objective, model: nn.Module, splits: Mapping[str, Examples], team: Team = ALONE
) -> dict[str, Prediction | Scored]:
    """The task's logits of every split with the model in eval mode; its mode is put back afterwards.

    Of several processes each takes its share of a split, and all of them get all predictions.
    """
    was_training = model.training
    model.eval()
    result = {name: _own_logits(task, model, split, team) for name, split in splits.items()}
    model.train(was_training)
    if team.size == 1:
        return {name: found for name, found in result.items() if found is not None}
    shares = team.from_all(result)
    return {name: _joined([share[name] for share in shares if share[name] is not None]) for name in splits}


def _own_logits(task: Objective, model: nn.Module, split: Examples, team: Team) -> Prediction | Scored | None:
    if team.size == 1 or (task.chunk == 0 and team.first):
        return task.logits(model, split)
    if task.chunk == 0:
        task.logits(model, split)
        return None
    rows = torch.arange(len(split))
    own = rows[team.part(len(split))]
    found = task.logits(model, Some(split, own)) if len(own) else None
    # The model's weights are gathered by all: who has one call less to make than the others makes one for nothing.
    longest = -(-len(split) // team.size)
    for _ in range(-(-longest // task.chunk) - -(-len(own) // task.chunk)):
        task.logits(model, Some(split, rows[:1]))
    return found


def _joined(parts: list[Prediction | Scored]) -> Prediction | Scored:
    whole = [part for part in parts if isinstance(part, Prediction)]
    if len(whole) == len(parts):
        return Prediction(*(np.concatenate([getattr(p, name) for p in whole]) for name in ("logits", "labels")))
    scored = [score(part) for part in parts]
    return Scored(*(np.concatenate([getattr(p, name) for p in scored]) for name in ("log_p", "confidence", "correct")))
