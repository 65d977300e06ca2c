"""The folder of a comparison: continued, never mixed up, never two writers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mooring.compare.config import ConfigError, RunConfig, build_config
from mooring.compare.environment import describe_environment
from mooring.compare.store import RunFolder, differences, new_folder

from .conftest import MakeRun

ENVIRONMENT = describe_environment()


def config(**compare: object) -> RunConfig:
    return build_config({"train": {"steps": 40}, "compare": {"methods": "adamw,sgd", "seeds": 2, **compare}})


def start(path: Path, asked: RunConfig, **options: bool) -> tuple[RunConfig, tuple[str, ...]]:
    with RunFolder(path) as folder:
        opened = folder.open(asked, ENVIRONMENT, **options)
    return opened.config, opened.notes


def test_the_same_configuration_continues(tmp_path: Path) -> None:
    first, _ = start(tmp_path / "run", config())
    again, notes = start(tmp_path / "run", config())
    assert first == again == config()
    assert notes == ()


def test_methods_and_seeds_may_be_added_and_none_is_lost(tmp_path: Path) -> None:
    start(tmp_path / "run", config())
    grown, notes = start(tmp_path / "run", config(methods="adamp", seeds="2-3"))
    assert grown.labels == ("adamw", "sgd", "adamp")
    assert grown.seeds == (0, 1, 2, 3)
    assert grown.baseline == "adamw"
    assert any("adamw, sgd" in note for note in notes) and any("seeds are kept" in note for note in notes)
    assert RunFolder(tmp_path / "run").stored_config() == grown


def test_another_configuration_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    here = config(methods=[{"name": "adamw", "lr": 0.25}])
    start(tmp_path / "run", here)
    other = build_config(
        {
            "task": {"starts": 2},
            "train": {"steps": 41},
            "compare": {"methods": [{"name": "adamw", "lr": 0.5}], "seeds": 2},
        }
    )
    with pytest.raises(ConfigError) as caught:
        start(tmp_path / "run", other)
    for part in ("task.starts is 5 there, 2 asked", "train.steps is 40 there, 41 asked", "lr=0.25", "lr=0.5"):
        assert part in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert RunFolder(tmp_path / "run").stored_config() == here


def test_overwrite_deletes_what_mooring_wrote_and_nothing_else(make_run: MakeRun) -> None:
    folder = make_run(methods="adamw,sgd", seeds=2)
    (folder.path / "notes.txt").write_text("mine")
    changed = build_config({"train": {"steps": 41}, "compare": {"methods": "adamw,sgd", "seeds": 2}})
    resolved, _ = start(folder.path, changed, overwrite=True)
    assert resolved == changed
    assert not (folder.path / "trials").exists()
    assert (folder.path / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty and was not made by mooring compare"), RunFolder(tmp_path):
        pass
    with pytest.raises(ConfigError, match="is a file"), RunFolder(tmp_path / "thesis.tex"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    # Another process, because that is what a lock is about; it is killed, and the lock goes with it.
    code = (
        "import sys, time; from pathlib import Path; from mooring.compare.store import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="another mooring compare is working in"), RunFolder(tmp_path / "run"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with RunFolder(tmp_path / "run"):
        pass


def test_a_trial_is_done_only_under_the_key_it_was_started_with(make_run: MakeRun) -> None:
    folder = make_run(methods="adamw", seeds=2, failed=[("adamw", 1)])
    done, failed = folder.stored_config().trials()
    assert (folder.status(done), folder.status(failed)) == ("done", "failed")
    (folder.trial_folder("adamw", 0) / "key").write_text("another version")
    assert folder.status(done) == "missing"
    (folder.trial_folder("adamw", 0) / "key").write_text(done.key())
    (folder.trial_folder("adamw", 0) / "final.json").unlink()
    assert folder.status(done) == "missing"


def test_clearing_a_trial_leaves_nothing_of_the_earlier_attempt(make_run: MakeRun) -> None:
    folder = make_run(methods="adamw", seeds=1)
    (spec,) = folder.stored_config().trials()
    path = folder.clear_trial(spec)
    assert [item.name for item in path.iterdir()] == ["key"]


def test_a_change_of_versions_is_noted_and_kept(tmp_path: Path) -> None:
    before = {**ENVIRONMENT, "packages": {**ENVIRONMENT["packages"], "torch": "1.0"}}
    with RunFolder(tmp_path / "run") as folder:
        folder.open(config(), before)
        notes = folder.open(config(), ENVIRONMENT).notes
        assert notes == (f"The trials already here ran with torch 1.0 (now {ENVIRONMENT['packages']['torch']}).",)
        folder.open(config(), ENVIRONMENT)
    stored = json.loads((tmp_path / "run" / "env.json").read_text())
    assert stored["packages"] == ENVIRONMENT["packages"]
    assert [earlier["packages"]["torch"] for earlier in stored["earlier"]] == ["1.0"]


def test_the_baseline_may_change_because_no_trial_depends_on_it(tmp_path: Path) -> None:
    start(tmp_path / "run", config())
    changed, notes = start(tmp_path / "run", config(baseline="sgd"))
    assert changed.baseline == "sgd"
    assert any("baseline" in note for note in notes)
    kept, _ = start(tmp_path / "run", config())
    assert kept.baseline == "sgd"  # not said is not changed


def test_a_label_is_the_same_method_in_any_case(tmp_path: Path) -> None:
    start(tmp_path / "run", config())
    again, _ = start(tmp_path / "run", config(methods=[{"name": "adamw", "label": "AdamW"}], baseline="AdamW"))
    assert again.labels == ("adamw", "sgd")
    assert again.baseline == "adamw"


def test_no_difference_between_equal_configurations() -> None:
    assert differences(config(), config(seeds=9, methods="adamp")) == []


def test_new_folders_do_not_collide(tmp_path: Path) -> None:
    first = new_folder("task", tmp_path)
    first.mkdir()
    assert new_folder("task", tmp_path) != first
    assert first.name.endswith("-task")


def test_the_stored_environment_names_nobody() -> None:
    import getpass
    import platform

    text = json.dumps(ENVIRONMENT)
    assert platform.node() not in text or len(platform.node()) < 4
    assert f'"{getpass.getuser()}"' not in text and str(Path.home()) not in text
