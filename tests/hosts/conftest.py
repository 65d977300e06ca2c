"""What the host tests share: no network, one thread, and one tiny labelled data set.

The hosts themselves are imported inside the tests: without the extra `hosts` these files still collect,
and selecting them without it fails instead of skipping.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps the hosts away from any hub, and one thread keeps sums in one order."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Snapshot:
    """A model's parameters by name, as they were when it was taken."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.values = {name: value.detach().clone() for name, value in model.named_parameters()}

    def assert_equal(self, other: Snapshot) -> None:
        """Bitwise, tensor by tensor, so that a failure names the tensor."""
        assert self.values.keys() == other.values.keys()
        for name, value in self.values.items():
            assert torch.equal(value, other.values[name]), f"{name} differs"

    def assert_anchors(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Every anchor that `optimizer` holds is this snapshot's value of that parameter, bit for bit."""
        for name, parameter in model.named_parameters():
            assert torch.equal(optimizer.state[parameter]["anchor"], self.values[name]), f"anchor of {name} differs"


@pytest.fixture
def snapshot() -> type[Snapshot]:
    return Snapshot


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """64 rows of 8 features or tokens; the label is whether the first one is in the upper half."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.tokens = torch.randint(0, 32, (64, 8), generator=generator)
        self.labels = (self.tokens[:, 0] >= 16).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


@pytest.fixture
def rows() -> Rows:
    return Rows()


class TokenNet(torch.nn.Module):
    """Embedding, norm, hidden layer, head; dropout makes a resume that loses the random state visible."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(32, 8)
        self.body = torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.Linear(64, 16), torch.nn.GELU())
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.body(self.embedding(input_ids).flatten(1))))


@pytest.fixture
def token_net() -> type[TokenNet]:
    return TokenNet


@pytest.fixture
def strangers():
    """A function: the same model with other weights, so that a resume that captured anew would be seen."""

    def scrambled(model: torch.nn.Module) -> torch.nn.Module:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        return other

    return scrambled
