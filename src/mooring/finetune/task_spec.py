"""Which task a trial fine-tunes on, as data: an embedded one, or a kind of task with data and a model of one's own."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from mooring.finetune.tasks.registry import OWN, task_info

_SPLIT = re.compile(r"train|id|id_val|ood\.[A-Za-z0-9_-]+")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Spec(BaseModel):
    """A part of a trial's description: unknown keys are errors, because an option misspelt and ignored misleads."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSpec(Spec):
    """Which task, and how its pretrained starts are made.

    Attributes:
        name: A name of the registry of tasks.
        data_seed: Seeds everything drawn for the task: pretraining, splits, corruptions.
        starts: How many pretrained starts there are; a trial with seed ``s`` uses start ``s % starts``.
        pretrain_steps: Optimizer steps of the pretraining; 0 stands for the task's own number, which replaces it.
        pretrain_examples: Source examples of the pretraining; 0 likewise.
    """

    name: str = "vision-fonts2digits"
    data_seed: int = Field(default=0, ge=0)
    starts: int = Field(default=5, ge=1)
    pretrain_steps: int = Field(default=0, ge=0)
    pretrain_examples: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, data: Any) -> Any:
        # Resolved here rather than when the task runs, so that a saved specification says what was done.
        if not isinstance(data, dict):
            return data
        info = task_info(str(data.get("name", cls.model_fields["name"].default)))
        own = {"pretrain_steps": info.pretrain_steps, "pretrain_examples": info.pretrain_examples}
        return {**data, **{name: value for name, value in own.items() if not data.get(name)}}

    def identity(self) -> dict[str, Any]:
        """What of the task decides a trial's result, for its key."""
        return self.model_dump(mode="json")


