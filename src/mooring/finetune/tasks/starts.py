"""Pretrained starts: made once per task specification, cached, and compared with from then on."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mooring.finetune.cache import Entry, Progress, fetch, root, silent
from mooring.finetune.data import Split, TaskData
from mooring.finetune.evaluate import evaluation_splits, predict
from mooring.finetune.metrics import accuracy, summarize
from mooring.finetune.pretrain import pretrain
from mooring.finetune.seeds import generator, own_global_rng, threads
from mooring.finetune.spec import TaskSpec
from mooring.finetune.task_spec import OwnTaskSpec
from mooring.finetune.tasks.base import Objective, Task
from mooring.finetune.tasks.registry import task_info


@dataclass(frozen=True)
class Start:
    """A model to begin from with the splits of one seed, and the task that says what its loss is.

    Attributes:
        task: What the loss is, and the predictions.
        model: The model, in which ``state`` is loaded.
        state: The parameters as they are at the start, of those that are trained.
        data: The splits.
        sha256: Of the state.
        head: Prefixes of the names of parameters that have no pretrained value: no anchor holds them.
    """

    task: Objective
    model: nn.Module
    state: dict[str, Tensor]
    data: TaskData
    sha256: str
    head: tuple[str, ...] = ()


def load_task(spec: TaskSpec) -> Task:
    """The implementation of a task."""
    module, _, cls = task_info(spec.name).implementation.partition(":")
    task: Task = getattr(importlib.import_module(module), cls)(spec)
    return task


def prepare(spec: TaskSpec, progress: Progress = silent) -> None:
    """Make whatever of the task is not in the cache yet: its data, then every start.

    ``progress`` receives ``{"event": "pretrain", "start", "starts", "step", "steps", "loss"}`` while a start is made,
    ``{"event": "start", "start", "starts", "source_accuracy", "cached"}`` when it is there, and
    ``{"event": "message", "text"}`` where something of the cache had to be made again.
    """
    if isinstance(spec, OwnTaskSpec):
        return  # the start is the model that is given
    task = load_task(spec)
    fixed = _fixed(task, progress).tensors
    for index in range(spec.starts):
        entry = _start(task, index, fixed, progress)
        progress(
            {
                "event": "start",
                "start": index,
                "starts": spec.starts,
                "source_accuracy": entry.notes["source_accuracy"],
                "cached": not entry.made_now,
            }
        )


def load_start(spec: TaskSpec, seed: int, progress: Progress = silent) -> Start:
    """The start and the data of one seed; what is missing in the cache is made."""
    if isinstance(spec, OwnTaskSpec):
        return _given_start(spec, seed)
    task = load_task(spec)
    fixed = _fixed(task, progress).tensors
    entry = _start(task, seed % spec.starts, fixed, progress)
    with own_global_rng(torch.device("cpu"), "unused initialisation"):
        model = task.model()
    model.load_state_dict(entry.tensors)
    return Start(task, model, entry.tensors, task.data(seed, fixed), entry.sha256)


def _given_start(spec: OwnTaskSpec, seed: int) -> Start:
    # Imported here: nothing of these tasks is needed where an embedded one runs.
    from mooring.finetune.own.task import load_own_task

    task = load_own_task(spec)
    data = task.data(seed)
    # What a model draws, all of it or a new head, belongs to the start and not to the seed, as in the other tasks.
    with own_global_rng(torch.device("cpu"), "initialisation", spec.name, spec.data_seed, seed % spec.starts):
        model = task.model()
    state = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return Start(task, model, state, data, digest.hexdigest(), task.head(model))


def zero_shot(spec: TaskSpec, seed: int, device: str = "cpu", count: int = 1) -> dict[str, float]:
    """The metrics of the untouched start on the splits of one seed, on a device and with ``count`` threads."""
    with threads(count):
        start = load_start(spec, seed)
        place = torch.device(device)
        splits = {name: split.to(place) for name, split in evaluation_splits(start.data).items()}
        metrics = summarize(predict(start.task, start.model.to(place), splits))
    return {**metrics, "drift/l2": 0.0, "drift/relative": 0.0}


def cache_folder(task: Task) -> Path:
    """Where a task's starts are kept: one folder per recipe, named by a hash of everything that decides the weights."""
    recipe = {
        **task.spec.model_dump(exclude={"starts"}),
        "version": task.version,
        "packages": {name: importlib.metadata.version(name) for name in task.packages},
        **task.made_from(),
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return root() / "tasks" / f"{task.spec.name}-{digest[:12]}"


def _fixed(task: Task, progress: Progress) -> Entry:
    return fetch(cache_folder(task), "data", lambda: (task.fixed(), {}), progress)


def _start(task: Task, index: int, fixed: dict[str, Tensor], progress: Progress) -> Entry:
    spec = task.spec

    def make() -> tuple[dict[str, Tensor], dict[str, float]]:
        # One thread, so that the weights do not depend on how many cores the machine has.
        with threads(1), own_global_rng(torch.device("cpu"), "initialisation", spec.name, spec.data_seed, index):
            model = task.model()
            pretrain(
                task,
                model,
                task.source(index),
                spec.pretrain_steps,
                task.pretrain_lr,
                generator("pretraining order", spec.name, spec.data_seed, index),
                lambda event: progress({**event, "start": index, "starts": spec.starts}),
            )
            held_out = Split(fixed["retention.inputs"], fixed["retention.labels"])
            prediction = predict(task, model, {"retention": held_out})["retention"]
        return dict(model.state_dict()), {"source_accuracy": accuracy(prediction)}

    return fetch(cache_folder(task), f"start_{index}", make, progress)
