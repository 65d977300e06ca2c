"""Find another picture of the same thing, among things that were never trained on: recall@1 on unseen classes.

The embedding is normalised to length 1 and trained against one direction per class (proxies) by cross-entropy of scaled
cosines, so neither the last weights' nor the proxies' size matters: the setting in which AdamP's paper fine-tunes for
retrieval. A digit and the same digit turned by a quarter are two classes, so ten digits make twenty. Training sees the
ten classes of 0-4 only, printed in pretraining, handwritten in fine-tuning. It is evaluated on the ten of 5-9: each
picture is a query, the other pictures of its split are what is searched, and the answer is right where the nearest one
by cosine is of the query's class.

A picture's logits are, for each class, `SCALE` times the largest cosine to another picture of that class; so the
``accuracy`` of the usual metrics *is* recall@1, and ``nll`` and ``ece`` are those of these similarities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mooring.finetune.corruptions import SEVERITIES, corrupt
from mooring.finetune.data import Examples, Split, TaskData, deal
from mooring.finetune.metrics import Prediction
from mooring.finetune.models import ConvNet
from mooring.finetune.seeds import generator
from mooring.finetune.tasks.base import Task
from mooring.finetune.tasks.printed import printed_digits

DIGITS = 10
SEEN = 5
"""Digits below are trained on, the others are searched for."""
CLASSES, DIMENSIONS = 2 * DIGITS, 16
SCALE = 16.0
NEAR_ROWS = 600
TRAIN, VALIDATION = 200, 100
RETENTION = 600
CORRUPTIONS = ("noise", "shift")


class RetrievalNet(nn.Module):
    """140 756 parameters: the convolutional net with an embedding in place of its head, and a proxy per seen class."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ConvNet(DIMENSIONS)
        self.body.head = nn.Linear(90, DIMENSIONS, bias=False)  # a bias would not be scale invariant
        self.proxies = nn.Parameter(torch.empty(2 * SEEN, DIMENSIONS))
        nn.init.normal_(self.proxies, std=1 / math.sqrt(DIMENSIONS))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings of length 1, ``(n, 16)``, of ``(n, 1, 8, 8)`` images."""
        return normalize(self.body(images), dim=1)

    def cosines(self, images: Tensor) -> Tensor:
        """Cosines to the proxies, ``(n, 10)``: the upright classes, then the turned ones."""
        # Not self(images): where weights are sharded, the call would give the proxies back before they are used.
        cosines: Tensor = self.forward(images) @ normalize(self.proxies, dim=1).T
        return cosines


def best_similarities(embeddings: Tensor, labels: Tensor, classes: int = CLASSES) -> Tensor:
    """The largest cosine of every row to another row of each class, ``(n, classes)``; -1 where there is none.

    Args:
        embeddings: ``(n, dimensions)``, of length 1.
        labels: ``(n,)`` whole numbers below ``classes``.
        classes: How many columns the result has.
    """
    cosines = (embeddings @ embeddings.T).clamp(-1, 1).fill_diagonal_(-1)
    columns = [cosines[:, labels == k] for k in range(classes)]
    return torch.stack([c.amax(1) if c.shape[1] else cosines.new_full((len(cosines),), -1.0) for c in columns], 1)


class DigitsRetrieval(Task):
    """Pretrained on printed, fine-tuned on handwritten digits 0-4; recall@1 among handwritten digits 5-9."""

    version = 1
    packages = ("matplotlib", "pillow", "scikit-learn", "torch")
    methods = ("cosines",)
    chunk = 0

    def model(self) -> nn.Module:
        """The embedding net; its proxies are pretrained too."""
        return RetrievalNet()

    def source(self, start: int) -> Split:
        """Printed digits 0-4, drawn anew for every start."""
        return _seen(printed_digits(self.spec.pretrain_examples, generator("printed", self.spec.data_seed, start)))

    def fixed(self) -> dict[str, Tensor]:
        """The handwritten set and held-out printed digits 0-4."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        printed = _seen(printed_digits(RETENTION, generator("printed", self.spec.data_seed, "held out")))
        return {
            "digits.inputs": torch.from_numpy(digits.images).float().unsqueeze(1) / 16,
            "digits.labels": torch.from_numpy(digits.target).long(),
            "retention.inputs": printed.inputs,
            "retention.labels": printed.labels,
        }

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        """Cross-entropy of the scaled cosines to the proxies."""
        cosines: Tensor = model.cosines(batch.inputs)  # type: ignore[operator]
        return cross_entropy(SCALE * cosines, batch.labels % DIGITS + SEEN * (batch.labels // DIGITS))

    def logits(self, model: nn.Module, split: Examples) -> Prediction:
        """Scaled similarities to the nearest other picture of each class: the largest one is what retrieval finds."""
        pictures = split.rows(torch.arange(len(split)))
        found = SCALE * best_similarities(model(pictures.inputs).float(), pictures.labels)
        return Prediction(found.cpu().numpy(), pictures.labels.cpu().numpy())

    def data(self, seed: int, fixed: dict[str, Tensor]) -> TaskData:
        """Seen digits to train on; unseen ones dealt into validation and test; unseen ones of later rows."""
        digits = Split(fixed["digits.inputs"], fixed["digits.labels"])
        data_seed = self.spec.data_seed
        near, later = torch.arange(NEAR_ROWS), torch.arange(NEAR_ROWS, len(digits))
        seen, unseen = (near[rows] for rows in (digits.labels[near] < SEEN, digits.labels[near] >= SEEN))
        train, _ = deal(digits.labels[seen], (TRAIN, len(seen) - TRAIN), generator("retrieval train", data_seed, seed))
        validation, test = deal(
            digits.labels[unseen], (VALIDATION, len(unseen) - VALIDATION), generator("retrieval test", data_seed, seed)
        )
        id_test = _both_ways(digits.rows(unseen[test]))
        evaluation = {
            "id_val": _both_ways(digits.rows(unseen[validation])),
            "id": id_test,
            "ood.later_rows": _both_ways(digits.rows(later[digits.labels[later] >= SEEN])),
        }
        for kind in CORRUPTIONS:
            for severity in SEVERITIES:
                images = corrupt(id_test.inputs, kind, severity, generator("corruption", kind, data_seed, seed))
                evaluation[f"ood.{kind}.{severity}"] = Split(images, id_test.labels)
        evaluation["retention"] = Split(fixed["retention.inputs"], fixed["retention.labels"])
        return TaskData(_both_ways(digits.rows(seen[train])), evaluation)


def _both_ways(examples: Split) -> Split:
    """The examples as they are, then turned by a quarter as classes of their own."""
    turned = torch.rot90(examples.inputs, 1, (2, 3))
    return Split(torch.cat([examples.inputs, turned]), torch.cat([examples.labels, examples.labels + DIGITS]))


def _seen(examples: Split) -> Split:
    return _both_ways(examples.rows((examples.labels < SEEN).nonzero().flatten()))
