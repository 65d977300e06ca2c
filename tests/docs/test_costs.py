"""The costs that README and docs/methods.md state are the optimizers' own: the state they allocate, and `mo.cost`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mooring as mo
from mooring.step.rule import entries_read

ROOT = Path(__file__).parents[2]
NUMEL = 1000


def table() -> list[tuple[str, dict[str, Any], int, int, int, str]]:
    """The rows of the table of costs in docs/methods.md: its numbers are the only ones there are."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split("<!-- costs -->")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (\d+) \| (\d+) \| (\d+) \| (.*?) \|$", text, re.MULTILINE)
    return [
        (name, eval(f"dict({options.strip('`')})"), int(size), int(passes), int(collectives), sums)
        for name, options, size, passes, collectives, sums in rows
    ]


def optimizer_after_two_steps(name: str, options: dict[str, Any]) -> tuple[Any, torch.nn.Parameter]:
    weight = torch.nn.Parameter(torch.randn(NUMEL // 10, 10))
    optimizer = getattr(mo, name)([weight], lr=1e-3, one_parameter=True, **options)
    for _ in range(2):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    return optimizer, weight


def state_bytes(name: str, options: dict[str, Any]) -> float:
    """Bytes of parameter-shaped state per parameter, after two steps."""
    optimizer, weight = optimizer_after_two_steps(name, options)
    shaped = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor) and v.ndim]
    return sum(v.numel() * v.element_size() for v in shaped) / NUMEL


def test_every_optimizer_is_in_the_table() -> None:
    assert {name for name, *_ in table()} == set(mo._OPTIMIZERS)


@pytest.mark.parametrize("row", table(), ids=lambda row: " ".join([row[0], *row[1]]))
def test_the_table_states_what_a_step_costs(row: tuple[str, dict[str, Any], int, int, int, str]) -> None:
    name, options, size, passes, collectives, sums = row
    assert state_bytes(name, options) == size
    optimizer, _ = optimizer_after_two_steps(name, options)
    (counted,) = mo.cost(optimizer)
    assert (counted.state_bytes, counted.passes, counted.collectives) == (size, passes, collectives)
    assert counted.gradients == 1
    group = optimizer.param_groups[0]
    read = " ".join(entries_read([rule for rule in optimizer._rules if rule.active(group)], group))
    scanned = "" if not optimizer._moments.scans else "Σv" if options.get("amsgrad") else "Σg²"
    assert sums == (read or scanned or "—")


@pytest.mark.parametrize("name", ["Adam", "AdamW", "AdamP", "AdamS", "AdamSPD"])
def test_amsgrad_adds_four(name: str) -> None:
    assert state_bytes(name, {"amsgrad": True}) == state_bytes(name, {}) + 4


def test_the_first_page_states_these_bytes() -> None:
    """The README's table of methods: all numbers of its last column are costs of the methods in its first."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Methods")[1]
    rows = re.findall(r"^\| (`[^|]*) \| .* \| ([^|]*) \|$", text, re.MULTILINE)
    sizes: dict[str, set[int]] = {}
    for name, _, size, *_ in table():
        sizes.setdefault(name, set()).add(size)
    checked = 0
    for first, last in rows:
        names = [n for n in re.findall(r"`(\w+)", first) if n in sizes]
        for n in (int(n) for n in re.findall(r"\d+", last)):
            assert any(n in sizes[name] for name in names), (first, n)
            checked += 1
    assert checked >= 10
