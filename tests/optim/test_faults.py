"""The list of known faults names tests that exist, and leaves out no row of what users stumble over."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in (TESTS / "faults.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| source")
]


@cache
def named_in(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_each_fault_has_a_test(row: tuple[str, ...]) -> None:
    _, _, caught_by = row
    for test in caught_by.split(", "):
        path, name = test.split("::")
        assert name in named_in(path), test


def test_no_row_is_missing() -> None:
    listed = {source for source, _, _ in ROWS}
    assert {f"hosts {n}" for n in range(1, 61)} | {f"methods §{n}" for n in (1, 2, 3, 4)} <= listed
