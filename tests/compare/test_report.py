"""The report's page: every number recomputed, nothing from elsewhere, the same bytes when rebuilt."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from mooring.compare.report import REPORT, together, without_private_paths, write_report
from mooring.compare.results import Results
from mooring.compare.store import RunFolder

from .conftest import MakeRun, make_run_in
from .page import Element, read_page, read_table
from .recompute import check_table, read_results


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooring.compare.report.render", lambda results, folder: {})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One report with all its figures, and a method whose name tries to be more than a name."""
    methods = ["adamw", {"name": "sgd", "label": EVIL}]
    folder = make_run_in(tmp_path_factory.mktemp("drawn") / "run", methods=methods, seeds=2)
    build(folder)
    return folder


EVIL = '<img src=x onerror="alert(1)"> & $x$'
no_figures = pytest.mark.usefixtures("_no_figures")  # they take longer than all else; two tests draw them


def build(folder: RunFolder) -> Element:
    results = Results(folder)
    results.write_csv_files()
    return read_page(write_report(results))


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@no_figures
def test_every_number_is_that_of_results_csv(make_run: MakeRun) -> None:
    folder = make_run(failed=[("sgd", 3)], missing=[("adamp", 9), ("adamw", 0)])
    page = build(folder)
    # Four metrics of a start and a baseline with their means, three methods with four numbers each; times have two.
    assert check_table(read_table(page, "headline"), folder.path / "results.csv", "adamw") == 4 * (2 + 3 * 4) + 4 * 2
    assert check_table(read_table(page, "shift-table"), folder.path / "results.csv", "adamw") == 3 * (2 + 3 * 4)


@no_figures
def test_a_second_baseline_gives_its_own_differences(make_run: MakeRun) -> None:
    folder = make_run(seeds=8, config={"compare": {"baseline": "sgd"}})
    check_table(read_table(build(folder), "headline"), folder.path / "results.csv", "sgd")


@no_figures
def test_results_csv_has_a_row_for_every_trial_with_its_state(make_run: MakeRun) -> None:
    folder = make_run(seeds=3, methods="adamw,sgd", failed=[("sgd", 1)], missing=[("sgd", 2)])
    build(folder)
    rows = read_results(folder.path / "results.csv")
    assert {(m, s): row["status"] for m, by_seed in rows.items() for s, row in by_seed.items()} == {
        **{("zero-shot", seed): "reference" for seed in range(3)},
        **{("adamw", seed): "done" for seed in range(3)},
        ("sgd", 0): "done",
        ("sgd", 1): "failed",
        ("sgd", 2): "missing",
    }
    assert rows["sgd"][1]["error"] == "RuntimeError: it broke" and rows["sgd"][1]["id/accuracy"] == ""


@no_figures
def test_the_long_table_holds_the_same_numbers(make_run: MakeRun) -> None:
    import csv

    folder = make_run(seeds=2, methods="adamw,sgd")
    build(folder)
    wide = read_results(folder.path / "results.csv")
    with (folder.path / "results_long.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"method", "seed", "split", "kind", "severity", "metric", "value"} == set(rows[0])
    for row in rows:
        split = ".".join(part for part in (row["split"], row["kind"], row["severity"]) if part)
        assert wide[row["method"]][int(row["seed"])][f"{split}/{row['metric']}"] == row["value"]
    assert {row["severity"] for row in rows} == {"", "1", "2", "3"}


def test_rebuilding_changes_no_byte(make_run: MakeRun) -> None:
    folder = make_run(seeds=2, methods="adamw,sgd", failed=[("sgd", 1)])
    build(folder)
    first = fingerprint(folder.path)
    (folder.path / "plots" / "of_an_earlier_version.png").write_bytes(b"old")
    build(folder)
    assert fingerprint(folder.path) == first
    assert {Path(name).suffix for name in first if name.startswith("plots")} == {".png", ".pdf"}


def test_the_page_stands_alone(drawn: RunFolder) -> None:
    page = read_page(drawn.path / REPORT)
    text = (drawn.path / REPORT).read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action)\s*=\s*["'](?!#|data:)""", text)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    hosts = set(re.findall(r"https?://([^/\"'\s]+)", text))
    assert hosts <= {"www.w3.org"}  # the name of SVG, which nothing fetches
    assert page.find("html").attributes["lang"] == "en"


def test_figures_can_be_read_aloud_and_their_ids_do_not_meet(drawn: RunFolder) -> None:
    page = read_page(drawn.path / REPORT)
    figures = [figure.find("svg") for figure in page.find_all("figure")]
    assert len(figures) > 12
    for svg in figures:
        assert svg.attributes["role"] == "img" and len(svg.attributes["aria-label"]) > 40
    text = (drawn.path / REPORT).read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)
    # Every colour is a variable of the page, so that figures follow its light and dark scheme.
    assert not re.search(r"(?:fill|stroke): #", text)


