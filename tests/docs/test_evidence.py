"""docs/evidence is what the last full `mooring reproduce all` wrote: every experiment, complete and green."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from mooring.reproduce.driver import PICTURE, load_result
from mooring.reproduce.page import PAGE
from mooring.reproduce.registry import EXPERIMENTS, ExperimentInfo

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
SHOWN = [info for info in EXPERIMENTS.values() if not info.needs]


@pytest.mark.parametrize("info", SHOWN, ids=lambda info: info.id)
def test_every_experiment_is_shown_in_full_and_green(info: ExperimentInfo) -> None:
    result = load_result(EVIDENCE / info.id)
    assert result is not None, f"docs/evidence has no {info.id}: mooring reproduce {info.id} --output-dir docs/evidence"
    assert result.ok and not result.quick
    assert any(check.asserted for check in result.checks)
    with (EVIDENCE / info.id / "checks.csv").open(encoding="utf-8") as file:
        assert [row["figure"] for row in csv.DictReader(file)] == [check.figure for check in result.checks]
    for name in result.data:
        assert (EVIDENCE / info.id / f"{name}.csv").stat().st_size > 0


def test_the_page_shows_them_and_nothing_else() -> None:
    page = (EVIDENCE / PAGE).read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [info.id for info in SHOWN]
    targets = re.findall(r'(?:\]\(|src=")([^)"#]+)[)"]', page)
    missing = [target for target in targets if not re.match(r"https?:", target) and not (EVIDENCE / target).exists()]
    assert f"toy-2d/{PICTURE}" in targets and not missing
