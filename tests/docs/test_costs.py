"""The bytes of state that README and docs/methods.md state are those the optimizers allocate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mooring as mo

ROOT = Path(__file__).parents[2]
NUMEL = 1000

# (optimizer, options, bytes per parameter), as the tables state them.
COSTS: list[tuple[str, dict[str, Any], int]] = [
    ("AdamW", {}, 8),
    ("Adam", {}, 8),
    ("AdamP", {}, 8),
    ("AdamS", {}, 8),
    ("AdamSPD", {}, 12),
    ("AdamSPD", {"anchor": "zero"}, 8),
    ("Adai", {}, 12),
    ("AdaiS", {}, 12),
    ("SGD", {}, 0),
    ("SGD", {"momentum": 0.9}, 4),
    ("SGDP", {}, 0),
    ("SGDP", {"momentum": 0.9}, 4),
    ("SGDS", {}, 0),
    ("SGDS", {"momentum": 0.9}, 4),
    ("SGDSPD", {}, 4),
    ("SGDSPD", {"momentum": 0.9}, 8),
    ("SGDSPD", {"anchor": "zero"}, 0),
    ("SGDSPD", {"momentum": 0.9, "anchor": "zero"}, 4),
]


def state_bytes(name: str, options: dict[str, Any]) -> float:
    """Bytes of parameter-shaped state per parameter, after two steps."""
    weight = torch.nn.Parameter(torch.randn(NUMEL // 10, 10))
    optimizer = getattr(mo, name)([weight], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(2):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    shaped = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor) and v.ndim]
    return sum(v.numel() * v.element_size() for v in shaped) / NUMEL


@pytest.mark.parametrize(("name", "options", "expected"), COSTS)
def test_state_bytes(name: str, options: dict[str, Any], expected: int) -> None:
    assert state_bytes(name, options) == expected


@pytest.mark.parametrize("name", ["Adam", "AdamW", "AdamP", "AdamS", "AdamSPD"])
def test_amsgrad_adds_four(name: str) -> None:
    assert state_bytes(name, {"amsgrad": True}) == state_bytes(name, {}) + 4


def test_the_table_states_these_numbers() -> None:
    """Every number in the second column of methods.md's table is one of this optimizer's costs, and none is missing."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split("<!-- costs -->")[1]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(dict.fromkeys(name for name, _, _ in COSTS))
    for name, cell in rows:
        stated = {int(n) for n in re.findall(r"\d+", cell)}
        assert stated == {cost for other, _, cost in COSTS if other == name}, name
