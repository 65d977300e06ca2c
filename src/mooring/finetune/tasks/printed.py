"""Printed digits: the fonts that matplotlib ships, drawn by Pillow and varied by random affine maps."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from mooring.finetune.data import Split

# Twenty of matplotlib's text faces; most of its other files hold symbols, or have no digits.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)

_GLYPH, _CANVAS, _IMAGE = 64, 32, 8

# Ranges of the affine maps, chosen so that the results look as varied as handwriting at 8x8.
_ROTATION_DEGREES = 15.0
_SHEAR = 0.3
_HEIGHT = (0.85, 1.1)
_ASPECT = (0.65, 1.2)
_SHIFT_X, _SHIFT_Y = 0.15, 0.06


@cache
def _glyphs() -> Tensor:
    """Every digit in every font, full height, centred: ``(fonts, 10, 1, 64, 64)`` with ink = 1."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    result = torch.zeros(len(FONTS), 10, 1, _GLYPH, _GLYPH)
    for row, name in enumerate(FONTS):
        path = folder / f"{name}.ttf"
        if not path.is_file():
            raise FileNotFoundError(f"matplotlib {matplotlib.__version__} has no font {path}, which this task needs")
        font = ImageFont.truetype(str(path), size=2 * _GLYPH)
        for digit in range(10):
            left, top, right, bottom = (round(edge) for edge in font.getbbox(str(digit)))
            image = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(image).text((-left, -top), str(digit), fill=255, font=font)
            width = min(_GLYPH, round(image.width * _GLYPH / image.height))
            image = image.resize((width, _GLYPH), Image.Resampling.BOX)
            margin = (_GLYPH - width) // 2
            ink = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
            result[row, digit, 0, :, margin : margin + width] = ink
    return result


def printed_digits(count: int, generator: torch.Generator) -> Split:
    """Draw digits in random fonts under random affine maps at 32x32, area-averaged to 8x8 like the handwritten set."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    labels = (torch.arange(count) % 10)[torch.randperm(count, generator=generator)]
    fonts = torch.randint(len(FONTS), (count,), generator=generator)
    angle = math.radians(1) * uniform(-_ROTATION_DEGREES, _ROTATION_DEGREES)
    shear = uniform(-_SHEAR, _SHEAR)
    height = uniform(*_HEIGHT)
    width = height * uniform(*_ASPECT)
    offset = torch.stack([uniform(-_SHIFT_X, _SHIFT_X), uniform(-_SHIFT_Y, _SHIFT_Y)], dim=1)

    # affine_grid wants the map from the output back to the glyph: undo the rotation, then the shear, then the scale.
    zero, one = torch.zeros(count), torch.ones(count)
    back = _matrix(1 / width, zero, zero, 1 / height) @ _matrix(one, shear, zero, one)
    back = back @ _matrix(angle.cos(), angle.sin(), -angle.sin(), angle.cos())
    theta = torch.cat([back, -back @ offset[..., None]], dim=-1)
    grid = affine_grid(theta, [count, 1, _CANVAS, _CANVAS], align_corners=False)
    # Halving the glyphs first keeps the bilinear samples from skipping thin strokes.
    glyphs = avg_pool2d(_glyphs().flatten(0, 1), _GLYPH // _CANVAS)[fonts * 10 + labels]
    canvas = grid_sample(glyphs, grid, align_corners=False)
    return Split(avg_pool2d(canvas, _CANVAS // _IMAGE).clamp(0, 1), labels)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], dim=-1), torch.stack([c, d], dim=-1)], dim=-2)
