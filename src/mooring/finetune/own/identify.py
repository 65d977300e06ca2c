"""What identifies a task's data and model before anything is trained: hashes, and how many training examples there are.

No torch here: this runs where the command starts.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from mooring.finetune.errors import SpecError
from mooring.finetune.own.listing import (
    contents_sha256,
    count_words,
    folder,
    list_cifar,
    list_images,
    list_texts,
    read_instructions,
)
from mooring.finetune.task_spec import (
    CifarSpec,
    ImageFolderSpec,
    InstructionsSpec,
    LanguageModelSpec,
    ModelSpec,
    OwnTaskSpec,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def identify(spec: OwnTaskSpec) -> tuple[OwnTaskSpec, int]:
    """The same task with the hashes of its data and model, and the number of its training examples.

    Raises:
        SpecError: Data or model are not there or not laid out as the task expects, a package is missing, or the data
            is not what the hash that the task already has says.
    """
    model = _identify_model(spec.model)
    sha256, count = _data(spec)
    if spec.data_sha256 not in ("", sha256):
        raise SpecError(
            f"the data in {spec.data!r} is not what this comparison began with (sha256 {sha256[:12]}, was "
            f"{spec.data_sha256[:12]}); restore it, or start a new comparison in another --output-dir"
        )
    return spec.model_copy(update={"data_sha256": sha256, "model": model}), count


def held_out(count: int, shares: dict[str, float]) -> dict[str, int]:
    """How many of ``count`` training examples are set aside, at least one for every split."""
    return {name: max(1, round(share * count)) for name, share in shares.items()}


def _data(spec: OwnTaskSpec) -> tuple[str, int]:
    if isinstance(spec, ImageFolderSpec):
        listing = list_images(spec)
        total = len(listing.splits["train"].paths)
        return listing.sha256(folder(spec.name, spec.data)), total - sum(held_out(total, spec.holdout).values())
    if isinstance(spec, CifarSpec):
        files = list_cifar(spec)
        return contents_sha256([*files.train, *files.test]), files.count(files.train)
    if isinstance(spec, LanguageModelSpec):
        texts = list_texts(spec)
        if spec.tokens == "model" and not spec.model.pretrained:
            raise SpecError("tokens: model takes the tokenizer of a pretrained model; model.pretrained names none")
        # A tokenizer's tokens are counted by nobody before they are made.
        blocks = (count_words(texts["train"]) - 1) // spec.block if spec.tokens == "words" else 0
        return contents_sha256(path for paths in texts.values() for path in paths), blocks
    if isinstance(spec, InstructionsSpec):
        if not spec.model.pretrained:
            raise SpecError(
                "task 'instructions' takes a pretrained model with its tokenizer: model.pretrained, --model"
            )
        if spec.lora and importlib.util.find_spec("peft") is None:
            raise SpecError("adapters (task.lora) need peft: pip install 'mooring[models]'")
        texts = list_texts(spec)
        examples = len(read_instructions(texts["train"])) - spec.holdout
        if examples < 1:
            raise SpecError(f"holdout {spec.holdout} leaves no training example in {spec.files['train'][0]!r}")
        return contents_sha256(path for paths in texts.values() for path in paths), examples
    raise TypeError(f"no data is known for {type(spec).__name__}")


def _identify_model(model: ModelSpec) -> ModelSpec:
    if model.builtin:
        return model
    if importlib.util.find_spec("transformers") is None:
        raise SpecError(
            f"the model {model.pretrained or model.type!r} needs transformers: pip install 'mooring[models]'"
        )
    if not model.pretrained:
        return model
    path = Path(model.pretrained).expanduser()
    if not path.is_dir():
        if path.exists() or not _HUB_ID.fullmatch(model.pretrained):
            raise SpecError(
                f"model.pretrained {model.pretrained!r} is neither a folder nor a hub id; it should be a folder with "
                "config.json and model.safetensors, or an id such as 'microsoft/resnet-34'"
            )
        return model  # an id and a revision say what it is
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file():
        raise SpecError(f"the model folder {model.pretrained!r} has no config.json; save_pretrained writes one")
    if not weights:
        pickled = sorted(entry.name for entry in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")))
        what = f"only {pickled[0]}, a pickle, which is not read" if pickled else "no weights"
        raise SpecError(f"the model folder {model.pretrained!r} holds {what}; it should hold model.safetensors")
    others = sorted({*path.glob("*.json"), *path.glob("*.txt"), *path.glob("*.model")})
    sha256 = contents_sha256([*others, *weights])
    if model.sha256 not in ("", sha256):
        raise SpecError(
            f"the model in {model.pretrained!r} is not what this comparison began with (sha256 {sha256[:12]}, was "
            f"{model.sha256[:12]})"
        )
    return model.model_copy(update={"sha256": sha256})
