"""Checkpoints written by released versions must load for ever, and training must go on as it would have then.

`python -m tests.optim.test_frozen_checkpoint NAME` writes the file of a new release; files are never rewritten.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.table import ROWS, OptimizerRow, named_rows

FOLDER = Path(__file__).parent / "checkpoints"
SHAPES = [(3, 4), (2, 2, 1, 2), (3,), ()]


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers that no change of a random generator can change."""
    values = [math.sin(1.7 * i + phase) for i in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def train(optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(start, stop):
        for j, p in enumerate(params):
            p.grad = wave(tuple(p.shape), 2.0 * t + j) + 0.3 * p.detach()
        optimizer.step()


def build(row: OptimizerRow, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return row.build([{"params": params[:2]}, {"params": params[2:], "lr": 0.003}], row.remembering)


def weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def write(name: str) -> None:
    """Five steps, the checkpoint, and where five more steps lead."""
    saved: dict[str, Any] = {}
    for row in ROWS:
        if row.make is None:
            optimizer = build(row, [nn.Parameter(wave(s, 0.5)) for s in SHAPES])
            train(optimizer, 0, 5)
            at_five = weights(optimizer)
            state = optimizer.state_dict()
            saved[row.name] = {"weights": at_five, "optimizer": state}
            torch.save(saved, FOLDER / f"{name}.pt")
            saved = torch.load(FOLDER / f"{name}.pt", weights_only=True)
            train(optimizer, 5, 10)
            saved[row.name]["after"] = weights(optimizer)
    torch.save(saved, FOLDER / f"{name}.pt")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.pt")), ids=lambda path: path.stem)
@named_rows
def test_an_old_checkpoint_continues(row: OptimizerRow, path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    if row.name not in saved:
        pytest.skip(f"{path.stem} had no {row.name}")
    then = saved[row.name]
    optimizer = build(row, [nn.Parameter(w.clone()) for w in then["weights"]])
    optimizer.load_state_dict(then["optimizer"])
    train(optimizer, 5, 10)
    for x, y in zip(weights(optimizer), then["after"]):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    write(sys.argv[1])
