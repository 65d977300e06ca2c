"""What a trial is, as data: everything that determines its result and nothing else. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mooring.finetune.tasks.registry import task_info

RESULT_VERSION = 1
"""Part of every trial's key. Raise it when a change to this package changes what a trial computes, so that a folder
of finished trials is never continued with trials that mean something else."""

_OPTIMIZER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class _Spec(BaseModel):
    # Unknown keys are errors: a misspelt option that is silently ignored would make a comparison wrong.
    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodSpec(_Spec):
    """An optimizer class and the keyword arguments it is built with.

    Attributes:
        label: The name under which results are shown; it does not enter the trial's key.
        optimizer: ``"mooring:AdamP"``, ``"torch.optim:NAdam"`` or any importable ``"module:Class"``.
        options: The keyword arguments of the class, ``lr`` among them. Lists reach the optimizer as tuples.
    """

    label: str = Field(min_length=1)
    optimizer: str
    options: dict[str, Any] = {}

    @field_validator("optimizer")
    @classmethod
    def _module_and_class(cls, value: str) -> str:
        if not _OPTIMIZER.fullmatch(value):
            raise ValueError(f"{value!r} is not of the form 'module:Class', for example 'torch.optim:NAdam'")
        return value

    @field_validator("options")
    @classmethod
    def _plain_data(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"options must be plain numbers, strings, booleans or lists: {error}") from None
        return plain


class TaskSpec(_Spec):
    """Which task, and how its pretrained starts are made.

    Attributes:
        name: A name of the registry of tasks.
        data_seed: Seeds everything drawn for the task: pretraining, splits, corruptions.
        starts: How many pretrained starts there are; a trial with seed ``s`` uses start ``s % starts``.
        pretrain_steps: Optimizer steps of the pretraining; 0 stands for the task's own number, which replaces it.
        pretrain_examples: Source examples of the pretraining; 0 likewise.
    """

    name: str = "vision-fonts2digits"
    data_seed: int = Field(default=0, ge=0)
    starts: int = Field(default=5, ge=1)
    pretrain_steps: int = Field(default=0, ge=0)
    pretrain_examples: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, data: Any) -> Any:
        # Resolved here rather than when the task runs, so that a saved specification says what was done.
        if not isinstance(data, dict):
            return data
        info = task_info(str(data.get("name", cls.model_fields["name"].default)))
        own = {"pretrain_steps": info.pretrain_steps, "pretrain_examples": info.pretrain_examples}
        return {**data, **{name: value for name, value in own.items() if not data.get(name)}}


class TrainSpec(_Spec):
    """How the fine-tuning runs, the same for every method of a comparison.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples per step.
        schedule: What the learning rate does after the warm-up: falls to zero along a cosine, or linearly, or stays.
        warmup: The share of the steps over which the learning rate rises linearly to its full value.
        eval_every: Steps between evaluations; the start and the last step are always evaluated.
    """

    steps: int = Field(default=300, ge=1)
    batch_size: int = Field(default=32, ge=2)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    eval_every: int = Field(default=30, ge=1)

    def lr_factor(self, step: int) -> float:
        """What multiplies the learning rate at ``step`` (counted from 0); never zero, so every step trains."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / (self.steps - warm)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.schedule == "linear" else 1.0


class TrialSpec(_Spec):
    """One trial: a method, a task, a way to train and a seed."""

    method: MethodSpec
    task: TaskSpec = Field(default_factory=TaskSpec)
    train: TrainSpec = Field(default_factory=TrainSpec)
    seed: int = Field(ge=0)
    threads: int = Field(default=1, ge=1)
    device: str = "cpu"

    @property
    def start(self) -> int:
        """The index of the pretrained start this trial begins from."""
        return self.seed % self.task.starts

    def key(self) -> str:
        """A short hash of everything that determines the result; the method's label is not part of it."""
        content = self.model_dump(mode="json")
        del content["method"]["label"]
        content["version"] = RESULT_VERSION
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
