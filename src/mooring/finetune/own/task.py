"""What all tasks on data of one's own share: the model they are given, and predictions that fit into memory."""

from __future__ import annotations

import importlib
from abc import abstractmethod

import torch
from torch import Tensor, nn

from mooring.finetune.data import Examples, TaskData
from mooring.finetune.metrics import Prediction, Scored
from mooring.finetune.task_spec import OwnTaskSpec
from mooring.finetune.tasks.base import Objective
from mooring.finetune.tasks.registry import task_info

KEPT_LOGITS = 1 << 22
"""Splits with more logits than this (16 MB) are kept as three numbers per label."""
IGNORED = -100
"""The label of tokens that nobody has to predict."""


class OwnTask(Objective):
    """A model from a folder, the hub or a configuration, and examples on disk."""

    def __init__(self, spec: OwnTaskSpec) -> None:
        self.given = spec
        self.chunk = spec.eval_batch

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions beside torch that decide what is computed."""
        return () if self.given.model.builtin else ("transformers",)

    @abstractmethod
    def data(self, seed: int) -> TaskData:
        """The splits of one seed."""

    def head(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the model's parameters that have no pretrained value."""
        return tuple(getattr(model, "new", ()))

    def logits(self, model: nn.Module, split: Examples) -> Prediction | Scored:
        """Logits of all labels, or where they are too many, what the metrics need of them."""
        kept: list[Tensor] = []
        labels: list[Tensor] = []
        scored: list[tuple[Tensor, Tensor, Tensor]] = []
        count = 0
        for rows in torch.split(torch.arange(len(split)), self.chunk):
            batch = split.rows(rows)
            logits, wanted = model(batch.inputs).flatten(0, -2), batch.labels.flatten()
            logits, wanted = logits[wanted != IGNORED], wanted[wanted != IGNORED]
            count = max(count, logits.shape[-1] * len(wanted) * len(split) // len(rows))
            scored += [_score(*part) for part in zip(*_parts(logits, wanted))]
            if count <= KEPT_LOGITS:
                kept.append(logits.float().cpu())
                labels.append(wanted.cpu())
        if count <= KEPT_LOGITS:
            return Prediction(torch.cat(kept).numpy(), torch.cat(labels).numpy())
        log_p, confidence, correct = (torch.cat(column).numpy() for column in zip(*scored))
        return Scored(log_p, confidence, correct)


def _parts(logits: Tensor, labels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    # A vocabulary of 267 735 words in float64 would take more memory than the model's own work.
    rows = max(1, (1 << 24) // logits.shape[-1])
    return torch.split(logits, rows), torch.split(labels, rows)


def _score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = logits.double().log_softmax(dim=-1)
    confidence, first = log_p.max(dim=-1)
    return log_p.gather(1, labels[:, None])[:, 0].cpu(), confidence.exp().cpu(), (first == labels).cpu()


def load_own_task(spec: OwnTaskSpec) -> OwnTask:
    """The implementation of a task."""
    module, _, cls = task_info(spec.name).implementation.partition(":")
    task: OwnTask = getattr(importlib.import_module(module), cls)(spec)
    return task