class ModelSpec(Spec):
    """The model that a task on data of one's own starts from: one of ``pretrained``, ``type`` and ``builtin``.

    Attributes:
        pretrained: A folder with ``config.json`` and ``model.safetensors``, or a hub id: pretrained weights, which are
            the anchor. Weights that were pickled are refused.
        revision: The hub's commit or tag.
        type: A model type of transformers (``resnet``, ``mobilenet_v2``, ``gpt2``), made from ``config`` with random
            weights, to be trained from scratch.
        config: The keyword arguments of that type's configuration class.
        builtin: A network of this package with random weights: ``resnet18-cifar``, ``vgg16-cifar`` or
            ``densenet121-cifar``.
        width: Channels of the builtin network's first layer.
        dtype: The type that pretrained weights are loaded in.
        sha256: Of the pretrained folder's files; found when a comparison starts, and part of a trial's key.
    """

    pretrained: str = ""
    revision: str = ""
    type: str = ""
    config: dict[str, Any] = {}
    builtin: Literal["", "resnet18-cifar", "vgg16-cifar", "densenet121-cifar"] = ""
    width: int = Field(default=64, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    sha256: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("pretrained", "type", "builtin") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give one of pretrained (a folder or a hub id), type (a transformers model type) and builtin, "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.config and not self.type:
            raise ValueError(f"config goes with type; {given[0]} has its own")
        return self


class OwnTaskSpec(TaskSpec):
    """What all tasks on data of one's own have.

    Attributes:
        data: The folder; ``--data`` on the command line.
        data_sha256: Names and sizes of the files that are used (of texts their content), found when a comparison
            starts. It is part of a trial's key in place of the folder's path, so moved data is still the same data.
        model: What is trained.
        train_sample: How many training examples are evaluated for ``train/…``.
        eval_batch: Examples per evaluation batch.
        workers: Threads that read and decode; no result depends on it.
    """

    pretrain_steps: int = Field(default=0, exclude=True)
    pretrain_examples: int = Field(default=0, exclude=True)
    data: str = ""
    data_sha256: str = ""
    model: ModelSpec
    train_sample: int = Field(default=5000, ge=1)
    eval_batch: int = Field(default=256, ge=1)
    workers: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _is_not_pretrained_here(self) -> Self:
        for name in ("pretrain_steps", "pretrain_examples"):
            if getattr(self, name):
                raise ValueError(f"{name} is for embedded tasks; {self.name} starts from the model it is given")
        return self

    def identity(self) -> dict[str, Any]:
        """Data and model by what is in them, not by where they lie."""
        content = self.model_dump(mode="json", exclude={"data", "workers"})
        if content["model"]["sha256"]:
            del content["model"]["pretrained"]
        return content


def _check_split(name: str) -> None:
    if not _SPLIT.fullmatch(name):
        raise ValueError(f"unknown split {name!r}; splits are train, id, id_val and ood.NAME")


class _ImageSpec(OwnTaskSpec):
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class ImageFolderSpec(_ImageSpec):
    """Images in folders of classes, or named by lists.

    Attributes:
        splits: Split → a folder of class folders, or a text file of a list, relative to ``data``. A list has one image
            per line, its path and, after a space, its class as a number; without a number the class is the path's
            folder. Splits are ``train``, ``id``, ``id_val`` and ``ood.NAME``. Default: folders ``train`` and ``val``
            or ``test``; with both, ``val`` is ``id_val`` and ``test`` is ``id``.
        root: The folder that the paths in lists begin at, relative to ``data``.
        holdout: Split → share of the training images to set aside for it, class by class, drawn by the seed.
        image_size: Side of the square that the model sees, in pixels.
        resize: Shorter side that images are resized to before the square in their middle is cut out for evaluation;
            0: ``image_size / 0.875``.
        scale: Share of the image's area that the random crop of training covers.
        flip: Probability of a horizontal flip in training.
        mean: Of each channel, subtracted from values in [0, 1].
        std: Of each channel, divided by.
    """

    name: Literal["image-folder"]
    splits: dict[str, str] = {}
    root: str = "."
    holdout: dict[str, float] = {}
    image_size: int = Field(default=224, ge=1)
    resize: int = Field(default=0, ge=0)
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = Field(default=0.5, ge=0.0, le=1.0)

    @field_validator("splits", "holdout")
    @classmethod
    def _known_splits(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            _check_split(name)
        return value

    @field_validator("scale")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"scale must be a range within (0, 1], got {list(value)}")
        return value

    @model_validator(mode="after")
    def _something_to_test_on(self) -> Self:
        if "train" in self.holdout or sum(self.holdout.values()) >= 1 or any(v <= 0 for v in self.holdout.values()):
            raise ValueError(f"holdout takes shares of the training images that sum to less than 1, got {self.holdout}")
        if self.splits and ("train" not in self.splits or "id" not in {*self.splits, *self.holdout}):
            raise ValueError("splits must name train, and id must be among splits or holdout")
        return self


class CifarSpec(_ImageSpec):
    """CIFAR-10 or CIFAR-100 in the binary version.

    That is ``data_batch_1.bin`` … ``test_batch.bin``, or ``train.bin`` and ``test.bin``.

    Attributes:
        classes: 10 or 100 (of CIFAR-100 the fine labels).
        augment: Pad by 4 pixels, cut out 32 x 32 at random, and flip half of the images.
        mean: Of each channel, subtracted from values in [0, 1].
        std: Of each channel, divided by.
    """

    name: Literal["cifar"]
    classes: Literal[10, 100] = 10
    augment: bool = True


def _files(**files: str) -> Any:
    return {split: (name,) for split, name in files.items()}


class _TextSpec(OwnTaskSpec):
    files: dict[str, tuple[str, ...]]
    eval_batch: int = Field(default=8, ge=1)
    train_sample: int = Field(default=200, ge=1)

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {split: (names,) if isinstance(names, str) else names for split, names in value.items()}

    @field_validator("files")
    @classmethod
    def _known_splits(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, files in value.items():
            _check_split(name)
            if not files:
                raise ValueError(f"split {name!r} names no file")
        if "train" not in value:
            raise ValueError("files must name train")
        return value


class LanguageModelSpec(_TextSpec):
    """A causal language model on text files, trained and evaluated on blocks of consecutive tokens.

    Attributes:
        files: Split → text file or list of them, relative to ``data``; splits are ``train``, ``id``, ``id_val`` and
            ``ood.NAME``.
        tokens: ``words`` (separated by white space, the end of a line being one) for texts that are split into words
            already, or ``model``: the tokenizer in the pretrained model's folder.
        block: Tokens that the model sees at once.
        vocabulary: With ``words``: how many of the training text's most frequent words are kept; 0: all of them.
            Other words become ``<unk>``.
    """

    name: Literal["language-model"]
    files: dict[str, tuple[str, ...]] = _files(
        train="wiki.train.tokens", id_val="wiki.valid.tokens", id="wiki.test.tokens"
    )
    tokens: Literal["words", "model"] = "words"
    block: int = Field(default=150, ge=2)
    vocabulary: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _something_to_test_on(self) -> Self:
        if "id" not in self.files:
            raise ValueError("files must name train and id")
        return self


class LoraSpec(Spec):
    """Low-rank adapters, made by peft: the model's own weights are frozen.

    Attributes:
        r: Rank.
        alpha: The adapters' output is scaled by ``alpha / r``.
        dropout: Of the adapters' input.
        targets: Names of the layers that get one.
    """

    r: int = Field(default=32, ge=1)
    alpha: float = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


class InstructionsSpec(_TextSpec):
    """Instructions and answers in JSON, answered by a causal language model.

    Attributes:
        files: Split → one file or several: a ``.json`` list or ``.jsonl`` lines of objects with ``instruction``,
            ``input`` (may be empty or missing) and ``output``; splits are ``train``, ``id``, ``id_val`` and
            ``ood.NAME``.
        holdout: How many training examples become ``id``, drawn by the seed, where ``files`` has no ``id``.
        prompt: What stands before the answer; ``{instruction}`` and ``{input}`` are filled in.
        max_tokens: Longer examples are cut to their first tokens.
        lora: Train adapters; without it, all weights.
    """

    name: Literal["instructions"]
    files: dict[str, tuple[str, ...]] = _files(train="commonsense_170k.json")
    holdout: int = Field(default=0, ge=0)
    prompt: str = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    )
    max_tokens: int = Field(default=256, ge=2)
    lora: LoraSpec | None = None

    @field_validator("prompt")
    @classmethod
    def _takes_the_instruction(cls, value: str) -> str:
        if "{instruction}" not in value:
            raise ValueError("prompt must have {instruction} in it, where the instruction goes")
        return value

    @model_validator(mode="after")
    def _something_to_test_on(self) -> Self:
        if ("id" in self.files) == (self.holdout > 0):
            raise ValueError("give files an id, or holdout a number of training examples that become it, not both")
        return self


def kind_of(task: Any) -> str:
    """Which description a task's name asks for: its own, or that of the embedded tasks."""
    name = task.get("name") if isinstance(task, dict) else getattr(task, "name", None)
    return name if isinstance(name, str) and name in OWN else "embedded"


AnyTask = Annotated[
    Annotated[TaskSpec, Tag("embedded")]
    | Annotated[ImageFolderSpec, Tag("image-folder")]
    | Annotated[CifarSpec, Tag("cifar")]
    | Annotated[LanguageModelSpec, Tag("language-model")]
    | Annotated[InstructionsSpec, Tag("instructions")],
    Discriminator(kind_of),
]

SPECS: dict[str, type[TaskSpec]] = {
    "embedded": TaskSpec,
    "image-folder": ImageFolderSpec,
    "cifar": CifarSpec,
    "language-model": LanguageModelSpec,
    "instructions": InstructionsSpec,
}
"""The description of each kind of task, by the tag that stands in the location of an error."""
