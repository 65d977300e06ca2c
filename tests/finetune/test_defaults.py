from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from mooring.finetune.methods import METHODS

MEASURED = Path(__file__).parents[2] / "benchmarks" / "tune_defaults.csv"

TUNED = [name for name, info in METHODS.items() if info.tuned]


def rows() -> list[dict[str, str]]:
    with MEASURED.open() as file:
        return list(csv.DictReader(file))


def test_every_method_was_tuned_with_equal_effort() -> None:
    assert Counter(row["method"] for row in rows()) == dict.fromkeys(TUNED, 12)


@pytest.mark.parametrize("name", TUNED)
def test_defaults_are_the_best_measured_point(name: str) -> None:
    mine = [row for row in rows() if row["method"] == name]
    best = max(mine, key=lambda row: (float(row["id_val/accuracy"]), -float(row["id_val/nll"])))
    chosen = json.loads(best["options"])
    assert set(chosen) == set(METHODS[name].space)
    assert {option: METHODS[name].spec.options[option] for option in chosen} == chosen
