"""Shapes of named models: their published sizes, and what is cut where memory is short."""

from __future__ import annotations

import math

import pytest

from mooring.bench.shapes import BYTES_PER_ELEMENT, MODELS, decoder, model, parse_shapes, resnet50, small, vit_b16
from mooring.finetune.errors import SpecError


@pytest.mark.parametrize(
    ("shapes", "tensors", "parameters"),
    [
        (resnet50(), 161, 25_557_032),  # torchvision's
        (vit_b16(), 152, 86_567_656),  # torchvision's
        (decoder(), 201, 1_100_048_384),  # TinyLlama's safetensors
        (small(), 3000, 750 * (64 + 256 + 256 + 1024)),
    ],
    ids=["resnet50", "vit-b16", "decoder-1b", "small-3000"],
)
def test_published_sizes(shapes: list[tuple[int, ...]], tensors: int, parameters: int) -> None:
    assert (len(shapes), sum(map(math.prod, shapes))) == (tensors, parameters)


def test_a_decoder_has_as_many_layers_as_fit() -> None:
    for gigabytes in (6, 20, 40):
        found = model("decoder-1b", gigabytes * 1e9)
        layers = (len(found.shapes) - 3) // 9 if "output" not in found.note else 1
        assert found.needs <= max(gigabytes * 1e9, sum(map(math.prod, decoder(1, tied=True))) * BYTES_PER_ELEMENT)
        assert f"{layers} of its 22 layers" in found.note
        larger = sum(map(math.prod, decoder(layers + 1)))
        assert larger * BYTES_PER_ELEMENT > gigabytes * 1e9
    whole = model("decoder-1b", 1e12)
    assert whole.elements == 1_100_048_384 and not whole.note


def test_the_usual_run_stays_below_six_gibibytes() -> None:
    for name in MODELS:
        assert model(name, 6 * 2**30).needs < 6.2 * 2**30


def test_names_are_checked() -> None:
    assert parse_shapes(None, quick=True) == ("convnet",)
    assert parse_shapes("resnet50, 2x3x4,resnet50", quick=True) == ("resnet50", "2x3x4")
    assert model("2x3x4", 1.0).shapes == ((3, 4), (3, 4))
    with pytest.raises(SpecError, match="did you mean 'resnet50'"):
        parse_shapes("resnet", quick=False)
    for wrong in ("0x3x4", "2x3", ",", "-1x2x2"):
        with pytest.raises(SpecError, match="--shapes"):
            parse_shapes(wrong, quick=False)
