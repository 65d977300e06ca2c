"""Equal gradient evaluations from the command line, around NSO composed with other methods."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from .conftest import SMALL, Mooring

RECIPES = [
    {"name": "nso", "k": 2},
    {"optimizer": "mooring:AdamP", "lr": 1e-3, "perturb": {"NSO": {"sigma": 0.01, "k": 1}}},
    {"name": "adamspd", "perturb": "NSO"},
]


def test_equal_gradient_evaluations(mooring: Mooring, tmp_path: Path) -> None:
    Path("recipes.yaml").write_text(yaml.safe_dump(RECIPES))
    command = ("compare", *SMALL, "--methods", "adamw,sam,recipes.yaml", "--seeds", "1", "--output-dir", "out")
    code, out, err = mooring(*command, "--budget", "gradients")
    assert code == 0, err
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file) if row["status"] == "done"}
    assert {name: int(row["steps"]) for name, row in rows.items()} == {
        "adamw": 20, "sam": 10, "nso": 5, "AdamP+NSO": 10, "adamspd+NSO": 10,
    }  # fmt: skip
    assert {row["cost/gradient_evaluations"] for row in rows.values()} == {"20"}
    with (tmp_path / "out" / "curves.csv").open() as file:
        last = {row["method"]: row for row in csv.DictReader(file)}
    assert {row["gradients"] for row in last.values()} == {"20"}
    assert "training" in out
    assert "time/step" not in out
    assert "(sam 10, nso 5, AdamP+NSO 10, adamspd+NSO 10)" in (tmp_path / "out" / "report.md").read_text()

    # The same folder goes on with its budget, and is not continued with another.
    assert mooring("compare", "--output-dir", "out", "--quiet")[0] == 0
    code, out, err = mooring(*command, "--budget", "steps")
    assert (code, out) == (2, "")
    assert "compare.budget is 'gradients' there, 'steps' asked" in err


def test_equal_steps_show_what_they_cost(mooring: Mooring) -> None:
    code, out, err = mooring("compare", *SMALL, "--methods", "adamw,sam", "--seeds", "1")
    assert code == 0, err
    assert "40 ×2.00" in out
    assert "At adamw’s gradient evaluations, schedules cut off" in out


def test_a_wrong_budget_or_perturbation_is_bad_input(mooring: Mooring) -> None:
    code, out, err = mooring("compare", "--budget", "gradient")
    assert (code, out) == (2, "")
    assert "gradients" in err
    code, out, err = mooring("compare", "--methods", "adamw,nso[sigmaa=1]")
    assert (code, out) == (2, "")
    assert "did you mean 'sigma'?" in err
