"""From a request to a model with its weights, the anchor, and the examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mooring.finetune.cache import Progress, silent
from mooring.finetune.data import Examples
from mooring.finetune.devices import usable_device
from mooring.finetune.errors import SpecError
from mooring.finetune.evaluate import evaluation_splits
from mooring.finetune.spec import TaskSpec
from mooring.finetune.tasks.base import Objective
from mooring.finetune.tasks.registry import task_info
from mooring.finetune.tasks.starts import Start, load_start
from mooring.inspect.checkpoints import Checkpoint, load_checkpoint
from mooring.inspect.data import Batches, examples
from mooring.inspect.models import from_factory, from_folder, put_into
from mooring.inspect.request import Request


@dataclass(frozen=True)
class Subject:
    """Everything that is measured.

    Attributes:
        model: with the checkpoint's weights, on the device, in float32 or wider.
        anchor: tensors by name; None without one.
        anchor_name: what to call it.
        task: whose loss counts; None without one.
        data: what the loss is taken over.
        test: what calibration and the gap are taken on; None without any.
        trained_on: how many examples the weights were trained on, as far as is known.
        about: where all of it came from, for the record.
    """

    model: nn.Module
    anchor: Mapping[str, Tensor] | None
    anchor_name: str
    task: Objective | None
    data: Batches
    test: Batches | None
    trained_on: int
    about: dict[str, Any]


def find_subject(request: Request, progress: Progress = silent) -> Subject:
    """Load everything that a request names.

    Raises:
        SpecError: Something is missing or does not fit.
    """
    device = usable_device(request.device)
    checkpoint = load_checkpoint(request.checkpoint)
    start = _start(request, checkpoint, progress)
    model, said = _model(request, checkpoint, start)
    anchor, anchor_name = _anchor(request, checkpoint, start)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model = model.float()
    splits: Mapping[str, Examples] = evaluation_splits(start.data) if start is not None else {}

    def named(name: str) -> Batches:
        return examples(name, splits, request.batch_size, request.max_examples, request.seed, device)

    data_name = request.data or ("train" if splits else None)
    if data_name is None:
        raise SpecError(
            "--data is missing: name a .safetensors or .npz file with 'inputs' and 'labels', or "
            "package.module:function, or a task with --task"
        )
    data = named(data_name)
    test_name = request.test_data or ("id" if "id" in splits else None)
    test = None if test_name is None or test_name == data_name else named(test_name)
    spec = checkpoint.spec
    about = {
        "checkpoint": str(request.checkpoint),
        "name": request.checkpoint.name if spec is None else f"{spec.method.label}, seed {spec.seed}",
        "model": said,
        "anchor": anchor_name or None,
        "data": {"name": data.name, "examples": data.count, "available": data.available},
        "test_data": None if test is None else {"name": test.name, "examples": test.count, "available": test.available},
        "device": str(device),
    }
    task = None if start is None else start.task
    trained_on = data.available if start is None else len(start.data.train)
    return Subject(model.to(device).eval(), anchor, anchor_name, task, data, test, trained_on, about)


def _start(request: Request, checkpoint: Checkpoint, progress: Progress) -> Start | None:
    if request.task is not None:
        task_info(request.task)
        return load_start(TaskSpec(name=request.task), request.seed, progress)
    if checkpoint.spec is not None and request.model is None:
        return load_start(checkpoint.spec.task, checkpoint.spec.seed, progress)
    return None


def _model(request: Request, checkpoint: Checkpoint, start: Start | None) -> tuple[nn.Module, str]:
    if start is not None:
        name = request.task if checkpoint.spec is None else checkpoint.spec.task.name
        model, said = start.model, f"task {request.task or name}"
    elif request.model is not None:
        model, said = from_factory(request.model), request.model
    elif checkpoint.kind == "folder":
        model = from_folder(checkpoint.path)
        return model, type(model).__name__
    else:
        raise SpecError(
            f"{str(checkpoint.path)!r} is tensors alone: give --task NAME or --model package.module:factory, which "
            "makes the model they belong to"
        )
    put_into(model, checkpoint.tensors, checkpoint.path, frozen_too=checkpoint.kind != "trial")
    return model, said


def _anchor(request: Request, checkpoint: Checkpoint, start: Start | None) -> tuple[Mapping[str, Tensor] | None, str]:
    if request.anchor is not None:
        return load_checkpoint(request.anchor, "anchor").tensors, str(request.anchor)
    if checkpoint.spec is not None and start is not None and request.task is None:
        return start.state, f"start {checkpoint.spec.start} of {checkpoint.spec.task.name}"
    return None, ""
