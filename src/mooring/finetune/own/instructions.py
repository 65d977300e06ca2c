"""Instructions answered by a causal language model, all of it or adapters trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mooring.finetune.data import Examples, Split, TaskData
from mooring.finetune.errors import SpecError
from mooring.finetune.own.images import sample
from mooring.finetune.own.listing import list_texts, read_instructions
from mooring.finetune.own.models import Logits, build, tokenizer
from mooring.finetune.own.task import IGNORED, OwnTask
from mooring.finetune.seeds import generator
from mooring.finetune.task_spec import InstructionsSpec, LoraSpec


@dataclass(frozen=True)
class Answers(Examples):
    """Instructions with answers, turned into tokens when they are needed.

    A row is the prompt, the answer and the end; labels are the tokens one further, of the answer and the end alone.
    Shorter rows of a batch are filled up at the right, where no earlier token sees it.

    Attributes:
        examples: The texts.
        reader: The model's tokenizer.
        prompt: What stands before the answer.
        limit: Tokens that are kept of a row.
        place: The device of the rows.
    """

    examples: Sequence[dict[str, str]]
    reader: Any
    prompt: str
    limit: int
    place: torch.device | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def device(self) -> torch.device:
        """Where rows are put."""
        return self.place or torch.device("cpu")

    def to(self, device: torch.device) -> Answers:
        """The same texts, their rows on a device."""
        return replace(self, place=device)

    def chosen(self, rows: Tensor) -> Answers:
        """Some of the examples."""
        return replace(self, examples=[self.examples[row] for row in rows.tolist()])

    def rows(self, index: Tensor) -> Split:
        """The tokens of these examples."""
        pairs = [self._tokens(self.examples[row]) for row in index.tolist()]
        longest = max(len(tokens) for tokens, _ in pairs)
        inputs = torch.zeros(len(pairs), longest - 1, dtype=torch.long)
        labels = torch.full_like(inputs, IGNORED)
        for row, (tokens, before) in enumerate(pairs):
            inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            labels[row, before - 1 : len(tokens) - 1] = torch.tensor(tokens[before:])
        return Split(inputs.to(self.device), labels.to(self.device))

    def _tokens(self, example: dict[str, str]) -> tuple[list[int], int]:
        prompt = self.prompt.replace("{instruction}", example["instruction"]).replace("{input}", example["input"])
        before = self.reader.encode(prompt)
        if before and before[-1] == self.reader.eos_token_id:
            before = before[:-1]  # some tokenizers end every text
        after = [*self.reader.encode(example["output"], add_special_tokens=False), self.reader.eos_token_id]
        # The answer is what is learned: a prompt that is too long loses its beginning.
        after = after[: self.limit - 1]
        before = before[-(self.limit - len(after)) :]
        return [*before, *after], len(before)


class Instructions(OwnTask):
    """Answers to instructions."""

    def __init__(self, spec: InstructionsSpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.examples = {split: read_instructions(paths) for split, paths in list_texts(spec).items()}
        self.reader = tokenizer(spec.model)
        if self.reader.eos_token_id is None:
            raise SpecError(f"the tokenizer of {spec.model.pretrained!r} has no token for the end of a text")

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions beside torch that decide what is computed."""
        return ("transformers", "peft") if self.spec.lora else ("transformers",)

    def model(self) -> nn.Module:
        """The model given, or adapters in it."""
        model = build(self.spec.model, "tokens")
        return model if self.spec.lora is None else with_adapters(model, self.spec.lora)

    def data(self, seed: int) -> TaskData:
        """The splits; the seed draws what is held out."""
        splits = {name: self._answers(examples) for name, examples in self.examples.items()}
        train = splits.pop("train")
        if self.spec.holdout:
            rows = torch.randperm(len(train), generator=generator("held out", self.spec.data_seed, seed))
            held, kept = rows[: self.spec.holdout].sort().values, rows[self.spec.holdout :].sort().values
            splits["id"], train = train.chosen(held), train.chosen(kept)
        return TaskData(train, splits, train.chosen(sample(len(train), self.spec.train_sample, seed)))

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        """Mean cross-entropy of the answers' tokens."""
        return cross_entropy(model(batch.inputs).flatten(0, -2).float(), batch.labels.flatten(), ignore_index=IGNORED)

    def counted(self, batch: Split) -> int:
        """The answers' tokens."""
        return int((batch.labels != IGNORED).sum())

    def _answers(self, examples: Sequence[dict[str, str]]) -> Answers:
        return Answers(examples, self.reader, self.spec.prompt, self.spec.max_tokens)


def with_adapters(model: nn.Module, spec: LoraSpec) -> nn.Module:
    """The same model, frozen, with adapters beside the layers named.

    Raises:
        SpecError: peft is missing, or the model has no such layer.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise SpecError(f"adapters (task.lora) need peft: pip install 'mooring[models]' ({error})") from None
    if not isinstance(model, Logits):
        raise SpecError("adapters go with a model of transformers")
    config = peft.LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = peft.get_peft_model(model.network, config)
    except ValueError as error:
        line = str(error).partition("\n")[0]
        raise SpecError(f"task.lora.targets {list(spec.targets)} do not fit the model: {line}") from error
    return Logits(adapted, model.argument)
