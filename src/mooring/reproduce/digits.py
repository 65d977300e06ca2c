"""What the experiments on handwritten digits share: data, starts, a training loop, and scores.

scikit-learn ships 1797 real 8x8 digits in the order in which they were collected. `pretrained` is the start of the
embedded task: a batch-normalised network that has read printed digits, 100 handwritten rows to fine-tune on, later rows
and corruptions as shifts. `handwritten` is all rows, for training from scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mooring.finetune.corruptions import CORRUPTIONS
from mooring.finetune.data import Examples, Split, batches
from mooring.finetune.models import ConvNet
from mooring.finetune.seeds import generator, own_global_rng
from mooring.finetune.spec import TaskSpec, TrainSpec
from mooring.finetune.tasks.starts import Start, load_start
from mooring.measure.distance import drift
from mooring.perturb.frame import Perturbed

EARLY, LATER = slice(0, 1000), slice(1000, None)
"""Rows of `handwritten` to train on, and rows of other writers to test on."""


def pretrained(seed: int) -> Start:
    """A start of the embedded task with the splits of this seed: ``start.model``, ``start.data``, ``start.state``."""
    return load_start(TaskSpec(), seed)


@cache
def handwritten() -> Split:
    """All 1797 digits, ``(n, 1, 8, 8)`` in 0..1, in the order of the file."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return Split(torch.from_numpy(found.images).float().unsqueeze(1) / 16, torch.from_numpy(found.target).long())


def fresh(seed: int, **options: int) -> ConvNet:
    """The batch-normalised network with random weights; torch's own random state stays as it was."""
    with own_global_rng(torch.device("cpu"), "initialisation", seed):
        return ConvNet(**options)


def whole(examples: Examples) -> Split:
    """All of them, in memory."""
    return examples.rows(torch.arange(len(examples)))


def loss(model: nn.Module, examples: Split) -> Tensor:
    """Mean cross-entropy."""
    return cross_entropy(model(examples.inputs), examples.labels)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    steps: int,
    seed: int,
    *,
    batch_size: int = 32,
    schedule: str = "cosine",
    each: Callable[[int], None] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> None:
    """Train in place. The order of the examples depends on the seed alone, so that methods can be paired.

    Args:
        model: Is put in train mode.
        optimizer: Any; gradients at moved weights (`mooring.NSO` and others) are taken on the step's one batch.
        examples: What to train on.
        steps: Optimizer steps.
        seed: Of the order and the augmentation.
        batch_size: Examples per step.
        schedule: "cosine" or "linear" to zero after a warm-up over a tenth of the steps, or "constant" throughout.
        each: Called after every step with its number, from 1.
        augment: Changes a batch's inputs, with a generator of its own.
    """
    warmup = 0.0 if schedule == "constant" else 0.1
    spec = TrainSpec(steps=steps, batch_size=batch_size, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    noise = generator("augmentation", seed)
    model.train()
    for step, rows in enumerate(batches(len(examples), batch_size, steps, generator("order", seed))):
        batch = examples.rows(rows)
        if augment is not None:
            batch = Split(augment(batch.inputs, noise), batch.labels)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * spec.lr_factor(step)
        optimizer.zero_grad()
        if isinstance(optimizer, Perturbed):
            for pass_ in optimizer.passes():
                with pass_:
                    pass_.backward(loss(model, batch))
        else:
            loss(model, batch).backward()
        optimizer.step()
        if each is not None:
            each(step + 1)
            model.train()


@torch.no_grad()
def score(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Accuracy in percent and mean cross-entropy, in evaluation mode; the mode is put back."""
    was_training = model.training
    model.eval()
    split = whole(examples)
    logits = torch.cat([model(x) for x in split.inputs.split(1024)])
    model.train(was_training)
    right = (logits.argmax(1) == split.labels).double().mean()
    return 100 * float(right), float(cross_entropy(logits, split.labels))


def report(start: Start) -> dict[str, float]:
    """What fine-tuning made of a start: accuracies in percent, and how far the weights went.

    ``id``, ``later`` rows, ``corruptions`` (mean over kinds and severities), ``retention`` of the printed source;
    ``train_loss`` and ``test_loss`` (cross-entropy of the training and the ID test images); ``drift``, the Euclidean
    distance of all weights from the start.
    """
    splits = start.data.evaluation
    corrupted = [split for name, split in splits.items() if name.split(".")[:2][-1] in CORRUPTIONS]
    right, test_loss = score(start.model, splits["id"])
    return {
        "id": right,
        "later": score(start.model, splits["ood.later_rows"])[0],
        "corruptions": sum(score(start.model, split)[0] for split in corrupted) / len(corrupted),
        "retention": score(start.model, splits["retention"])[0],
        "train_loss": score(start.model, start.data.train)[1],
        "test_loss": test_loss,
        "drift": drift(start.model, start.state).total.distance,
    }
