"""Mild corruptions of 8x8 grey images in [0, 1], in three severities.

At 8x8 one pixel is an eighth of the image, so the severities are fractions of what larger images are given: the first
shift is less than half a pixel. Every image draws its noise pattern, its shift direction and its occlusion's place
once, and a higher severity is more of the same draw; the result depends on the generator's seed alone, so every method
sees the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SEVERITIES = (1, 2, 3)

NOISE_SD = (0.15, 0.25, 0.35)
CONTRAST = (0.6, 0.5, 0.4)
SHIFT_PIXELS = (0.4, 0.65, 0.9)
OCCLUSION_SIDE = (2.0, 2.5, 3.0)


def noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Independent Gaussian noise on every pixel."""
    return images + NOISE_SD[severity - 1] * torch.randn(images.shape, generator=generator)


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Every image drawn toward its own mean; nothing is random here."""
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    adjusted: Tensor = adjust_contrast_with_mean_subtraction(images, CONTRAST[severity - 1])
    return adjusted


def shift(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A shift in a random direction, bilinear, with background moving in."""
    from kornia.geometry.transform import translate

    angle = 2 * math.pi * torch.rand(len(images), generator=generator)
    offset = SHIFT_PIXELS[severity - 1] * torch.stack([angle.cos(), angle.sin()], dim=1)
    moved: Tensor = translate(images, offset, mode="bilinear", padding_mode="zeros")
    return moved


def occlusion(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A square of background at a random place inside the image; pixels it covers in part lose that part."""
    size, side = images.shape[-1], OCCLUSION_SIDE[severity - 1]
    centre = side / 2 + (size - side) * torch.rand(len(images), 2, generator=generator)
    pixel = torch.arange(size, dtype=images.dtype)
    low, high = (centre - side / 2)[..., None], (centre + side / 2)[..., None]
    covered = (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(0, 1)
    mask = covered[:, 1, :, None] * covered[:, 0, None, :]
    return images * (1 - mask[:, None])


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "noise": noise,
    "contrast": contrast,
    "shift": shift,
    "occlusion": occlusion,
}


def corrupt(images: Tensor, kind: str, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt a batch of ``(n, 1, 8, 8)`` images; the result is clamped to [0, 1]."""
    return CORRUPTIONS[kind](images, severity, generator).clamp(0, 1)
