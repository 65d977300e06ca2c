"""Examples, in memory or read when they are needed, and how they are dealt into splits and batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = slice(None)
"""All examples of a batch."""


class Examples(ABC):
    """Examples with labels, wherever they are: `rows` brings some of them into memory."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where `rows` puts them."""

    @abstractmethod
    def rows(self, index: Tensor) -> Split:
        """The examples at these rows."""

    @abstractmethod
    def to(self, device: torch.device) -> Examples:
        """The same examples on a device."""

    def stream(self, order: Tensor, first: int = 0, part: slice = WHOLE) -> Iterator[Split]:
        """A training batch for every row of ``order``, ``(steps, batch_size)``.

        Args:
            order: Which examples each batch has.
            first: The step to begin at: what is drawn for an example may depend on the step.
            part: Which of every batch to bring, as they would be in the whole batch.
        """
        for rows in order[first:]:
            yield self.rows(rows[part])


@dataclass(frozen=True)
class Split(Examples):
    """Inputs and integer labels of the same length, in memory."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the labels are, and the inputs."""
        return self.labels.device

    def rows(self, index: Tensor) -> Split:
        """The examples at these rows."""
        index = index.to(self.device)
        return Split(self.inputs[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        """The same examples on a device."""
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Some(Examples):
    """Some of other examples.

    Attributes:
        examples: All of them.
        chosen: Rows of those that count here.
    """

    examples: Examples
    chosen: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def device(self) -> torch.device:
        """Where the others' rows are put."""
        return self.examples.device

    def rows(self, index: Tensor) -> Split:
        """The examples at these rows."""
        return self.examples.rows(self.chosen[index.cpu()])

    def to(self, device: torch.device) -> Some:
        """The same examples on a device."""
        return Some(self.examples.to(device), self.chosen)


@dataclass(frozen=True)
class TaskData:
    """What one seed trains and is evaluated on.

    Attributes:
        train: The examples that are fine-tuned on.
        evaluation: By name: ``id_val`` (the only split any choice may look at), ``id``, ``ood.<kind>`` or
            ``ood.<kind>.<severity>``, ``retention``. Only ``id`` is always there.
        train_sample: What is evaluated as ``train``: by default the training examples, all of them.
    """

    train: Examples
    evaluation: Mapping[str, Examples]
    train_sample: Examples | None = None


def deal(labels: Tensor, sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Deal all rows into disjoint hands of the given sizes, each with nearly the same share of every class.

    The rows, shuffled and then sorted by class, are given out one by one to the hand that is furthest behind its share,
    so within any class a hand is off its proportional share by little more than one row.
    """
    if sum(sizes) != len(labels):
        raise ValueError(f"sizes {list(sizes)} sum to {sum(sizes)}, there are {len(labels)} rows to deal")
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    hands: list[list[int]] = [[] for _ in sizes]
    for dealt, row in enumerate(by_class.tolist(), start=1):
        behind = [
            size * dealt / len(labels) - len(hand) if len(hand) < size else -math.inf
            for size, hand in zip(sizes, hands, strict=True)
        ]
        hands[behind.index(max(behind))].append(row)
    return [torch.tensor(hand) for hand in hands]


def batches(examples: int, batch_size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Row numbers of every batch, ``(steps, batch_size)``: one pass over the data after another, each shuffled anew.

    Batches run across the ends of passes and so all have the same size, which batch normalization prefers.
    """
    passes = -(-steps * batch_size // examples)
    order = torch.cat([torch.randperm(examples, generator=generator) for _ in range(passes)])
    return order[: steps * batch_size].view(steps, batch_size)
