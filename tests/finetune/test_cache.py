from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.finetune.cache import fetch, root, silent
from mooring.finetune.errors import SpecError
from mooring.finetune.files import write_atomic
from mooring.finetune.spec import TaskSpec
from mooring.finetune.tasks import prepare, starts


def make() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    return {"w": torch.arange(6.0).view(2, 3)}, {"accuracy": 0.5}


def test_the_environment_chooses_the_folder(cache: Path) -> None:
    assert root() == cache


def test_an_entry_is_made_once_and_read_back(tmp_path: Path) -> None:
    first = fetch(tmp_path, "entry", make, silent)
    assert first.made_now
    second = fetch(tmp_path, "entry", lambda: pytest.fail("made twice"), silent)
    assert not second.made_now
    assert (second.sha256, second.notes) == (first.sha256, first.notes)
    assert torch.equal(second.tensors["w"], make()[0]["w"])


def _flip_a_byte(folder: Path) -> None:
    file = next(folder.glob("entry-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip_a_byte, "does not match its SHA-256"),
        (lambda folder: next(folder.glob("entry-*.safetensors")).unlink(), "cannot be read"),
        (lambda folder: (folder / "entry.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "entry.json").write_text("[]"), "cannot be read"),
    ],
    ids=["flipped byte", "missing file", "torn record", "foreign record"],
)
def test_a_damaged_entry_is_noticed_said_and_made_again(tmp_path: Path, damage: Any, says: str) -> None:
    first = fetch(tmp_path, "entry", make, silent)
    damage(tmp_path)
    told: list[dict[str, Any]] = []
    again = fetch(tmp_path, "entry", make, told.append)
    assert again.made_now
    assert again.sha256 == first.sha256
    assert {event["event"] for event in told} == {"message"}
    assert says in told[0]["text"]
    assert not fetch(tmp_path, "entry", make, silent).made_now


def test_an_interrupted_maker_leaves_no_entry(tmp_path: Path) -> None:
    def interrupted() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, "entry", interrupted, silent)
    assert not list(tmp_path.glob("entry*"))
    assert fetch(tmp_path, "entry", make, silent).made_now


def test_two_that_want_the_same_entry_make_it_once(tmp_path: Path) -> None:
    made, told = [], []

    def slow() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        made.append(1)
        time.sleep(1.5)
        return make()

    workers = [threading.Thread(target=fetch, args=(tmp_path, "entry", slow, told.append)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made == [1]
    assert all("another process is making entry" in event["text"] for event in told)


def test_a_folder_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="set MOORING_CACHE"):
        fetch(tmp_path / "file" / "below", "entry", make, silent)


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")

    def torn(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomic(target, torn)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_prepare_reports_progress_and_the_second_time_only_reads(vision: TaskSpec) -> None:
    spec = vision.model_copy(update={"data_seed": 5})
    told: list[dict[str, Any]] = []
    prepare(spec, told.append)
    steps = [event for event in told if event["event"] == "pretrain"]
    assert {event["start"] for event in steps} == {0, 1}
    assert steps[-1]["step"] == steps[-1]["steps"] == 20
    done = [event for event in told if event["event"] == "start"]
    assert [event["cached"] for event in done] == [False, False]
    told.clear()
    prepare(spec, told.append)
    assert [(event["event"], event["cached"]) for event in told] == [("start", True), ("start", True)]


def test_starts_differ_and_are_the_same_when_made_again(
    vision: TaskSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (starts.load_start(vision, seed) for seed in (0, 1))
    assert first.sha256 != second.sha256
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path))
    torch.rand(3)  # what was drawn before does not matter
    assert starts.load_start(vision, 0).sha256 == first.sha256


def test_the_recipe_decides_the_folder_and_the_number_of_starts_does_not(vision: TaskSpec) -> None:
    def folder(**changes: int) -> Path:
        return starts.cache_folder(starts.load_task(vision.model_copy(update=changes)))

    assert folder() == folder(starts=7)
    assert len({folder(), folder(data_seed=1), folder(pretrain_steps=21), folder(pretrain_examples=401)}) == 4


def test_the_record_names_the_file_and_its_checksum(tmp_path: Path) -> None:
    entry = fetch(tmp_path, "entry", make, silent)
    record = json.loads((tmp_path / "entry.json").read_text())
    assert record["sha256"] == entry.sha256
    assert (tmp_path / record["file"]).is_file()
