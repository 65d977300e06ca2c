"""A whole comparison on the synthetic task: run, continued, interrupted, killed, failed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.compare.page import read_page, read_table
from tests.compare.recompute import check_table, read_results

from .conftest import SMALL, Mooring, start


def finals(folder: Path) -> dict[str, int]:
    """Every finished trial and when its last file was written."""
    return {str(p.parent.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("trials/*/*/final.json")}


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def children_in(folder: Path) -> list[int]:
    """Processes that hold a file below the folder open: the trials at work."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                links = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
            except OSError:
                continue
            if any(link.startswith(str(folder / "trials")) for link in links):
                found.append(int(process.name))
    return found


def test_a_whole_comparison(mooring: Mooring, tmp_path: Path) -> None:
    code, out, err = mooring("compare", *SMALL, "--methods", "adamw,adamspd,torch.optim:NAdam", "--seeds", "6")
    assert code == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-synthetic-spurious")
    assert f"Report: {folder.relative_to(tmp_path) / 'report.html'}" in out
    assert "[18/18]" in err  # a line for each trial where there is no terminal
    assert {p.name for p in folder.iterdir()} >= {
        "results.csv", "results_long.csv", "curves.csv", "layers.csv", "config.resolved.yaml", "env.json",
        "report.html", "report.md", "plots", "trials", "zero_shot",
    }  # fmt: skip
    trial = folder / "trials" / "nadam" / "seed_5"
    assert {p.name for p in trial.iterdir()} == {
        "key", "spec.json", "provenance.json", "metrics.jsonl", "layers.csv", "predictions.npz", "final.json",
        "model.safetensors",
    }  # fmt: skip
    page = read_page(folder / "report.html")
    check_table(read_table(page, "headline"), folder / "results.csv", "adamw")
    check_table(read_table(page, "shift-table"), folder / "results.csv", "adamw")
    for cell in (c for row in read_table(page, "headline").values() for c in row.values()):
        assert cell.mean in out
    command = page.by_id("reproduce").find("code").text
    assert command == (
        "mooring compare --task synthetic-spurious --methods adamw,adamspd,torch.optim:NAdam --seeds 6 --steps 20"
    )


