"""Images in folders of classes, or named by lists."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mooring.finetune.data import Examples, TaskData, deal
from mooring.finetune.own.identify import held_out
from mooring.finetune.own.images import ImageFiles, View, sample
from mooring.finetune.own.listing import Listed, list_images
from mooring.finetune.own.models import build
from mooring.finetune.own.task import OwnTask
from mooring.finetune.seeds import generator
from mooring.finetune.task_spec import ImageFolderSpec


class ImageFolder(OwnTask):
    """Classification of images on disk."""

    def __init__(self, spec: ImageFolderSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.listing = list_images(spec)
        resize = spec.resize or round(spec.image_size / 0.875)
        self.view = View(spec.image_size, resize, spec.mean, spec.std, spec.scale, spec.flip)

    def model(self) -> nn.Module:
        """The model given, with a class for every class of the training images."""
        return build(self.spec.model, "images", len(self.listing.classes))

    def data(self, seed: int) -> TaskData:
        """The splits; the seed draws what is held out, the sample of training images, and the augmentation."""
        splits = dict(self.listing.splits)
        train = splits.pop("train")
        keep = torch.arange(len(train.paths))
        evaluation: dict[str, Examples] = {}
        if self.spec.holdout:
            sizes = held_out(len(keep), self.spec.holdout)
            hands = deal(
                torch.tensor(train.labels),
                [len(keep) - sum(sizes.values()), *sizes.values()],
                generator("held out", self.spec.data_seed, seed),
            )
            keep = hands[0].sort().values
            evaluation |= {name: self._files(train, hand.sort().values) for name, hand in zip(sizes, hands[1:])}
        evaluation |= {name: self._files(listed) for name, listed in splits.items()}
        drawn = keep[sample(len(keep), self.spec.train_sample, seed)]
        return TaskData(self._files(train, keep, seed), evaluation, self._files(train, drawn))

    def _files(self, listed: Listed, rows: Tensor | None = None, seed: int | None = None) -> ImageFiles:
        labels = torch.tensor(listed.labels)
        paths = listed.paths if rows is None else [listed.paths[row] for row in rows.tolist()]
        return ImageFiles(paths, labels if rows is None else labels[rows], self.view, seed, self.spec.workers)
