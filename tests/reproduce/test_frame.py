"""What `mooring reproduce` promises whatever the experiment: figures, files, progress, exit codes, nothing lost."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure

from mooring.cli import main
from mooring.reproduce import Check, Outcome, Run
from mooring.reproduce.driver import load_result, run_experiment
from mooring.reproduce.registry import EXPERIMENTS, ExperimentInfo
from tests.reproduce import flip_signs


def test_a_figure_is_met_inside_its_bounds_and_nowhere_else() -> None:
    assert Check("f", 1.0, low=1.0, high=1.0).ok
    assert not Check("f", 1.0 + 1e-12, low=1.0, high=1.0).ok
    assert not Check("f", math.nan, low=0.0).ok
    assert not Check("f", math.nan).ok
    assert Check.finding("f", math.nan).ok
    assert Check.near("f", 1.02, 1.0, 0.03, "").ok and not Check.near("f", 1.04, 1.0, 0.03, "").ok
    assert Check.rounded("f", 0.00864, 0.0086, 4).ok and not Check.rounded("f", 0.00866, 0.0086, 4).ok
    assert Check.above("f", 2, 1, "").ok and not Check.above("f", 0.9, 1, "").ok
    assert Check.below("f", 1, 2, "").ok and not Check.below("f", 2.1, 2, "").ok


calls: list[int] = []


def job(x: int) -> dict[str, float]:
    calls.append(x)
    if x == 13:
        raise RuntimeError("unlucky")
    return {"square": float(x * x), "nan": math.nan}


def test_finished_jobs_are_kept_when_a_later_one_fails(tmp_path: Path) -> None:
    calls.clear()
    shares: list[float] = []
    run = Run(True, tmp_path, 1, lambda share, what: shares.append(share))
    with pytest.raises(RuntimeError, match="unlucky"):
        run.map(job, [(2,), (3,), (13,)], "squares")
    found = run.map(job, [(2,), (3,), (4,)], "squares")
    assert [f["square"] for f in found] == [4, 9, 16] and math.isnan(found[0]["nan"])
    assert calls == [2, 3, 13, 4]
    assert shares == [0, 1 / 3, 2 / 3, 2 / 3, 1]


def test_jobs_side_by_side_give_what_one_after_the_other_gives(tmp_path: Path) -> None:
    jobs = [(k,) for k in range(3)]
    assert str(Run(True, tmp_path / "a", 2).map(job, jobs, "")) == str(Run(True, tmp_path / "b", 1).map(job, jobs, ""))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An experiment of the tests' own, the only one there is."""
    info = ExperimentInfo("fake-one", "Two is two.", "ours", (0.0, 0.0))
    module = ModuleType(info.module, "Two is two.\n\nMeasured.")
    module.figure = 2.0  # type: ignore[attr-defined]

    def run(run: Run) -> Outcome:
        checks = [Check.near("two", module.figure, 2.0, 0.1, "exact"), Check.finding("seen", math.nan)]
        picture = Figure()
        picture.add_subplot().plot([1, 2])
        return Outcome(checks, {"rows": [{"a": 1, "b": 0.123456789}, {"a": 2, "c": "x"}]}, picture, ["A note."])

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, info.module, module)
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(EXPERIMENTS, info.id, info)
    return module


def test_everything_is_written_and_can_be_read_back(fake: ModuleType, tmp_path: Path) -> None:
    result = run_experiment("fake-one", quick=True, output=tmp_path)
    folder = tmp_path / "fake-one"
    assert result.ok and str(load_result(folder)) == str(result)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "rows.csv").read_text() == "a,b,c\n1,0.123457,\n2,,x\n"
    with (folder / "checks.csv").open() as file:
        assert [row["ok"] for row in csv.DictReader(file)] == ["True", "True"]
    json.loads((folder / "result.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_a_bound_that_is_not_a_number_is_written_and_confirms_nothing(fake: ModuleType, tmp_path: Path) -> None:
    diverged = Check.below("ratio", -1.0, math.nan, "an interval over seeds", error=math.nan)
    picture = Figure()
    fake.run = lambda run: Outcome([diverged], {}, picture)  # type: ignore[attr-defined]
    assert not run_experiment("fake-one", quick=True, output=tmp_path).ok
    found = load_result(tmp_path / "fake-one")
    assert found is not None and not found.ok and not found.error


def test_the_exit_code_says_whether_a_figure_was_missed(
    fake: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output-dir", str(tmp_path))
    assert main(["reproduce", "all", *output]) == 0
    assert "A note." in (tmp_path / "index.md").read_text() and "1 of 1" in (tmp_path / "index.md").read_text()
    fake.figure = 3.0
    assert main(["reproduce", "fake-one", *output]) == 1
    text = capsys.readouterr().out
    assert "✗" in text and "1.9 … 2.1" in text
    assert "0 of 1" in (tmp_path / "index.md").read_text()
    fake.run = lambda run: 1 / 0  # type: ignore[attr-defined]
    assert main(["reproduce", "fake-one", *output, "--json"]) == 1
    [result] = json.loads(capsys.readouterr().out)
    assert not result["ok"] and "ZeroDivisionError" in result["error"]
    assert "ZeroDivisionError" in (tmp_path / "fake-one" / "error.txt").read_text()
    assert not (tmp_path / "fake-one" / "figure.png").exists(), "an older picture would pass for this run's"


def test_what_was_asked_for_wrongly_is_refused(
    fake: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["reproduce", "fake-on"]) == 2
    assert "did you mean 'fake-one'" in capsys.readouterr().err
    assert main(["reproduce", "fake-one", "--jobs", "0"]) == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "fake-one", "--output-dir", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    lacking = ExperimentInfo("lacking", "Nothing.", "ours", (0, 0), needs=("no_such_package",))
    monkeypatch.setitem(EXPERIMENTS, "lacking", lacking)
    assert main(["reproduce", "lacking", "--output-dir", str(tmp_path)]) == 2
    assert "lacking needs no_such_package" in capsys.readouterr().err
    assert main(["reproduce", "all", "--output-dir", str(tmp_path), "--quiet"]) == 0
    assert "Left out: lacking" in capsys.readouterr().err


def test_the_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == list(EXPERIMENTS)
    assert main(["reproduce"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in EXPERIMENTS)


@pytest.mark.parametrize("info", EXPERIMENTS.values(), ids=lambda info: info.id)
def test_every_experiment_has_its_file(info: ExperimentInfo) -> None:
    path = Path(flip_signs.SOURCE, "reproduce", "experiments", f"{info.id.replace('-', '_')}.py")
    assert path.read_text(encoding="utf-8").startswith('"""')
    assert 0 < info.minutes[1] <= info.minutes[0]


@pytest.mark.parametrize("flip", flip_signs.FLIPS, ids=lambda flip: flip.name)
def test_every_sign_to_flip_is_there(flip: flip_signs.Flip) -> None:
    """The script itself runs in CI's stage for reproductions; here only that it flips what it says."""
    text = (flip_signs.SOURCE / flip.file).read_text(encoding="utf-8")
    assert text.count(flip.right) == 1 and flip.right != flip.wrong


@pytest.mark.parametrize("name", ["toy-2d", "trust-ratio"])
def test_the_cheap_ones_are_green(name: str, tmp_path: Path) -> None:
    result = run_experiment(name, quick=True, output=tmp_path)
    assert result.ok, [check for check in result.checks if not check.ok]