@pytest.mark.usefixtures("without_figures")
def test_a_second_start_runs_what_is_missing_and_nothing_else(mooring: Mooring, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert mooring("compare", *SMALL, "--methods", "adamw,sgd", "--seeds", "2", "--output-dir", folder)[0] == 0
    first = finals(folder)
    assert len(first) == 4

    code, _, err = mooring("compare", "--output-dir", folder)  # what it was started with is not said again
    assert code == 0 and "4 of 4 trials are finished already" in err
    assert finals(folder) == first

    (folder / "trials/sgd/seed_1/final.json").unlink()
    assert mooring("compare", *SMALL, "--methods", "adamw,sgd", "--seeds", "2", "--output-dir", folder)[0] == 0
    again = finals(folder)
    assert {k: v for k, v in again.items() if k != "trials/sgd/seed_1"} == {
        k: v for k, v in first.items() if k != "trials/sgd/seed_1"
    }

    code, _, err = mooring("compare", "--methods", "adamp", "--seeds", "3", "--output-dir", folder)
    assert code == 0, err
    grown = finals(folder)
    assert len(grown) == 9 and {key: grown[key] for key in again} == again
    stored = yaml.safe_load((folder / "config.resolved.yaml").read_text())
    assert [method["label"] for method in stored["compare"]["methods"]] == ["adamw", "sgd", "adamp"]
    assert set(read_results(folder / "results.csv")) == {"zero-shot", "adamw", "sgd", "adamp"}

    code, _, err = mooring("compare", "--steps", "21", "--output-dir", folder)
    assert code == 2 and "train.steps is 20 there, 21 asked" in err
    code, _, err = mooring("compare", "--methods", "sgd[lr=0.5]", "--output-dir", folder)
    assert code == 2 and "lr=0.5" in err
    assert finals(folder) == grown

    arguments = ("--methods", "adamw", "--seeds", "1", "--output-dir", folder, "--overwrite")
    assert mooring("compare", *SMALL, *arguments)[0] == 0
    assert set(finals(folder)) == {"trials/adamw/seed_0"}


@pytest.mark.usefixtures("without_figures")
def test_the_same_comparison_gives_the_same_numbers_however_it_was_run(mooring: Mooring, tmp_path: Path) -> None:
    arguments = (*SMALL, "--methods", "adamw,sgd", "--seeds", "2")
    mooring("compare", *arguments, "--jobs", "1", "--output-dir", tmp_path / "one")
    mooring("compare", *SMALL, "--methods", "sgd", "--seeds", "1", "--output-dir", tmp_path / "two")
    mooring("compare", *arguments, "--jobs", "2", "--output-dir", tmp_path / "two")
    one, two = (read_results(tmp_path / name / "results.csv") for name in ("one", "two"))
    for method in ("adamw", "sgd", "zero-shot"):
        for seed in (0, 1):
            for key, value in one[method][seed].items():
                if not key.startswith(("time/", "memory/peak")):
                    assert two[method][seed][key] == value, (method, seed, key)


@pytest.mark.usefixtures("without_figures")
def test_report_and_json_and_quiet_need_no_training(mooring: Mooring, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("--methods", "adamw,sgd", "--seeds", "2", "--output-dir", folder)
    code, out, err = mooring("compare", *SMALL, *arguments, "--quiet")
    assert (code, out, err) == (0, f"{folder / 'report.html'}\n", "")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    code, out, _ = mooring("report", folder, "--json")
    assert code == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    found = json.loads(out)
    rows = read_results(folder / "results.csv")
    mean = sum(float(row["id/accuracy"]) for row in rows["sgd"].values()) / 2
    assert found["methods"]["sgd"]["metrics"]["id/accuracy"]["mean"] == pytest.approx(mean)
    mooring("report", folder, "--baseline", "sgd", "--quiet")
    table = read_table(read_page(folder / "report.html"), "headline")
    check_table(table, folder / "results.csv", "sgd")


def write_optimizers(folder: Path) -> None:
    (folder / "odd_optimizers.py").write_text(
        "import os, pathlib, signal, torch\n"
        "class Counting(torch.optim.SGD):\n"
        "    taken = 0\n"
        "    def step(self, closure=None):\n"
        "        self.taken += 1\n"
        "        if self.taken == 5:\n"
        "            self.fifth()\n"
        "        return super().step(closure)\n"
        "class Raises(Counting):\n"
        "    def fifth(self): raise ArithmeticError('the fifth step')\n"
        "class Dies(Counting):\n"
        "    def fifth(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        "class RaisesOnce(Counting):\n"
        "    def fifth(self):\n"
        "        mark = pathlib.Path('mark')\n"
        "        if not mark.exists():\n"
        "            mark.touch()\n"
        "            raise ArithmeticError('only once')\n"
        "class Slow(Counting):\n"
        "    def fifth(self):\n"
        "        import time; time.sleep(600)\n"
    )


@pytest.mark.usefixtures("without_figures")
def test_failed_and_killed_trials_are_kept_shown_and_tried_again(
    mooring: Mooring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write_optimizers(tmp_path)
    folder = tmp_path / "run"
    odd = [f"odd_optimizers:{name}[lr=0.01]" for name in ("Raises", "Dies", "RaisesOnce")]
    code, out, err = mooring(
        "compare", *SMALL, "--methods", ",".join(["adamw", *odd]), "--seeds", "1", "--output-dir", folder
    )
    assert code == 1
    assert "failed: method 'Raises': the step of odd_optimizers:Raises raised at step 5" in err
    assert "ended by SIGKILL" in err
    assert len(finals(folder)) == 1
    assert "Traceback" in (folder / "trials/raises/seed_0/error.txt").read_text()
    assert "! Dies failed on seed 0 (1 of 1 trials)." in out
    page = read_page(folder / "report.html")
    assert len(page.find_all("details", "failure")) == 3
    assert {row["status"] for by_seed in read_results(folder / "results.csv").values() for row in by_seed.values()} == {
        "done", "failed", "reference",
    }  # fmt: skip

    code, _, err = mooring("compare", "--output-dir", folder)
    assert code == 1
    assert set(finals(folder)) == {"trials/adamw/seed_0", "trials/raisesonce/seed_0"}
    assert not (folder / "trials/raisesonce/seed_0/error.txt").exists()
    assert mooring("report", folder)[0] == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["interrupted", "terminated", "killed"])
def test_a_start_that_was_cut_off_is_continued(
    mooring: Mooring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, without_figures: None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write_optimizers(tmp_path)
    folder = tmp_path / "run"
    # The second method's trial hangs in its fifth step; that of the first is finished by then.
    arguments = ("--methods", "adamw,odd_optimizers:Slow[lr=0.01]", "--seeds", "1", "--output-dir", folder)
    process = start("compare", *SMALL, *arguments, "--jobs", "1")
    slow = folder / "trials" / "slow" / "seed_0"
    try:
        wait_for(lambda: (slow / "metrics.jsonl").is_file())
        assert children_in(folder)
        code, _, err = mooring("compare", "--output-dir", folder)
        assert code == 2 and "another mooring compare is working in" in err
        if how == "interrupted":
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to every process of the group
        else:
            process.send_signal(signal.SIGTERM if how == "terminated" else signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    if how != "killed":
        assert process.returncode == 130
        assert "Interrupted. 1 of 2 trials are finished and kept." in err
        assert f"mooring compare --output-dir {folder}" in err
        assert "Traceback" not in err
    wait_for(lambda: not children_in(folder))
    before = finals(folder)
    assert set(before) == {"trials/adamw/seed_0"}
    assert not (slow / "final.json").exists()

    (tmp_path / "odd_optimizers.py").write_text("from torch.optim import SGD as Slow\n")
    code, _, err = mooring("compare", "--output-dir", folder)
    assert code == 0, err
    assert "1 of 2 trials are finished already and are kept." in err
    after = finals(folder)
    assert set(after) == {"trials/adamw/seed_0", "trials/slow/seed_0"}
    assert after["trials/adamw/seed_0"] == before["trials/adamw/seed_0"]


@pytest.mark.usefixtures("without_figures")
def test_a_yaml_file_with_everything_in_it(mooring: Mooring, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "task: {name: synthetic-spurious, starts: 1}\n"
        "train: {steps: 12, batch_size: 16, schedule: linear, eval_every: 6}\n"
        "compare:\n"
        "  methods: [adamw, {name: adamw, lr: 5e-3, label: fast}]\n"
        "  seeds: [1, 4]\n"
        "  baseline: fast\n"
    )
    code, _, err = mooring("compare", "run.yaml", "--steps", "10", "--output-dir", "out")
    assert code == 0, err
    rows = read_results(tmp_path / "out" / "results.csv")
    assert set(rows) == {"zero-shot", "adamw", "fast"} and set(rows["fast"]) == {1, 4}
    assert {row["steps"] for row in rows["fast"].values()} == {"10"}
    spec = json.loads((tmp_path / "out/trials/fast/seed_4/spec.json").read_text())
    assert spec["method"]["options"]["lr"] == 5e-3 and spec["train"]["schedule"] == "linear"
    code, _, _ = mooring("compare", "out/config.resolved.yaml", "--output-dir", "again", "--quiet")
    assert code == 0
    again = read_results(tmp_path / "again" / "results.csv")
    assert again["fast"][4]["ood/accuracy"] == rows["fast"][4]["ood/accuracy"]


RECIPES = Path(__file__).parents[2] / "examples" / "recipes.yaml"
TINY = ("--task", "synthetic-spurious", "--steps", "6", "--seeds", "1")


@pytest.mark.usefixtures("without_figures")
def test_recipes_are_compared_and_named_everywhere(mooring: Mooring, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, err = mooring("compare", RECIPES, *TINY, "--output-dir", folder)
    assert code == 0, err
    labels = [
        method["label"]
        for method in yaml.safe_load((folder / "config.resolved.yaml").read_text())["compare"]["methods"]
    ]
    assert "projection+stable+spd" in labels and "nadam+spd" in labels
    assert set(read_results(folder / "results.csv")) == {"zero-shot", *labels}
    page = read_page(folder / "report.html")
    rows = {row.find("th").text: row.find("td", "text").text for row in page.by_id("methods").find_all("tr")[1:]}
    markdown = (folder / "report.md").read_text()
    assert set(rows) == set(labels)
    for label, stages in {
        "adamw": ("adam(", "decoupled decay(weight_decay=0.00049, toward zero)"),
        "projection+stable+spd": ("adam(", "radial projection(", "stable decay(", "selective projection("),
        "lamb": ("adam(", "decoupled decay(", "trust ratio"),
        "l2-sp": ("coupled decay(weight_decay=0.01, toward anchor)", "momentum("),
        "nadam+spd": ("step of NAdam", "selective projection("),
    }.items():
        assert label in out and f"| {label} |" in markdown
        places = [rows[label].index(stage) for stage in stages]
        assert places == sorted(places), (label, rows[label])
    assert "rules=[DecoupledDecay(0.01), TrustRatio()]" in page.by_id("methods").text
    found = json.loads(mooring("report", folder, "--json")[1])["methods"]["nadam+spd"]
    assert found["optimizer"] == "wrap(torch.optim:NAdam(lr=0.001), rules=[SelectiveProjection(1.0)])"
    assert found["pipeline"] == ["step of NAdam", "selective projection(strength=1, anchor=capture)", "step"]

    before = finals(folder)
    code, _, err = mooring("compare", folder / "config.resolved.yaml", "--output-dir", folder)
    assert code == 0 and f"{len(labels)} of {len(labels)} trials are finished already" in err
    assert finals(folder) == before
    command = page.by_id("reproduce").find("code").text
    assert command == "mooring compare config.resolved.yaml"


@pytest.mark.usefixtures("without_figures")
def test_recipes_in_a_file_stand_among_the_methods_of_the_command_line(mooring: Mooring, tmp_path: Path) -> None:
    (tmp_path / "spd.yaml").write_text("name: adam\nlr: 1e-3\nlabel: mine\nrules: [{SelectiveProjection: 1.0}]\n")
    (tmp_path / "two.yml").write_text("- sgd\n- {wrap: adamp, label: outer, rules: [TrustRatio]}\n")
    arguments = ("compare", *TINY, "--methods", "adamw,spd.yaml,two.yml", "--output-dir", "run")
    code, _, err = mooring(*arguments)
    assert code == 0, err
    assert set(finals(tmp_path / "run")) == {f"trials/{name}/seed_0" for name in ("adamw", "mine", "sgd", "outer")}

    # A rule is part of what a trial is: the folder is not continued with another.
    (tmp_path / "spd.yaml").write_text("name: adam\nlr: 1e-3\nlabel: mine\nrules: [{SelectiveProjection: 0.5}]\n")
    code, _, err = mooring(*arguments)
    assert code == 2
    assert (
        "method 'mine' is mooring:Adam(lr=0.001, rules=[SelectiveProjection(1.0)]) there, "
        "mooring:Adam(lr=0.001, rules=[SelectiveProjection(0.5)]) asked (give it a new label)"
    ) in err


def test_rules_in_a_wrong_order_are_said_before_any_trial(mooring: Mooring, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("{name: adam, label: mine, rules: [SelectiveProjection, RadialProjection]}")
    code, out, err = mooring("compare", *TINY, "--methods", "adamw,wrong.yaml", "--output-dir", "run")
    assert (code, out) == (2, "")
    assert "mooring: method 'mine': mooring:Adam refused" in err
    assert "list them as [RadialProjection(...), SelectiveProjection(...)]" in err and "Traceback" not in err
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.usefixtures("without_figures")
def test_rules_that_fight_are_announced(mooring: Mooring, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("{name: adam, label: odd, rules: [DecoupledDecay: 0.1, SelectiveProjection: 1]}")
    code, _, err = mooring("compare", *TINY, "--methods", "odd.yaml")
    assert code == 0, err
    assert "method 'odd': DecoupledDecay pulls the weights to zero while SelectiveProjection holds them" in err
