"""A causal language model on text files."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mooring.finetune.cache import fetch, root, silent
from mooring.finetune.data import Examples, Split, TaskData
from mooring.finetune.errors import SpecError
from mooring.finetune.own.images import sample
from mooring.finetune.own.listing import list_texts
from mooring.finetune.own.models import build, tokenizer
from mooring.finetune.own.task import OwnTask
from mooring.finetune.task_spec import LanguageModelSpec

UNKNOWN, END = "<unk>", "<eos>"
_VERSION = 1  # of what is made of the files


@dataclass(frozen=True)
class Blocks(Examples):
    """Blocks of consecutive tokens, each predicting the tokens one further.

    Memory: the tokens, 4 bytes each, and one batch.

    Attributes:
        tokens: The whole text.
        block: Tokens of a block.
        count: How many blocks.
        chosen: Of all blocks, those that count here; None: all.
        place: The device of the rows.
    """

    tokens: Tensor
    block: int
    chosen: Tensor | None = None
    place: torch.device | None = None

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.block if self.chosen is None else len(self.chosen)

    @property
    def device(self) -> torch.device:
        """Where rows are put."""
        return self.place or self.tokens.device

    def to(self, device: torch.device) -> Blocks:
        """The same text, its rows on a device."""
        return replace(self, place=device)

    def rows(self, index: Tensor) -> Split:
        """These blocks, and the tokens that follow each of theirs."""
        index = index.cpu() if self.chosen is None else self.chosen[index.cpu()]
        taken = self.tokens[index[:, None] * self.block + torch.arange(self.block + 1)].long().to(self.device)
        return Split(taken[:, :-1], taken[:, 1:])


def vocabulary(paths: Iterable[Path], limit: int) -> list[str]:
    """Words by falling frequency, equal ones by the alphabet, after ``<unk>`` and ``<eos>``."""
    counts: Counter[str] = Counter()
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                counts.update(line.split())
    words = sorted(set(counts) - {UNKNOWN, END}, key=lambda word: (-counts[word], word))
    return [UNKNOWN, END, *(words[:limit] if limit else words)]


def encode(paths: Iterable[Path], words: list[str]) -> Tensor:
    """The number of every word, and of the end of every line."""
    number = {word: place for place, word in enumerate(words)}
    found = array("i")
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                found.extend(number.get(word, 0) for word in line.split())
                found.append(1)
    return torch.frombuffer(found, dtype=torch.int32)


class LanguageModel(OwnTask):
    """Next tokens of text files."""

    def __init__(self, spec: LanguageModelSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.files = list_texts(spec)
        # Made once: a hundred million words take minutes. What is cached is named by the content of the files.
        reader = f"words-{spec.vocabulary}" if spec.tokens == "words" else spec.model.sha256[:16]
        if spec.data_sha256 and reader:
            entry = fetch(
                root() / "texts" / f"{spec.data_sha256[:16]}-{reader}-{_VERSION}", "tokens", self._made, silent
            )
            self.tokens, notes = entry.tensors, entry.notes
        else:
            self.tokens, notes = self._made()
        self.size = int(notes["size"])
        for split, tokens in self.tokens.items():
            if len(tokens) <= spec.block:
                raise SpecError(f"split {split!r} has {len(tokens)} tokens, which is no block of {spec.block}")

    def _made(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        if self.spec.tokens == "words":
            words = vocabulary(self.files["train"], self.spec.vocabulary)
            return {split: encode(paths, words) for split, paths in self.files.items()}, {"size": len(words)}
        reader = tokenizer(self.spec.model)
        texts = {split: "".join(p.read_text(encoding="utf-8") for p in paths) for split, paths in self.files.items()}
        tokens = {split: torch.tensor(reader.encode(text), dtype=torch.int32) for split, text in texts.items()}
        return tokens, {"size": len(reader)}

    def model(self) -> nn.Module:
        """The model given; one made from a configuration has the vocabulary's size."""
        return build(self.spec.model, "tokens", self.size)

    def data(self, seed: int) -> TaskData:
        """All splits as they are; the seed draws the sample of training blocks that is evaluated."""
        splits = {name: Blocks(tokens, self.spec.block) for name, tokens in self.tokens.items()}
        train = splits.pop("train")
        return TaskData(train, splits, replace(train, chosen=sample(len(train), self.spec.train_sample, seed)))
