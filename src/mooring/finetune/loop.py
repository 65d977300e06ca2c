"""The training loop: the same for every method, timed without evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mooring.finetune.data import Examples, Split, batches
from mooring.finetune.errors import TrialError
from mooring.finetune.optimizers import needs_closure
from mooring.finetune.seeds import generator
from mooring.finetune.spec import TrialSpec
from mooring.finetune.tasks.base import Objective
from mooring.finetune.team import ALONE, Team
from mooring.perturb.frame import Perturbed


@dataclass
class Progress:
    """What is known between two steps. Seconds are training time: evaluation and reporting are not in them."""

    step: int = 0
    lr: float = 0.0
    loss: float = math.nan
    losses_since_evaluation: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    update_seconds: list[float] = field(default_factory=list)
    gradient_evaluations: int = 0
    full_lr: list[float] = field(default_factory=list)  # of every group, as the schedule multiplies it

    @property
    def train_seconds(self) -> float:
        """The training time so far."""
        return math.fsum(self.step_seconds)


def train(
    spec: TrialSpec,
    task: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    between_steps: Callable[[Progress], None],
    team: Team = ALONE,
    progress: Progress | None = None,
) -> Progress:
    """Fine-tune the model in place; ``between_steps`` is called before the first step and after every step.

    Batch normalization stays in train mode. A method that takes several gradients per step takes them all on the step's
    one batch. The order of the examples depends on the seed alone, not on the method.

    Args:
        spec: How to train.
        task: What the loss is.
        model: Split among the processes of ``team``, where there are several.
        optimizer: Of the model's parameters.
        examples: What to train on.
        between_steps: Called with what is known.
        team: The processes, each of which takes its part of every batch.
        progress: Where an earlier start has come to; model and optimizer are as they were there.

    Raises:
        TrialError: The loss is not finite, or the optimizer's step raised.
    """
    order = batches(len(examples), spec.train.batch_size, spec.train.steps, generator("order", spec.seed))
    model.train()
    if progress is None:
        full_lr = [float(group["lr"]) for group in optimizer.param_groups]
        progress = Progress(lr=full_lr[0] * spec.train.lr_factor(0), full_lr=full_lr)
        between_steps(progress)
    stream = examples.stream(order, progress.step, team.part(spec.train.batch_size))
    for step, batch in enumerate(stream, progress.step):
        for group, lr in zip(optimizer.param_groups, progress.full_lr, strict=True):
            _set_lr(group, lr * spec.train.lr_factor(step))
        progress.lr = float(optimizer.param_groups[0]["lr"])
        _step(spec, task, model, optimizer, batch, progress, team)
        between_steps(progress)
    return progress


def _set_lr(group: dict[str, object], lr: float) -> None:
    # A learning rate given as a tensor is changed in place, as torch's schedulers do: compiled steps hold on to it.
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _step(
    spec: TrialSpec,
    task: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Split,
    progress: Progress,
    team: Team,
) -> None:
    gradient_seconds = 0.0  # of the model's own work, forward passes without a gradient among it
    losses: list[float] = []

    def gradient() -> float:
        nonlocal gradient_seconds
        began = _now(batch)
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        mean, factor = team.mean(loss, task.counted(batch))
        losses.append(mean)
        _refuse_not_finite(spec, progress, mean)
        (loss if factor == 1 else loss * factor).backward()  # type: ignore[no-untyped-call]
        gradient_seconds += _now(batch) - began
        return losses[-1]

    def forward() -> None:
        nonlocal gradient_seconds
        began = _now(batch)
        model(batch.inputs)
        gradient_seconds += _now(batch) - began

    began = _now(batch)
    loss = None
    try:
        if isinstance(optimizer, Perturbed):
            loss = optimizer.step(gradient, forward)
        elif needs_closure(optimizer):
            optimizer.step(gradient)
        else:
            gradient()
            optimizer.step()
    except TrialError:
        raise
    except Exception as error:
        raise TrialError(
            f"method {spec.method.label!r}: the step of {spec.method.optimizer} raised at step {progress.step + 1}: "
            f"{type(error).__name__}: {error}"
        ) from error
    seconds = _now(batch) - began
    progress.step += 1
    progress.loss = losses[0] if loss is None else float(loss)
    progress.losses_since_evaluation.append(progress.loss)
    progress.step_seconds.append(seconds)
    progress.update_seconds.append(seconds - gradient_seconds)
    progress.gradient_evaluations += len(losses)


def _refuse_not_finite(spec: TrialSpec, progress: Progress, loss: float) -> None:
    if not math.isfinite(loss):
        raise TrialError(
            f"method {spec.method.label!r} diverged: the loss is {loss} at step {progress.step + 1} of "
            f"{spec.train.steps}, learning rate {progress.lr:g}; a lower lr may help"
        )


def _now(batch: Split) -> float:
    if batch.inputs.is_cuda:
        torch.cuda.synchronize(batch.inputs.device)
    return time.perf_counter()
