"""Images that are decoded when they are needed, by a few threads and one batch ahead of the training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mooring.finetune.data import WHOLE, Examples, Split
from mooring.finetune.errors import TrialError
from mooring.finetune.seeds import derive

_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class View:
    """How a decoded image becomes the square that the model sees.

    Attributes:
        size: Its side, in pixels.
        resize: Shorter side that the image is resized to before the middle is cut out.
        mean: Of each channel.
        std: Of each channel.
        scale: Share of the area that a random crop covers; only with a seed.
        flip: Probability of a horizontal flip; only with a seed.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0

    def middle(self, image: Image.Image) -> Image.Image:
        """The square in the middle of the resized image."""
        factor = self.resize / min(image.size)
        width, height = (max(self.size, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

    def drawn(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """A random crop of random area and shape, resized, and flipped or not."""
        box = crop_box(image.size, self.scale, rng)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < self.flip else image

    def normalised(self, pixels: Tensor) -> Tensor:
        """``(n, 3, h, w)`` bytes as floats with the channels' mean and scale taken out."""
        mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


def crop_box(size: tuple[int, int], scale: tuple[float, float], rng: random.Random) -> tuple[int, int, int, int]:
    """A random box whose area is a share of the image's and whose shape lies between 3:4 and 4:3.

    As Szegedy et al. 2015 (arXiv 1409.4842) draw it; where ten draws do not fit into the image, the largest box in the
    middle of a shape within these bounds.
    """
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@dataclass(frozen=True)
class ImageFiles(Examples):
    """Image files with labels.

    Memory: two batches. Labels stay on the host until their rows are asked for.

    Attributes:
        paths: The files.
        labels: One per file.
        view: What is made of them.
        seed: Of the augmentation, which belongs to seed, step and example; None: none, the middle is seen.
        place: The device of the rows.
        workers: Threads that decode.
    """

    paths: Sequence[Path]
    labels: Tensor
    view: View
    seed: int | None
    workers: int
    place: torch.device = _CPU

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def device(self) -> torch.device:
        """Where rows are put."""
        return self.place

    def to(self, device: torch.device) -> ImageFiles:
        """The same files, their rows on a device."""
        return replace(self, place=device)

    def rows(self, index: Tensor) -> Split:
        """Decode these images."""
        with ThreadPoolExecutor(self.workers) as pool:
            return self._decoded(index, 0, pool)

    def stream(self, order: Tensor, first: int = 0, part: slice = WHOLE) -> Iterator[Split]:
        """Training batches, each decoded while the one before it is in use."""
        if first >= len(order):
            return
        with ThreadPoolExecutor(self.workers) as pool, ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(self._decoded, order[first, part], first, pool)
            for step in range(first, len(order)):
                batch = following.result()
                if step + 1 < len(order):
                    following = ahead.submit(self._decoded, order[step + 1, part], step + 1, pool)
                yield batch

    def _decoded(self, index: Tensor, step: int, pool: ThreadPoolExecutor) -> Split:
        rows = index.tolist()
        pixels = torch.stack(list(pool.map(lambda row: self._pixels(row, step), rows)))
        return Split(self.view.normalised(pixels.to(self.place)), self.labels[index.cpu()].to(self.place))

    def _pixels(self, row: int, step: int) -> Tensor:
        path = self.paths[row]
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except Exception as error:
            raise TrialError(f"the image {str(path)!r} cannot be read: {error}") from error
        if self.seed is None:
            image = self.view.middle(image)
        else:
            image = self.view.drawn(image, random.Random(derive("augmentation", self.seed, step, row)))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def sample(count: int, size: int, seed: int) -> Tensor:
    """At most ``size`` of ``count`` rows, drawn without replacement, in order."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(derive("training sample", seed)))
    return drawn[:size].sort().values
