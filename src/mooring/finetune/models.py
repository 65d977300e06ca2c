"""The small networks of the embedded tasks. Both have batch normalization, whose weights are scale invariant."""

from __future__ import annotations

from torch import Tensor, nn


def _conv(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


class ConvNet(nn.Module):
    """140 066 parameters on 8x8 grey images: three convolutions, one hidden layer, batch normalization after each."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(*_conv(1, 32, 1), *_conv(32, 64, 2), *_conv(64, 128, 2), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(512, 90, bias=False), nn.BatchNorm1d(90), nn.ReLU())
        self.head = nn.Linear(90, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of ``(n, 1, 8, 8)`` images."""
        logits: Tensor = self.head(self.hidden(self.features(images)))
        return logits


class MLP(nn.Module):
    """Two hidden layers with batch normalization, for tabular inputs."""

    def __init__(self, features: int, width: int = 64, classes: int = 2) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(features, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits of a batch of rows."""
        logits: Tensor = self.head(self.hidden(rows))
        return logits
