"""How numbers are written, and which cells are marked."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from mooring.compare import metrics
from mooring.compare.results import Results
from mooring.compare.summary import summary
from mooring.compare.tables import build_table, describe, headline_metrics, shift_metrics, show_p, spread_rows
from mooring.compare.terminal import print_results

from .conftest import MakeRun


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (metrics.ID, 0.97649, "97.6"),
        (metrics.DRIFT, 3.14159, "3.14"),
        (metrics.DRIFT, 314.159, "314"),
        (metrics.STEP, 0.0038442, "3.84 ms"),
        (metrics.STEP, 0.0384, "38.4 ms"),
        (metrics.STEP, 1.5, "1.50 s"),
        (metrics.STATE, 1_123_664, "1.12 MB"),
        (metrics.STATE, 512, "512 B"),
        (metrics.GRADIENTS, 300, "300"),
        (metrics.ID, math.nan, "–"),
    ],
)
def test_values(metric: metrics.Metric, value: float, text: str) -> None:
    assert metric.show(value) == text


def test_differences_have_a_sign_unless_they_round_to_nothing() -> None:
    show = metrics.ID.show_difference
    assert [show(v) for v in (0.012, -0.012, 0.0, -0.0004, 0.0004)] == ["+1.2", "−1.2", "0.0", "0.0", "0.0"]


def test_p_values() -> None:
    assert [show_p(p) for p in (0.5, 0.0078125, 0.00001, math.nan)] == ["0.5", "0.0078", "< 0.0001", "–"]


def test_ood_kinds_and_severities_come_from_the_keys() -> None:
    keys = ["id/accuracy", "ood/accuracy", "ood.noise/accuracy", "ood.noise.1/accuracy", "ood.b/accuracy", "ood.b/nll"]
    assert metrics.shift_kinds(keys) == ["noise", "b"]
    assert metrics.severities("noise", keys) == ["1"] and metrics.severities("b", keys) == []


def test_titles_of_all_keys() -> None:
    titles = {key: (found := describe(key)) and found.title for key in (
        "id/accuracy", "id_val/nll", "ood/ece", "ood.noise.2/accuracy", "drift/l2", "time/step_s", "start",
    )}  # fmt: skip
    assert titles == {
        "id/accuracy": "ID accuracy",
        "id_val/nll": "ID validation NLL",
        "ood/ece": "OOD ECE",
        "ood.noise.2/accuracy": "OOD noise 2 accuracy",
        "drift/l2": "drift, l2",
        "time/step_s": None,
        "start": None,
    }


def test_marks(make_run: MakeRun) -> None:
    results = Results(make_run())
    table = build_table(results, headline_metrics(results))
    rows = {row.label: dict(zip(table.metrics, row.cells, strict=True)) for row in table.rows}
    assert [row.role for row in table.rows] == ["reference", "baseline", "method", "method", "method"]
    assert rows["adamspd"][metrics.RETENTION].tone == "better" and rows["adamspd"][metrics.RETENTION].best
    assert rows["sgd"][metrics.RETENTION].tone == "worse"
    assert rows["adamp"][metrics.ID].tone == "" and not rows["adamp"][metrics.ID].resolved
    assert rows["adamspd"][metrics.DRIFT].tone == "different" and not rows["adamspd"][metrics.DRIFT].best
    assert rows["adamw"][metrics.ID].difference == "" and rows["adamw"][metrics.STEP].ratio == "×1.00"


def test_a_run_that_gave_no_number_is_not_averaged_away(make_run: MakeRun) -> None:
    results = Results(make_run(changes={("sgd", 2): {"drift/l2": math.nan}}))
    table = build_table(results, (metrics.DRIFT,))
    (cell,) = next(row.cells for row in table.rows if row.label == "sgd")
    assert cell.mean == "–" and cell.difference == ""


@pytest.mark.parametrize(("width", "split"), [(140, False), (80, True)])
def test_the_terminal_shows_every_cell_whole(make_run: MakeRun, width: int, split: bool) -> None:
    results = Results(make_run(failed=[("sgd", 3)]))
    console = Console(width=width, record=True, file=io.StringIO())
    print_results(console, results)
    text = console.export_text()
    assert "…" not in text
    assert ("Each shift, accuracy in %" in text) == split
    assert max(map(len, text.splitlines())) <= width
    for metric in (*headline_metrics(results), *shift_metrics(results)):
        assert metric.short in text
    table = build_table(results, headline_metrics(results))
    for row in table.rows:
        for cell in row.cells:
            assert cell.mean in text and cell.difference in text and cell.interval in text
    assert "9/10 ✗1" in text and "! sgd failed on seed 3" in text


def test_json_has_no_nan_and_the_same_means(make_run: MakeRun) -> None:
    results = Results(make_run(seeds=2, changes={("sgd", 1): {"drift/l2": math.nan}}, failed=[("adamp", 0)]))
    found = json.loads(json.dumps(summary(results), allow_nan=False))
    assert found["methods"]["sgd"]["metrics"]["drift/l2"]["mean"] is None
    assert found["methods"]["adamp"]["failed"] == [0] and found["methods"]["adamp"]["finished"] == 1
    values = results.values(metrics.ID)["adamw"].values()
    assert found["methods"]["adamw"]["metrics"]["id/accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert set(found["methods"]["sgd"]["differences"]["id/accuracy"]) >= {
        "difference_mean",
        "low",
        "high",
        "p_adjusted",
    }


def test_all_numbers_are_listed(make_run: MakeRun) -> None:
    rows = spread_rows(Results(make_run(seeds=2, methods="adamw,sgd")))
    titles = {row.metric.title for row in rows}
    assert {"ID accuracy", "ID NLL", "OOD noise 3 accuracy", "retention accuracy", "drift, relative"} <= titles
    assert all(len(row.cells) == 2 for row in rows)
