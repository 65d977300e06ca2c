"""The tensors that steps are timed on: shapes of named models, as data. Importing this does not import torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from mooring.finetune.errors import SpecError, suggestion

Shape = tuple[int, ...]
BYTES_PER_ELEMENT = 60
"""What one element takes at most while two optimizers run in turn: weights, gradient and moments of both, an anchor,
and temporaries of a backend that makes them for all tensors at once."""


@dataclass(frozen=True)
class Model:
    """Shapes that belong together.

    Attributes:
        name: what the command line calls it.
        title: what it is.
        shapes: of its tensors, in order.
        note: what was changed to fit the machine.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...]
    note: str = ""

    @property
    def elements(self) -> int:
        """All elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def needs(self) -> int:
        """Bytes that timing it takes, about."""
        return self.elements * BYTES_PER_ELEMENT


def resnet50() -> list[Shape]:
    """ResNet-50 for 1000 classes (He et al., CVPR 2016): 161 tensors, 25 557 032 parameters."""
    out: list[Shape] = []

    def convolution(inside: int, outside: int, side: int) -> None:
        out.extend([(outside, inside, side, side), (outside,), (outside,)])  # and its batch norm

    convolution(3, 64, 7)
    inside = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(inside, width, 1)
            convolution(width, width, 3)
            convolution(width, 4 * width, 1)
            if block == 0:
                convolution(inside, 4 * width, 1)
            inside = 4 * width
    return [*out, (1000, inside), (1000,)]


def vit_b16() -> list[Shape]:
    """ViT-B/16 at 224 pixels (Dosovitskiy et al., ICLR 2021): 152 tensors, 86 567 656 parameters."""
    width, hidden = 768, 3072
    norm: list[Shape] = [(width,), (width,)]
    layer = [
        *norm, (3 * width, width), (3 * width,), (width, width), (width,),
        *norm, (hidden, width), (hidden,), (width, hidden), (width,),
    ]  # fmt: skip
    start: list[Shape] = [(1, 1, width), (width, 3, 16, 16), (width,), (1, 197, width)]
    return [*start, *(shape for _ in range(12) for shape in layer), *norm, (1000, width), (1000,)]


def decoder(layers: int = 22, *, tied: bool = False) -> list[Shape]:
    """A decoder of 1.1 billion parameters, TinyLlama's (arXiv 2401.02385): 201 tensors, 1 100 048 384 parameters.

    Args:
        layers: of its 22.
        tied: leave out the output matrix, as where it is the embedding.
    """
    width, hidden, keys, words = 2048, 5632, 256, 32000
    layer: list[Shape] = [
        (width, width), (keys, width), (keys, width), (width, width),
        (hidden, width), (hidden, width), (width, hidden), (width,), (width,),
    ]  # fmt: skip
    ends: list[Shape] = [(width,)] if tied else [(width,), (words, width)]
    return [(words, width), *(shape for _ in range(layers) for shape in layer), *ends]


def small(count: int = 3000) -> list[Shape]:
    """Many small tensors, vectors and matrices in turn, as adapters and normalisations have them."""
    cycle: list[Shape] = [(64,), (16, 16), (256,), (32, 32)]
    return [cycle[i % len(cycle)] for i in range(count)]


def convolutional() -> list[Shape]:
    """A small normalised net, for a look that takes seconds."""
    first: list[Shape] = [(32, 3, 3, 3), (32,), (32,), (64, 32, 3, 3), (64,), (64,)]
    return [*first, (128, 64, 3, 3), (128,), (128,), (10, 128), (10,)]


def _decoder_in(budget: float) -> Model:
    """The decoder with as many layers as fit into so many bytes; at least one."""
    name, title = "decoder-1b", "1B decoder (TinyLlama)"
    for layers in range(22, 0, -1):
        model = Model(name, title, tuple(decoder(layers)), f"{layers} of its 22 layers, for memory")
        if model.needs <= budget:
            return Model(name, title, model.shapes) if layers == 22 else model
    return Model(name, title, tuple(decoder(1, tied=True)), "1 of its 22 layers and no output matrix, for memory")


MODELS: dict[str, Callable[[float], Model]] = {
    "resnet50": lambda _: Model("resnet50", "ResNet-50", tuple(resnet50())),
    "vit-b16": lambda _: Model("vit-b16", "ViT-B/16", tuple(vit_b16())),
    "decoder-1b": _decoder_in,
    "small-3000": lambda _: Model("small-3000", "3,000 small tensors", tuple(small())),
    "convnet": lambda _: Model("convnet", "small convolutional net", tuple(convolutional())),
}
DEFAULT = ("resnet50", "vit-b16", "decoder-1b", "small-3000")
QUICK = ("convnet",)
LAUNCH, QUICK_LAUNCH = 3000, 300
"""Tensors of one element, for the overhead per tensor."""


def parse_shapes(text: str | None, *, quick: bool) -> tuple[str, ...]:
    """Names of models, checked; anything else as ``COUNTxROWSxCOLUMNS``.

    Raises:
        SpecError: for a name that is neither.
    """
    if text is None:
        return QUICK if quick else DEFAULT
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise SpecError(f"--shapes names no shape: {text!r}; the shapes are {', '.join(MODELS)}")
    for name in names:
        if name not in MODELS and _counted(name) is None:
            raise SpecError(
                f"--shapes: unknown shape {name!r}{suggestion(name, MODELS)}; the shapes are {', '.join(MODELS)}, or "
                "COUNTxROWSxCOLUMNS such as 32x2048x2048"
            )
    return names


def model(name: str, budget: float) -> Model:
    """The shapes of a checked name, cut to so many bytes where the model can be."""
    counted = _counted(name)
    if counted is None:
        return MODELS[name](budget)
    count, rows, columns = counted
    return Model(name, f"{count} matrices of {rows} x {columns}", ((rows, columns),) * count)


def _counted(name: str) -> tuple[int, int, int] | None:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", name)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))
