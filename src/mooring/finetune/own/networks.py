"""Networks for 32 x 32 images, in torch alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(inputs, outputs, stride), nn.ReLU(), *_conv(outputs, outputs))
        same = stride == 1 and inputs == outputs
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, images: Tensor) -> Tensor:
        changed: Tensor = self.body(images) + self.shortcut(images)
        return changed.relu()


class ResNet18Cifar(nn.Module):
    """He et al. 2016 (arXiv 1512.03385) with two blocks per stage, a 3 x 3 first convolution and no pooling after it.

    11.2 M parameters at width 64 and 10 classes.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, width), nn.ReLU())
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(4):
            outputs = width * 2**stage
            blocks += [_Block(channels, outputs, 1 if stage == 0 else 2), _Block(outputs, outputs, 1)]
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``(n, 3, 32, 32)`` images."""
        logits: Tensor = self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))
        return logits


class VGG16Cifar(nn.Module):
    """The 13 convolutions of VGG-16 (arXiv 1409.1556) with batch normalization, and one linear layer.

    14.7 M parameters at width 64 and 10 classes.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for factor, count in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(count):
                layers += [*_conv(channels, width * factor), nn.ReLU()]
                channels = width * factor
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``(n, 3, 32, 32)`` images."""
        logits: Tensor = self.head(self.features(images).flatten(1))
        return logits


class _Dense(nn.Module):
    """Adds ``growth`` channels, computed from all that came before, to the image's channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.body(images), images], dim=1)


class DenseNet121Cifar(nn.Module):
    """DenseNet-BC (arXiv 1608.06993) of 6, 12, 24 and 16 layers, its first convolution 3 x 3 without pooling.

    The growth is half of ``width``. 7.0 M parameters at width 64 and 100 classes.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        growth, channels = max(1, width // 2), width
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for stage, count in enumerate((6, 12, 24, 16)):
            for _ in range(count):
                layers.append(_Dense(channels, growth))
                channels += growth
            if stage < 3:
                half = channels // 2
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                channels = half
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``(n, 3, 32, 32)`` images."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits
