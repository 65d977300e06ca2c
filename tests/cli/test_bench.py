"""``mooring bench`` from end to end: its files, its page, its exit codes. Nothing is said about times."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mooring as mo
from mooring.bench import methods
from mooring.bench.backends import backends
from mooring.bench.page import BEGIN, END

from .conftest import Mooring

FEW = "adamw,adamp-tensor,adamspd-half,torch.sgd-fused"


def test_a_quick_look(mooring: Mooring, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    page = tmp_path / "page.md"
    page.write_text(f"# By hand\n\n{BEGIN}\nold\n{END}\n\nAlso by hand.\n", encoding="utf-8")
    options = ("--quick", "--growth", "--pairs", "6", "--threads", "1", "--output-dir", "out", "--page", page)
    code, out, err = mooring("bench", *options, "--methods", FEW)
    assert code == 0, err
    assert torch.get_num_threads() == before
    for expected in ("small convolutional net: 11 tensors, 94,762 parameters", "Launch:", "Growth", "Targets:", "out"):
        assert expected in out

    found = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == FEW.split(",")
    assert {row["status"] for row in rows.values()} == {"timed"}
    assert rows["adamp-tensor"]["branch"] == {"by_row": 0.0, "by_tensor": 1.0}
    assert 0 < rows["adamspd-half"]["branch"]["contracted"] < 1
    assert rows["adamw"]["declared"] == 28 and rows["adamw"]["target"] == 1.0
    assert rows["adamw"]["met"] in ("yes", "no", "undecided")
    assert rows["torch.sgd-fused"]["target"] is None and rows["torch.sgd-fused"]["backend"] == ""
    for row in rows.values():
        assert row["ratio"]["n"] == 6
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["bandwidth"] == pytest.approx(
            row["declared"] * 94_762 / row["seconds"] / found["about"]["copy_bytes_per_second"]
        )
    assert {point["curve"] for point in found["points"]} == {"size", "rows", "tensors", "threads"}
    assert {launch["method"] for launch in found["launches"]} == {"adamw", "torch.sgd-fused"}
    assert [there["method"] for there in found["between"]] == ["adamw", "torch.sgd-fused"]

    with (tmp_path / "out" / "steps.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["method"] for row in table] == list(rows)
    assert float(table[0]["ratio_median"]) == rows["adamw"]["ratio"]["median"]
    for name in (
        "bench.png",
        "bench.svg",
        "growth.png",
        "growth.svg",
        "launches.csv",
        "between.csv",
        "growth.csv",
        "bench.md",
    ):
        assert (tmp_path / "out" / name).stat().st_size > 100
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# By hand") and text.endswith("Also by hand.\n") and "old" not in text
    assert "images/bench.svg" in text and f"| adamp-tensor | {backends()[0]} |" in text
    assert (tmp_path / "images" / "growth.svg").is_file()


def test_moved_weights_and_json(mooring: Mooring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "QUICK", ("sgd",))
    code, out, err = mooring("bench", "--quick", "--shapes", "3x6x8", "--pairs", "6", "--json", "--output-dir", "out")
    assert code == 0, err
    found = json.loads(out)
    assert list(found["models"]) == ["3x6x8"] and found["about"]["quick"]
    assert [p["what"] for p in found["perturbations"]] == ["noise drawn and added"] * 2 + [
        "frame of NSO, k = 1",
        "frame of SAM",
    ]
    assert all(p["ratio"]["median"] > 0 and not p["why"] for p in found["perturbations"])


def test_a_wrong_step_is_shown_and_not_timed(mooring: Mooring, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(methods.METHODS["adamw"], make=lambda params, lr: mo.AdamW(list(params), lr=lr * 1.01 if
                    params[0][1].dtype == torch.float32 else lr, weight_decay=1e-2))  # fmt: skip
    monkeypatch.setitem(methods.METHODS, "adamw", wrong)
    code, out, err = mooring("bench", "--quick", "--pairs", "6", "--methods", "adamw", "--output-dir", "out")
    assert code == 1, err
    assert "failed: its step differs from its float64 reference by 0.01" in out
    assert "1 rows failed" in out
    [row] = json.loads(Path("out/bench.json").read_text(encoding="utf-8"))["rows"]
    assert row["status"] == "failed" and row["ratio"] is None and row["seconds"] is None


def test_what_does_not_fit_or_is_not_installed_is_left_out(mooring: Mooring, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(methods.METHODS["adamp.sgdp-rows"], id="nowhere.sgd", package="nowhere")
    monkeypatch.setitem(methods.METHODS, "nowhere.sgd", absent)
    options = ("--quick", "--pairs", "6", "--methods", "sgd,nowhere", "--memory", "0.001", "--quiet")
    code, out, err = mooring("bench", *options, "--shapes", "2x4x4,resnet50", "--output-dir", "out")
    assert (code, out.strip()) == (0, "out"), err
    found = json.loads(Path("out/bench.json").read_text(encoding="utf-8"))
    assert found["left_out"][0] == "nowhere is not installed"
    assert "ResNet-50 takes about 1.4 GiB, and 0.0 may be taken" in found["left_out"][1]
    assert list(found["models"]) == ["2x4x4"]
    code, _, err = mooring("bench", "--quick", "--methods", "nowhere")
    assert code == 2 and "nothing is left to time; nowhere is not installed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "adamq"], "unknown method 'adamq' (did you mean 'adamw'?)"),
        (["--shapes", "vit"], "the shapes are resnet50, vit-b16"),
        (["--backend", "cuda"], "'cuda' cannot serve here; it can be numba, eager"),
        (["--pairs", "5"], "--pairs must be at least 6"),
        (["--threads", "0"], "--threads must be from 1 to"),
        (["--memory", "-1"], "--memory must be a number of gibibytes > 0, got -1.0"),
        (["--device", "tpu"], "device 'tpu' cannot be used here"),
        (["--page", "missing.md"], "--page must name a file that is there"),
        (["--page", "plain.md"], "needs a line <!-- results of mooring bench -->"),
        (["--output-dir", "plain.md"], "is a file; --output-dir must name a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input(mooring: Mooring, arguments: list[str], message: str) -> None:
    Path("plain.md").write_text("nothing here", encoding="utf-8")
    code, out, err = mooring("bench", "--quick", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("runs").exists()


def test_an_interrupted_run_keeps_what_it_has(mooring: Mooring, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mooring.bench.run._Run._launches", interrupt)
    code, out, err = mooring("bench", "--quick", "--pairs", "6", "--methods", "sgd", "--output-dir", "out")
    assert code == 130, err
    assert "Interrupted" in out
    assert len(json.loads(Path("out/bench.json").read_text(encoding="utf-8"))["rows"]) == 1