@no_figures
def test_tables_say_what_their_heads_are_heads_of(make_run: MakeRun) -> None:
    page = build(make_run(seeds=2, methods="adamw,sgd", failed=[("sgd", 1)]))
    for table in page.find_all("table"):
        assert table.find("caption").text
        for th in table.find_all("th"):
            assert th.attributes["scope"] in ("col", "row")
    for scroll in page.find_all("div", "scroll"):
        assert scroll.attributes["tabindex"] == "0" and scroll.attributes["aria-label"]


@no_figures
def test_a_failed_trial_is_shown_with_its_error(make_run: MakeRun) -> None:
    error = (
        "TrialError: method 'sgd' diverged <b>\n\nTraceback (most recent call last):\n"
        '  File "/home/somebody/lib/python3.11/site-packages/mooring/finetune/loop.py", line 1, in train\n'
    )
    page = build(make_run(failed=[("sgd", 3)], error=error))
    (failure,) = page.find_all("details", "failure")
    assert "✗ sgd seed 3" in failure.text and "diverged <b>" in failure.text
    assert "mooring/finetune/loop.py" in failure.text and "somebody" not in failure.text
    (row,) = [r for r in page.by_id("headline").find_all("tr") if "sgd" in r.text]
    assert "9 /10 ✗ 1 failed" in row.text
    assert any("sgd failed on seed 3" in p.text for p in page.find_all("p", "warning"))


@no_figures
def test_before_anything_has_finished_there_is_a_page_all_the_same(make_run: MakeRun) -> None:
    pairs = [("adamw", 0), ("sgd", 0)]
    page = build(make_run(methods="adamw,sgd", seeds=1, failed=pairs, zero_shot=False))
    assert "the baseline adamw has no finished trial" in page.find("p", "sentence").text
    assert len(page.find_all("details", "failure")) == 2
    assert not page.find_all("figure")


def test_a_label_cannot_write_into_the_page(drawn: RunFolder) -> None:
    page = read_page(drawn.path / REPORT)
    assert not page.find_all("img")
    assert EVIL in page.by_id("headline").text
    assert not [e for e in page.find_all("*") if "onerror" in e.attributes]


def test_every_image_of_the_markdown_is_there(drawn: RunFolder) -> None:
    images = re.findall(r"\]\((plots/[^)]+)\)", (drawn.path / "report.md").read_text(encoding="utf-8"))
    assert len(images) > 10
    assert all((drawn.path / image).stat().st_size > 1000 for image in images)


@no_figures
def test_one_seed_has_means_and_no_intervals(make_run: MakeRun) -> None:
    folder = make_run(seeds=1, methods="adamw,sgd")
    table = read_table(build(folder), "headline")
    assert table["sgd"]["ID %"].difference and not table["sgd"]["ID %"].interval


@no_figures
def test_what_was_equal_is_claimed_only_if_it_was_checked(make_run: MakeRun) -> None:
    folder = make_run(seeds=2, methods="adamw,sgd")
    assert "the checksums that the trials recorded agree" in build(folder).by_id("fairness").text
    (folder.trial_folder("sgd", 1) / "provenance.json").write_text('{"start_sha256": "another"}')
    assert "checksums" not in build(folder).by_id("fairness").text


@no_figures
def test_it_says_how_options_were_chosen(make_run: MakeRun) -> None:
    methods = ["adamw", {"name": "adamp", "lr": 0.5}]
    text = build(make_run("a", methods=methods, seeds=1)).by_id("fairness").text
    assert "with equal effort" in text and "adamp ran with the options given" in text
    other = {"task": "synthetic-spurious"}
    text = build(make_run("b", methods=methods, seeds=1, config=other)).by_id("fairness").text
    assert "No method was tuned on this task" in text


@no_figures
def test_markdown_holds_the_same_table(make_run: MakeRun) -> None:
    folder = make_run()
    table = read_table(build(folder), "headline")
    text = (folder.path / "report.md").read_text(encoding="utf-8")
    before, _, _ = text.partition("## Each shift")
    lines = {
        line.split("|")[1].strip(): line for line in before.splitlines() if line.startswith("|") and "<br>" in line
    }
    for label in ("adamp", "adamspd", "sgd"):
        for head, cell in table[label].items():
            assert cell.mean in lines[label] and cell.difference in lines[label], (label, head)
    assert re.search(r"^\| method \| seeds \| ID % \|", text, flags=re.MULTILINE)


def test_private_paths_are_cut() -> None:
    trace = 'File "/home/ann/env/lib/python3.11/site-packages/torch/x.py", line 3\nFile "C:\\Users\\ann\\train.py"'
    assert without_private_paths(trace) == 'File "torch/x.py", line 3\nFile "train.py"'


def test_intervals_stay_on_one_line() -> None:
    assert together("a < b [+1, +2].") == 'a &lt; b <span class="together">[+1, +2]</span>.'
