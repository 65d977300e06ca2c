"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the binary version's files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mooring.finetune.data import WHOLE, Examples, Split, TaskData
from mooring.finetune.errors import SpecError
from mooring.finetune.own.images import View, sample
from mooring.finetune.own.listing import CifarFiles, list_cifar
from mooring.finetune.own.models import build
from mooring.finetune.own.task import OwnTask
from mooring.finetune.seeds import generator
from mooring.finetune.task_spec import CifarSpec

_SIDE, _PADDING = 32, 4


@dataclass(frozen=True)
class Pictures(Examples):
    """Images held as bytes: 150 MB for 50 000 of them.

    Attributes:
        pixels: ``(n, 3, 32, 32)`` bytes.
        labels: One per image.
        view: Mean and scale of the channels.
        seed: Of the augmentation; None: none.
    """

    pixels: Tensor
    labels: Tensor
    view: View
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.pixels.device

    def to(self, device: torch.device) -> Pictures:
        """The same images on a device."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def rows(self, index: Tensor) -> Split:
        """These images, as they are."""
        index = index.to(self.device)
        return Split(self.view.normalised(self.pixels[index]), self.labels[index])

    def stream(self, order: Tensor, first: int = 0, part: slice = WHOLE) -> Iterator[Split]:
        """Training batches, augmented by what the seed and the step draw."""
        for step, index in enumerate(order[first:], first):
            own = index[part].to(self.device)
            if self.seed is None:
                yield self.rows(own)
                continue
            moved = shifted(self.pixels[own], *drawn(len(index), generator("augmentation", self.seed, step), part))
            yield Split(self.view.normalised(moved), self.labels[own])


def drawn(count: int, rng: torch.Generator, part: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """How far each image of a batch is moved, and whether it is flipped; drawn for the whole batch."""
    offsets = torch.randint(2 * _PADDING + 1, (2, count), generator=rng)
    return offsets[:, part], (torch.rand(count, generator=rng) < 0.5)[part]


def shifted(pixels: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Every image moved by up to 4 pixels each way, zeros coming in, and those flipped that are to be.

    Args:
        pixels: ``(n, 3, 32, 32)``.
        offsets: ``(2, n)``, 0 to 8: the row and the column of the padded image that the result begins at.
        flips: ``(n,)``, which to flip.
    """
    count = len(pixels)
    offsets, flips = offsets.to(pixels.device), flips.to(pixels.device)
    steps = torch.arange(_SIDE, device=pixels.device)
    rows = offsets[0][:, None] + steps
    columns = offsets[1][:, None] + torch.where(flips[:, None], steps.flip(0), steps)
    images = torch.arange(count, device=pixels.device)[:, None, None]
    moved = pad(pixels, [_PADDING] * 4).permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


class Cifar(OwnTask):
    """Classification of CIFAR's images."""

    def __init__(self, spec: CifarSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.files = list_cifar(spec)

    def model(self) -> nn.Module:
        """The model given."""
        return build(self.spec.model, "images", self.spec.classes)

    def data(self, seed: int) -> TaskData:
        """All training and all test images; the seed draws the augmentation."""
        view = View(_SIDE, _SIDE, self.spec.mean, self.spec.std)
        pixels, labels = self._read(self.files, self.files.train)
        rows = sample(len(labels), self.spec.train_sample, seed)
        return TaskData(
            Pictures(pixels, labels, view, seed if self.spec.augment else None),
            {"id": Pictures(*self._read(self.files, self.files.test), view)},
            Pictures(pixels[rows], labels[rows], view),
        )

    def _read(self, files: CifarFiles, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        content = np.concatenate([np.fromfile(path, dtype=np.uint8).reshape(-1, files.record) for path in paths])
        labels = torch.from_numpy(content[:, files.label_bytes - 1].astype(np.int64))
        if int(labels.max()) >= self.spec.classes:
            raise SpecError(
                f"{str(paths[0].parent)!r} holds the label {int(labels.max())}; CIFAR-{self.spec.classes} has labels "
                f"0 to {self.spec.classes - 1}"
            )
        return torch.from_numpy(content[:, files.label_bytes :]).view(-1, 3, _SIDE, _SIDE), labels
