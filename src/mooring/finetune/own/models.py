"""The model that a task on data of one's own starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.own.networks import DenseNet121Cifar, ResNet18Cifar, VGG16Cifar
from mooring.finetune.task_spec import ModelSpec

_BUILTIN: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet18-cifar": ResNet18Cifar,
    "vgg16-cifar": VGG16Cifar,
    "densenet121-cifar": DenseNet121Cifar,
}
Purpose = Literal["images", "tokens"]


class Logits(nn.Module):
    """A model of transformers as a function from one tensor to logits.

    Attributes:
        network: The model.
        new: Names of the parameters that have no pretrained value; empty where none has one.
    """

    def __init__(self, network: nn.Module, argument: str, new: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network, self.argument, self.new = network, argument, new

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.network(**{self.argument: inputs}).logits
        return logits


def build(spec: ModelSpec, purpose: Purpose, classes: int = 0) -> nn.Module:
    """The model; what it draws comes from torch's global generator.

    Args:
        spec: Which model.
        purpose: What it gets: images, to be sorted into ``classes``, or tokens, of which it predicts the next ones.
        classes: How many classes; for tokens the size of the vocabulary, where the configuration is ours to write.

    Raises:
        SpecError: The type, its configuration or the folder does not make such a model.
    """
    if spec.builtin:
        if purpose != "images":
            raise SpecError(f"model.builtin {spec.builtin!r} is for images")
        return _BUILTIN[spec.builtin](classes, spec.width)
    try:
        import transformers
    except ModuleNotFoundError as missing:
        raise SpecError(f"models of transformers need its extra: pip install 'mooring[models]' ({missing})") from None
    images = purpose == "images"
    family = transformers.AutoModelForImageClassification if images else transformers.AutoModelForCausalLM
    argument = "pixel_values" if images else "input_ids"
    labels = {"num_labels": classes} if images else {}
    if spec.type:
        sizes: dict[str, Any] = labels if images or not classes else {"vocab_size": classes}
        try:
            usual = transformers.AutoConfig.for_model(spec.type)
            _check_keys(spec, usual)
            config = transformers.AutoConfig.for_model(spec.type, **{**sizes, **spec.config})
            return Logits(family.from_config(config), argument)
        except SpecError:
            raise
        except Exception as error:
            raise SpecError(f"model.type {spec.type!r} with the config given makes no model: {_line(error)}") from error
    try:
        network, report = family.from_pretrained(
            spec.pretrained,
            revision=spec.revision or None,
            dtype=getattr(torch, spec.dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=images,
            output_loading_info=True,
            **labels,
        )
    except Exception as error:
        raise SpecError(f"the model {spec.pretrained!r} cannot be loaded for {purpose}: {_line(error)}") from error
    absent = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    new = tuple(name for name in sizes if name in absent)
    if 2 * sum(sizes[name] for name in new) > sum(sizes.values()):
        raise SpecError(
            f"the weights in {spec.pretrained!r} are not those of {type(network).__name__}: {len(new)} of its "
            f"{len(sizes)} parameters are not among them, {new[0]} for one"
        )
    return Logits(network, argument, tuple(f"network.{name}" for name in new))


def _check_keys(spec: ModelSpec, usual: Any) -> None:
    # A configuration takes any key, and a misspelt one would train another model than the file says.
    for name in spec.config:
        if not hasattr(usual, name):
            raise SpecError(f"model.config: {type(usual).__name__} has no {name!r}{suggestion(name, usual.to_dict())}")


def tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer beside a pretrained model's weights.

    Raises:
        SpecError: There is none, or transformers is missing.
    """
    try:
        import transformers
    except ModuleNotFoundError as missing:
        raise SpecError(f"models of transformers need its extra: pip install 'mooring[models]' ({missing})") from None
    try:
        return transformers.AutoTokenizer.from_pretrained(spec.pretrained, revision=spec.revision or None)
    except Exception as error:
        raise SpecError(
            f"the tokenizer of {spec.pretrained!r} cannot be loaded: {_line(error)}; it should hold tokenizer.json, "
            "which save_pretrained of the tokenizer writes"
        ) from error


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
