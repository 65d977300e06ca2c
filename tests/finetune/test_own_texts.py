"""Texts on the user's disk: words and blocks, instructions and answers, and what is refused. No transformers needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.compare.config import ConfigError, build_config
from mooring.finetune.errors import SpecError
from mooring.finetune.own import identify
from mooring.finetune.own.instructions import Answers
from mooring.finetune.own.language_model import Blocks, encode, vocabulary
from mooring.finetune.own.listing import count_words, read_instructions
from mooring.finetune.task_spec import InstructionsSpec, LanguageModelSpec

GPT2 = {"type": "gpt2", "config": {"n_layer": 1}}


def test_words_are_numbered_by_frequency_and_lines_end(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(" b a \n\nb <unk> c", encoding="utf-8")
    second.write_text("c new b\n", encoding="utf-8")
    words = vocabulary([first], 0)
    assert words == ["<unk>", "<eos>", "b", "a", "c"]  # equal ones by the alphabet
    assert encode([first], words).tolist() == [2, 3, 1, 1, 2, 0, 4, 1]
    assert encode([second], words).tolist() == [4, 0, 2, 1]
    assert vocabulary([first], 1) == ["<unk>", "<eos>", "b"]
    assert count_words([first, second]) == len(encode([first, second], words)) == 12


def test_blocks_go_through_the_text_once_and_ask_for_the_next_token() -> None:
    text = Blocks(torch.arange(100, 123, dtype=torch.int32), block=5)
    assert len(text) == 4  # 23 tokens: 22 have a next one, 20 of these fill blocks
    rows = text.rows(torch.arange(4))
    assert rows.inputs.flatten().tolist() == list(range(100, 120))
    assert rows.labels.flatten().tolist() == list(range(101, 121))
    some = Blocks(text.tokens, 5, chosen=torch.tensor([3, 1]))
    assert some.rows(torch.tensor([1])).inputs.tolist() == [[105, 106, 107, 108, 109]]


class Reader:
    """A tokenizer of words: each new one gets the next number."""

    eos_token_id = 1

    def __init__(self) -> None:
        self.words = ["<pad>", "</s>"]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.words += [word for word in dict.fromkeys(text.split()) if word not in self.words]
        return [self.words.index(word) for word in text.split()]


def test_answers_alone_are_predicted() -> None:
    reader = Reader()
    examples = [
        {"instruction": "is it", "input": "so", "output": "yes it is"},
        {"instruction": "why", "input": "", "output": "because"},
    ]
    rows = Answers(examples, reader, "Q {instruction} {input} A", 100).rows(torch.tensor([0, 1]))
    said = [[reader.words[token] for token in row] for row in rows.inputs.tolist()]
    assert said[0] == ["Q", "is", "it", "so", "A", "yes", "it", "is"]
    assert said[1] == ["Q", "why", "A", "because", *["<pad>"] * 4]
    wanted = [[reader.words[token] if token >= 0 else "" for token in row] for row in rows.labels.tolist()]
    assert wanted[0] == ["", "", "", "", "yes", "it", "is", "</s>"]
    assert wanted[1] == ["", "", "because", "</s>", "", "", "", ""]


def test_a_prompt_that_is_too_long_loses_its_beginning() -> None:
    reader = Reader()
    examples = [{"instruction": "one two three four", "input": "", "output": "yes no"}]
    rows = Answers(examples, reader, "{instruction}", 5).rows(torch.tensor([0]))
    assert [reader.words[token] for token in rows.inputs[0].tolist()] == ["three", "four", "yes", "no"]
    assert (rows.labels[0] >= 0).sum() == 3
    longer = Answers(examples, reader, "{instruction}", 2).rows(torch.tensor([0]))
    assert [reader.words[token] for token in longer.inputs[0].tolist()] == ["four"]


def test_instructions_are_read_from_lists_and_lines(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b", "answer": 3}, {"instruction": "c", "input": "d", "output": "e"}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = read_instructions([tmp_path / "x.json"])
    assert found == read_instructions([tmp_path / "x.jsonl"])
    assert found[0] == {"instruction": "a", "input": "", "output": "b"}
    for content, message in (
        ("{", r"x\.json' cannot be read as JSON"),
        ("{}", "should hold a list of examples"),
        ("[]", "should hold a list of examples"),
        ('[{"prompt": "a", "output": "b"}]', r"example 0 of .* should have the texts .* it has prompt, output"),
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(SpecError, match=message):
            read_instructions([tmp_path / "x.json"])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"files": {"train": "a"}}, "files must name train and id"),
        ({"files": {"train": "a", "id": "b", "odd": "c"}}, "unknown split 'odd'"),
        ({"files": {"train": [], "id": "b"}}, "split 'train' names no file"),
        ({"blok": 3}, r"unknown key 'task.blok' \(did you mean 'block'\?\)"),
        ({"name": "instructions", "files": {"train": "a"}}, "give files an id, or holdout"),
        ({"name": "instructions", "prompt": "x", "holdout": 3}, r"prompt must have \{instruction\}"),
        (
            {"name": "instructions", "holdout": 3, "lora": {"rank": 3}},
            r"unknown key 'task.lora.rank'; the keys there are r,",
        ),
    ],
)
def test_a_wrong_description_names_the_key(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"task": {"name": "language-model", "model": GPT2, **task}})


def test_missing_and_empty_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify.importlib.util, "find_spec", lambda name: object())
    spec = LanguageModelSpec.model_validate({"name": "language-model", "model": GPT2, "data": str(tmp_path)})
    (tmp_path / "wiki.train.token").write_text("a b c")
    with pytest.raises(SpecError, match=r"no file '.*wiki\.train\.tokens' \(did you mean 'wiki\.train\.token'\?\)"):
        identify.identify(spec)
    for part in ("train", "valid", "test"):
        (tmp_path / f"wiki.{part}.tokens").write_text("")
    with pytest.raises(SpecError, match=r"the file '.*wiki\.train\.tokens' is empty"):
        identify.identify(spec)


def test_what_is_not_installed_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"transformers"}
    monkeypatch.setattr(identify.importlib.util, "find_spec", lambda name: None if name in missing else object())
    given = {"name": "instructions", "data": str(tmp_path), "holdout": 1, "lora": {}}
    spec = InstructionsSpec.model_validate({**given, "model": {"pretrained": "org/name"}})
    with pytest.raises(SpecError, match=r"needs transformers: pip install 'mooring\[models\]'"):
        identify.identify(spec)
    missing = {"peft"}
    with pytest.raises(SpecError, match=r"adapters \(task.lora\) need peft: pip install 'mooring\[models\]'"):
        identify.identify(spec)
    with pytest.raises(SpecError, match="'instructions' takes a pretrained model with its tokenizer"):
        identify.identify(InstructionsSpec.model_validate({**given, "model": GPT2}))


def test_wrong_model_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify.importlib.util, "find_spec", lambda name: object())
    place = tmp_path / "model"

    def refused(pretrained: Path | str, match: str) -> None:
        spec = {"name": "instructions", "holdout": 1, "data": str(tmp_path), "model": {"pretrained": str(pretrained)}}
        with pytest.raises(SpecError, match=match):
            identify.identify(InstructionsSpec.model_validate(spec))

    refused(
        place, r"'.*/model' is neither a folder nor a hub id; it should be a folder with config.json and model.safe"
    )
    place.mkdir()
    refused(place, r"the model folder '.*/model' has no config.json")
    (place / "config.json").write_text("{}")
    refused(place, r"holds no weights; it should hold model.safetensors")
    (place / "pytorch_model.bin").write_bytes(b"")
    refused(place, r"holds only pytorch_model.bin, a pickle, which is not read")
