"""Which character comes next? A small transformer on text that every Python brings along.

Pretrained on docstrings of the standard library, fine-tuned on a piece of the language reference. Validation and ID
test are the pieces that follow it, contiguous and apart; out of distribution is source code; docstrings that no start
has seen show what was retained. Every character is an example: ``accuracy`` is the share of characters whose likeliest
successor was right, and ``nll`` over ln 2 is bits per character.

With weight normalisation, W = g v / ‖v‖ by rows (`torch.nn.utils.parametrizations.weight_norm`), v is scale invariant:
the setting of the second half of AdamP's language row.
"""

from __future__ import annotations

import math
import platform

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.nn.utils.parametrizations import weight_norm

from mooring.finetune.data import Split, TaskData
from mooring.finetune.seeds import generator
from mooring.finetune.tasks.base import Task
from mooring.finetune.tasks.texts import ALPHABET, code, docstrings, encode, reference

CONTEXT, WIDTH, HEADS, LAYERS = 32, 64, 4, 2
TRAIN, VALIDATION, TEST, RETENTION = 600, 100, 200, 100
"""Pieces of `CONTEXT` characters."""


class Block(nn.Module):
    """Attention to what came before, then two layers for each place; layer normalisation before each of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, places, width)`` to the same."""
        n, places, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(n, places, width))
        result: Tensor = x + self.back(gelu(self.wide(self.norm2(x))))
        return result


class CharTransformer(nn.Module):
    """81 504 parameters: two blocks of width 64; 82 496 with weight normalisation on every linear layer."""

    def __init__(self, normalised: bool = False) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(len(ALPHABET), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(ALPHABET))
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=1 / math.sqrt(WIDTH))
        if normalised:
            for module in [m for m in self.modules() if isinstance(m, nn.Linear)]:
                weight_norm(module)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``(n, places, 96)`` of the next characters; ``codes`` is ``(n, places)``, at most 32 places."""
        x = self.characters(codes) + self.places.weight[: codes.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class TextCharacters(Task):
    """Next characters of the language reference, after pretraining on docstrings."""

    version = 1
    packages = ("torch",)
    normalised = False

    def model(self) -> nn.Module:
        """The transformer."""
        return CharTransformer(self.normalised)

    def made_from(self) -> dict[str, str]:
        """The Python whose texts are read."""
        return {"python": platform.python_version()}

    def source(self, start: int) -> Split:
        """Pieces of docstrings, from random places, anew for every start."""
        text = encode(docstrings()).long()[: -RETENTION * CONTEXT - 1]
        rng = generator("text pieces", self.spec.data_seed, start)
        first = torch.randint(len(text) - CONTEXT, (self.spec.pretrain_examples, 1), generator=rng)
        places = first + torch.arange(CONTEXT)
        return Split(text[places], text[places + 1])

    def fixed(self) -> dict[str, Tensor]:
        """The texts, and the last docstrings."""
        held_out = pieces(encode(docstrings())[-RETENTION * CONTEXT - 1 :], RETENTION)
        return {
            "reference": encode(reference()),
            "code": encode(code()),
            "retention.inputs": held_out.inputs,
            "retention.labels": held_out.labels,
        }

    def data(self, seed: int, fixed: dict[str, Tensor]) -> TaskData:
        """Three contiguous pieces of the reference from a place of this seed on, and one of the source code."""
        rng = generator("text places", self.spec.data_seed, seed)
        # The text is a ring, cut open at a random place. No character is in two pieces.
        ring = fixed["reference"].roll(int(torch.randint(len(fixed["reference"]), (1,), generator=rng)))
        found = []
        for count in (TRAIN, VALIDATION, TEST):
            found.append(pieces(ring, count))
            ring = ring[count * CONTEXT + 1 :]
        train, validation, test = found
        elsewhere = fixed["code"].roll(int(torch.randint(len(fixed["code"]), (1,), generator=rng)))
        evaluation = {
            "id_val": validation,
            "id": test,
            "ood.code": pieces(elsewhere, TEST),
            "retention": Split(fixed["retention.inputs"], fixed["retention.labels"]),
        }
        return TaskData(train, evaluation)


class TextCharactersWeightNorm(TextCharacters):
    """The same with weight normalisation."""

    normalised = True


def pieces(text: Tensor, count: int) -> Split:
    """The first ``count`` pieces of `CONTEXT` characters, and for each character the one that follows it."""
    codes = text[: count * CONTEXT + 1].long()
    return Split(codes[:-1].view(count, CONTEXT), codes[1:].clone().view(count, CONTEXT))
