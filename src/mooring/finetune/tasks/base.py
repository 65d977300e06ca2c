"""What a task provides. A task is one file with one subclass, and one row of the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mooring.finetune.data import Split, TaskData
from mooring.finetune.spec import TaskSpec


class Task(ABC):
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

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, initialised from torch's global generator (which the caller has seeded)."""

    @abstractmethod
    def source(self, start: int) -> Split:
        """The pretraining examples of one start."""

    @abstractmethod
    def fixed(self) -> dict[str, Tensor]:
        """What all seeds share and is slow to make: made once and cached. Holds ``retention.inputs``/``.labels``."""

    @abstractmethod
    def data(self, seed: int, fixed: dict[str, Tensor]) -> TaskData:
        """The splits of one seed."""
