"""docs/pipeline.md and its picture say of every rule what the rule's class says and does."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mooring as mo
from mooring.step.move import Slices
from mooring.step.rule import Rule

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pipeline", DOCS / "images" / "pipeline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def facts(script: ModuleType) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = script.facts()
    return found


def test_the_table_is_that_of_the_rules(facts: dict[str, dict[str, str]]) -> None:
    text = (DOCS / "pipeline.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert {row[0]: dict(zip(("stage", "scope", "reads", "changes", "anchor"), row[1:])) for row in rows} == facts
    assert [row[0] for row in rows] == list(facts)
    assert set(facts) == set(mo._RULES)


def test_the_picture_was_drawn_from_these_facts(facts: dict[str, dict[str, str]], script: ModuleType) -> None:
    from PIL import Image  # comes with the extra cli, which not every run of tests/docs has

    with Image.open(DOCS / "images" / "pipeline.png") as picture:
        assert json.loads(picture.info["Description"]) == facts, "run python docs/images/pipeline.py"
    drawn = {text.get_text() for text in script.draw(facts).axes[0].texts}
    for name, fact in facts.items():
        assert name in drawn
        if fact["reads"] != "—":
            assert any(f"reads {fact['reads']}" in text for text in drawn)


def test_no_words_of_the_picture_run_into_each_other(facts: dict[str, dict[str, str]], script: ModuleType) -> None:
    figure = script.draw(facts)
    figure.canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent()) for t in figure.axes[0].texts]
    frame = figure.bbox
    for i, (one, a) in enumerate(boxes):
        assert frame.x0 <= a.x0 and a.x1 <= frame.x1 and frame.y0 <= a.y0 and a.y1 <= frame.y1, one
        for other, b in boxes[i + 1 :]:
            assert not a.overlaps(b), (one, other)


class Half(Rule):
    """Takes half of the move, reading one product."""

    scope, order = "tensor", 3

    def reads(self, live: str) -> set[str]:
        return {"uu"}

    def decide(self, x: Slices, totals: list[torch.Tensor]) -> None:
        x.move.scale(torch.full_like(x.move.beta, 0.5))


class Nothing(Rule):
    """Changes nothing."""


@pytest.mark.parametrize(
    ("rule", "coefficients"),
    [(Half(), "τ β κ"), (Nothing(), ""), (mo.DecoupledDecay(0.1, toward="anchor"), "κ"), (mo.TrustRatio(), "τ β κ")],
)
def test_what_a_rule_changes_is_seen_and_not_declared(rule: Any, coefficients: str, script: ModuleType) -> None:
    assert script.changed(rule) == coefficients
