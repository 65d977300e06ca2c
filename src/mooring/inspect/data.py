"""What a checkpoint is measured on: a split of a task, a file of examples, or batches from a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mooring.finetune.data import Examples, Split
from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.importing import load
from mooring.finetune.metrics import Prediction, Scored
from mooring.finetune.seeds import generator
from mooring.finetune.tasks.base import Objective

Batch = Any
"""A `Split`, or a mapping that is handed to the model by name and whose ``labels`` make it return its loss."""


@dataclass(frozen=True)
class Batches:
    """Batches on the device, with what they were made from.

    Attributes:
        name: as it was given.
        batches: one after the other.
        sizes: how many examples each has.
        available: how many examples there were before some were chosen.
    """

    name: str
    batches: Sequence[Batch]
    sizes: Sequence[int]
    available: int

    @property
    def count(self) -> int:
        """How many examples there are."""
        return sum(self.sizes)


def examples(
    name: str, splits: Mapping[str, Examples], batch_size: int, limit: int, seed: int, device: torch.device
) -> Batches:
    """The examples that ``--data`` names.

    Args:
        name: a split of the task; a ``.safetensors`` or ``.npz`` file with ``inputs`` and ``labels``; or
            ``package.module:function``, which returns batches: pairs of inputs and labels, or mappings with ``labels``.
        splits: of the task; empty without one.
        batch_size: of batches that are cut here.
        limit: how many examples at most, chosen at random where there are more.
        seed: of that choice.
        device: where they go.

    Raises:
        SpecError: It names nothing that can be read.
    """
    split: Examples
    if name in splits:
        split = splits[name]
    elif Path(name).suffix in (".safetensors", ".npz"):
        split = _from_file(Path(name))
    elif ":" in name:
        return _from_function(name, limit, device)
    else:
        known = f"the task's splits are {', '.join(splits)}" if splits else "without a task there are no splits"
        raise SpecError(
            f"unknown data {name!r}{suggestion(name, splits)}: {known}; or name a .safetensors or .npz file with "
            "'inputs' and 'labels', or package.module:function"
        )
    available = len(split)
    if not available:
        raise SpecError(f"the data {name!r} has no examples")
    chosen = torch.arange(available)
    if available > limit:
        chosen = torch.randperm(available, generator=generator("inspect", seed))[:limit].sort().values
    pieces = [split.rows(rows).to(device) for rows in torch.split(chosen, batch_size)]
    return Batches(name, pieces, [len(piece) for piece in pieces], available)


def _from_file(path: Path) -> Split:
    if not path.is_file():
        raise SpecError(f"there is no data file {str(path)!r}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        else:
            found = dict(load_file(path))
    except Exception as error:
        raise SpecError(f"the data file {str(path)!r} cannot be read: {error}") from None
    lacking = [key for key in ("inputs", "labels") if key not in found]
    if lacking:
        raise SpecError(f"the data file {str(path)!r} has no {lacking[0]!r}; it has {', '.join(map(repr, found))}")
    inputs, labels = found["inputs"], found["labels"]
    if len(inputs) != len(labels):
        raise SpecError(f"the data file {str(path)!r} has {len(inputs)} inputs and {len(labels)} labels")
    if inputs.is_floating_point():
        inputs = inputs.float()
    return Split(inputs, labels if labels.is_floating_point() else labels.long())


def _from_function(name: str, limit: int, device: torch.device) -> Batches:
    function = load(name, "--data")
    batches: list[Batch] = []
    sizes: list[int] = []
    try:
        for made in function():
            batches.append(_batch(name, made, device))
            sizes.append(len(batches[-1]["labels"] if isinstance(batches[-1], Mapping) else batches[-1].labels))
            if sum(sizes) >= limit:
                break
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"--data {name}: calling it and reading its batches failed: {error}") from error
    if not batches:
        raise SpecError(f"--data {name}: it returned no batches")
    return Batches(name, batches, sizes, sum(sizes))


def _batch(name: str, made: Any, device: torch.device) -> Batch:
    if isinstance(made, Mapping) and "labels" in made:
        return {key: x.to(device) if isinstance(x, Tensor) else x for key, x in made.items()}
    if isinstance(made, (tuple, list)) and len(made) == 2 and all(isinstance(x, Tensor) for x in made):
        return Split(*made).to(device)
    raise SpecError(
        f"--data {name}: a batch must be a pair of tensors (inputs, labels) or a mapping with 'labels', "
        f"got {type(made).__name__}"
    )


def loss_of(task: Objective | None) -> Callable[[nn.Module, Batch], Tensor]:
    """The mean loss over one batch: the task's, the model's own for a mapping, else cross-entropy over the logits.

    Labels are classes, or the probabilities of all classes.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if isinstance(batch, Mapping):
            value: Tensor = model(**batch).loss
            return value
        if task is not None:
            return task.loss(model, batch)
        logits = _logits(model(batch.inputs))
        classes = not batch.labels.is_floating_point()
        return cross_entropy(logits.flatten(0, -2), batch.labels.flatten() if classes else batch.labels.flatten(0, -2))

    return loss


@torch.no_grad()
def predictions(task: Objective | None, model: nn.Module, data: Batches) -> Prediction | None:
    """Logits and labels, one row per label; None where the labels are no classes or the model gives no logits."""
    mode = model.training
    model.eval()
    parts: list[Prediction] = []
    try:
        for batch in data.batches:
            if isinstance(batch, Split) and task is not None:
                found = task.logits(model, batch)
                if isinstance(found, Scored):  # too many classes to keep their logits
                    return None
                parts.append(found)
                continue
            labels = batch["labels"] if isinstance(batch, Mapping) else batch.labels
            output = model(**batch) if isinstance(batch, Mapping) else model(batch.inputs)
            if isinstance(batch, Mapping) and not hasattr(output, "logits"):
                return None
            logits = _logits(output)
            # A model that is given its labels may shift them against its logits, as causal language models do.
            if labels.is_floating_point() or logits.shape[:-1] != labels.shape or _shifts(batch, logits):
                return None
            kept = labels.flatten() >= 0  # positions that a loss leaves out are marked by a negative label
            rows, classes = logits.flatten(0, -2)[kept], labels.flatten()[kept]
            parts.append(Prediction(rows.float().cpu().numpy(), classes.cpu().numpy()))
    finally:
        model.train(mode)
    return Prediction(np.concatenate([p.logits for p in parts]), np.concatenate([p.labels for p in parts]))


def _shifts(batch: Batch, logits: Tensor) -> bool:
    return isinstance(batch, Mapping) and logits.ndim > 2


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
