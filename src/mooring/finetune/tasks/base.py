"""What a task provides. A task is one file with one subclass, and one row of the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mooring.finetune.data import Examples, Split, TaskData
from mooring.finetune.metrics import Prediction, Scored
from mooring.finetune.spec import TaskSpec


class Objective(ABC):
    """A model, what its loss is, and what it predicts.

    Attributes:
        methods: Methods of the model beside ``forward`` that `loss` and `logits` call.
        chunk: Examples to one call of the model in `logits`; 0 where it needs the whole split at once.
    """

    methods: ClassVar[tuple[str, ...]] = ()
    chunk: int = 1024

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, initialised from torch's global generator (which the caller has seeded)."""

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        """The mean loss of one batch: cross-entropy over the last dimension of the logits, for every label."""
        logits = model(batch.inputs)
        return cross_entropy(logits.flatten(0, -2), batch.labels.flatten())

    def counted(self, batch: Split) -> int:
        """How many labels `loss` is the mean over: its weight where a batch is split among processes."""
        return batch.labels.numel()

    def logits(self, model: nn.Module, split: Examples) -> Prediction | Scored:
        """Logits, one row per label, of a split whose model is in evaluation mode without gradients."""
        chunks = [split.rows(rows) for rows in torch.split(torch.arange(len(split)), self.chunk)]
        logits = torch.cat([model(chunk.inputs).flatten(0, -2) for chunk in chunks])
        labels = torch.cat([chunk.labels.flatten() for chunk in chunks])
        return Prediction(logits.float().cpu().numpy(), labels.cpu().numpy())


class Task(Objective):
    """A source to pretrain on, a target to fine-tune on, and ways in which the world may differ from the target.

    Attributes:
        version: Raise it when what the task draws or renders changes; cached starts of other versions are not used.
        packages: The distributions whose version decides what is drawn; part of the cache's key.
        pretrain_lr: The learning rate of the pretraining.
    """

    version: ClassVar[int]
    packages: ClassVar[tuple[str, ...]]
    pretrain_lr: ClassVar[float] = 3e-3

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    def made_from(self) -> dict[str, str]:
        """What else decides what is drawn, beside `packages`; part of the cache's key."""
        return {}

    @abstractmethod
    def source(self, start: int) -> Split:
        """The pretraining examples of one start."""

    @abstractmethod
    def fixed(self) -> dict[str, Tensor]:
        """What all seeds share and is slow to make: made once and cached. Holds ``retention.inputs``/``.labels``."""

    @abstractmethod
    def data(self, seed: int, fixed: dict[str, Tensor]) -> TaskData:
        """The splits of one seed."""
