"""A spurious feature that is right in fine-tuning and wrong elsewhere: the task of the tests, seconds for a comparison.

A row has 22 features: a core feature (the label's sign with unit noise), a spurious one (nearly noiseless, its sign
agrees with the label's with a given probability) and 20 of pure noise. In pretraining it agrees half of the time, so
the spurious feature is useless there; in fine-tuning 95 %; out of distribution 5 % (``anti``) or 50 % (``none``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mooring.finetune.data import Split, TaskData
from mooring.finetune.models import MLP
from mooring.finetune.seeds import generator
from mooring.finetune.tasks.base import Task

CORE_NOISE, SPURIOUS_NOISE, NOISE_FEATURES = 1.0, 0.1, 20
SOURCE_AGREEMENT, TARGET_AGREEMENT = 0.5, 0.95
OOD_AGREEMENT = {"anti": 0.05, "none": 0.5}
TRAIN, VALIDATION, TEST = 300, 200, 1000


def draw(count: int, agreement: float, rng: torch.Generator) -> Split:
    """Draw rows whose spurious feature agrees with the label with this probability."""
    labels = torch.randint(2, (count,), generator=rng)
    sign = 2.0 * labels - 1.0
    agrees = torch.rand(count, generator=rng) < agreement
    core = sign + CORE_NOISE * torch.randn(count, generator=rng)
    spurious = torch.where(agrees, sign, -sign) + SPURIOUS_NOISE * torch.randn(count, generator=rng)
    rest = torch.randn(count, NOISE_FEATURES, generator=rng)
    return Split(torch.cat([core[:, None], spurious[:, None], rest], dim=1), labels)


class SyntheticSpurious(Task):
    """Two classes, 22 features."""

    version = 1
    packages = ("torch",)

    def model(self) -> nn.Module:
        """A small perceptron."""
        return MLP(2 + NOISE_FEATURES)

    def source(self, start: int) -> Split:
        """Rows whose spurious feature says nothing."""
        return draw(self.spec.pretrain_examples, SOURCE_AGREEMENT, self._rng("source", start))

    def fixed(self) -> dict[str, Tensor]:
        """Held-out rows of the source."""
        held_out = draw(TEST, SOURCE_AGREEMENT, self._rng("source", "held out"))
        return {"retention.inputs": held_out.inputs, "retention.labels": held_out.labels}

    def data(self, seed: int, fixed: dict[str, Tensor]) -> TaskData:
        """Fresh rows for every seed."""
        evaluation = {
            "id_val": draw(VALIDATION, TARGET_AGREEMENT, self._rng("id_val", seed)),
            "id": draw(TEST, TARGET_AGREEMENT, self._rng("id", seed)),
        }
        for kind, agreement in OOD_AGREEMENT.items():
            evaluation[f"ood.{kind}"] = draw(TEST, agreement, self._rng("ood", kind, seed))
        evaluation["retention"] = Split(fixed["retention.inputs"], fixed["retention.labels"])
        return TaskData(draw(TRAIN, TARGET_AGREEMENT, self._rng("train", seed)), evaluation)

    def _rng(self, *purpose: str | int) -> torch.Generator:
        return generator("synthetic-spurious", self.spec.data_seed, *purpose)
