"""From printed digits to real handwriting: the default task.

Handwriting is scikit-learn's digits (UCI, 1797 images of 8x8). The set has no writer ids, but its rows are in an order
that goes with the writers, so later rows are a real shift. Rows 0-299 are redrawn for every seed into 100 to train on,
60 for validation and 140 for the in-distribution test; rows 600-1796 are the out-of-distribution kind ``later_rows``;
the corruptions are those of the seed's own in-distribution test images. Printed digits that no start was trained on
show what was retained of the source.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mooring.finetune.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from mooring.finetune.data import Split, TaskData, deal
from mooring.finetune.models import ConvNet
from mooring.finetune.seeds import generator
from mooring.finetune.tasks.base import Task
from mooring.finetune.tasks.printed import printed_digits

NEAR_ROWS = 300
LATER_ROWS = slice(600, None)
TRAIN, VALIDATION, TEST = 100, 60, 140
RETENTION = 1000


class Fonts2Digits(Task):
    """Pretrained on printed digits, fine-tuned on 100 handwritten ones; the label space is the same."""

    version = 1
    packages = ("matplotlib", "pillow", "scikit-learn", "torch")

    def model(self) -> nn.Module:
        """The convolutional net; its head is pretrained too, so there is a real zero-shot point."""
        return ConvNet()

    def source(self, start: int) -> Split:
        """Printed digits, drawn anew for every start."""
        return printed_digits(self.spec.pretrain_examples, generator("printed", self.spec.data_seed, start))

    def fixed(self) -> dict[str, Tensor]:
        """The handwritten set and held-out printed digits: trials then need neither scikit-learn nor matplotlib."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        printed = printed_digits(RETENTION, generator("printed", self.spec.data_seed, "held out"))
        return {
            "digits.inputs": torch.from_numpy(digits.images).float().unsqueeze(1) / 16,
            "digits.labels": torch.from_numpy(digits.target).long(),
            "retention.inputs": printed.inputs,
            "retention.labels": printed.labels,
        }

    def data(self, seed: int, fixed: dict[str, Tensor]) -> TaskData:
        """The splits of one seed; corruptions are redrawn with the test images."""
        digits = Split(fixed["digits.inputs"], fixed["digits.labels"])
        data_seed = self.spec.data_seed
        train, validation, test = deal(
            digits.labels[:NEAR_ROWS], (TRAIN, VALIDATION, TEST), generator("split", data_seed, seed)
        )
        id_test = digits.rows(test)
        evaluation = {
            "id_val": digits.rows(validation),
            "id": id_test,
            "ood.later_rows": Split(digits.inputs[LATER_ROWS], digits.labels[LATER_ROWS]),
        }
        for kind in CORRUPTIONS:
            for severity in SEVERITIES:
                images = corrupt(id_test.inputs, kind, severity, generator("corruption", kind, data_seed, seed))
                evaluation[f"ood.{kind}.{severity}"] = Split(images, id_test.labels)
        evaluation["retention"] = Split(fixed["retention.inputs"], fixed["retention.labels"])
        return TaskData(digits.rows(train), evaluation)
