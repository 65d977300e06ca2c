"""``mooring finetune``: one training, continued, in one process and in those that torchrun starts."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mooring.cli.training import Bar, Lines
from mooring.finetune.checkpoints import find_checkpoints
from mooring.finetune.spec import TrialSpec

from .conftest import SMALL, Mooring, start

FINETUNE = ("finetune", "--method", "adamspd", *SMALL, "--output-dir", "run")
LONG = {"train": {"steps": 800, "eval_every": 400}, "task": {"name": "synthetic-spurious", "starts": 1}}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mooring", "finetune")


def final(folder: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path(folder, "final.json").read_text())
    return found


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "model.safetensors"))


def same_bits(a: str | Path, b: str | Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def long_run(**train: Any) -> None:
    Path("run.yaml").write_text(json.dumps({**LONG, "train": {**LONG["train"], **train}}))


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def has_checkpoints(folder: str, count: int = 1) -> bool:
    return len(find_checkpoints(Path(folder))) >= count


# --- One process -------------------------------------------------------------------------------------------------


def test_it_is_the_trial_that_compare_runs(mooring: Mooring, without_figures: None) -> None:
    code, out, err = mooring(*FINETUNE)
    assert code == 0 and "adamspd seed 0" in out and "mooring inspect run" in out
    assert "step 0 of 20" in err and "step 20 of 20" in err
    assert mooring("compare", "--methods", "adamspd", "--seeds", "0,", *SMALL, "--output-dir", "c", "--quiet")[0] == 0
    trial = "c/trials/adamspd/seed_0"
    assert same_bits("run", trial)
    specs = [TrialSpec.model_validate_json(Path(folder, "spec.json").read_text()) for folder in ("run", trial)]
    assert specs[0].key() == specs[1].key() == Path("run/key").read_text()
    about_the_run = ("time/", "memory/")
    assert {k: v for k, v in final("run").items() if not k.startswith(about_the_run)} == {
        k: v for k, v in final(trial).items() if not k.startswith(about_the_run)
    }
    # The folder is one that mooring inspect reads by itself.
    code, out, _ = mooring("inspect", "run", "--measures", "drift", "--json", "--output-dir", "measured")
    assert code == 0
    assert math.isclose(json.loads(out)["drift"]["distance"], final("run")["drift/l2"], rel_tol=1e-12)


def test_a_finished_training_says_so(mooring: Mooring) -> None:
    assert mooring(*FINETUNE, "--quiet") == (0, "run\n", "")
    before = Path("run/final.json").stat().st_mtime_ns
    code, out, err = mooring(*FINETUNE)
    assert code == 0 and "finished already" in err and "adamspd seed 0" in out
    code, out, _ = mooring("finetune", "--output-dir", "run", "--json")
    assert code == 0 and json.loads(out)["metrics"] == final("run")
    assert Path("run/final.json").stat().st_mtime_ns == before
    assert mooring(*FINETUNE, "--overwrite", "--quiet")[0] == 0
    assert Path("run/final.json").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "1"], "seed is 0 there, 1 asked"),
        (["--steps", "21"], "train.steps is 20 there, 21 asked"),
        (["--method", "adamspd[lr=0.5]"], "lr=0.5"),
        (["--task", "text-characters"], "task.name is 'synthetic-spurious' there, 'text-characters' asked"),
    ],
)
def test_another_training_is_not_continued(mooring: Mooring, options: list[str], said: str) -> None:
    assert mooring(*FINETUNE, "--quiet")[0] == 0
    before = sorted(path.name for path in Path("run").iterdir())
    code, _, err = mooring("finetune", "--output-dir", "run", *options)
    assert code == 2 and said in err and "--overwrite" in err
    assert sorted(path.name for path in Path("run").iterdir()) == before and final("run")["steps"] == 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--method is missing"),
        (["--method", "adamspd,adamw"], "one method, got 2"),
        (["--method", "adamspd", "--resume"], "--resume needs --output-dir"),
        (["--method", "adamspd", "--resume", "--output-dir", "new"], "no checkpoint in 'new'"),
        (["--method", "adamspd", "--keep", "0"], "--keep must be at least 1"),
        (["--method", "adamspd", "--checkpoint-every", "-1"], "--checkpoint-every"),
        (["--method", "adamspd", "--timeout", "0"], "--timeout"),
        (["--method", "adamspd", "--seed", "-1"], "--seed must be 0 or more"),
        (["--method", "adamspd", "--output-dir", "full"], "'full' is not empty"),
    ],
)
def test_bad_input(mooring: Mooring, arguments: list[str], said: str) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    code, _, err = mooring("finetune", *arguments)
    assert code == 2 and said in err


@pytest.mark.parametrize(
    "options", [["--task", "vison-fonts2digits"], ["METHOD", "adamspdd"], ["METHOD", "adamw[lrr=1]"]]
)
def test_what_compare_refuses_is_refused_in_the_same_words(mooring: Mooring, options: list[str]) -> None:
    said = []
    for command, method in (("finetune", "--method"), ("compare", "--methods")):
        arguments = [method if word == "METHOD" else word for word in options]
        if command == "finetune" and method not in arguments:
            arguments += [method, "adamspd"]
        code, _, err = mooring(command, *arguments)
        assert code == 2
        said.append(err)
    assert said[0] == said[1]


def test_a_method_out_of_a_file(mooring: Mooring) -> None:
    methods = [{"name": "adamw", "lr": 0.002, "label": "slow"}, "adamspd"]
    Path("run.yaml").write_text(json.dumps({**LONG, "train": {"steps": 4}, "compare": {"methods": methods}}))
    code, _, err = mooring("finetune", "run.yaml")
    assert code == 2 and "out of slow, adamspd" in err
    assert mooring("finetune", "run.yaml", "--method", "slow", "--output-dir", "run", "--quiet")[0] == 0
    assert json.loads(Path("run/spec.json").read_text())["method"]["options"]["lr"] == 0.002


def test_an_interrupted_training_goes_on_with_the_same_bits(mooring: Mooring) -> None:
    long_run()
    arguments = ("finetune", "run.yaml", "--method", "adamp", "--checkpoint-every", "100")
    process = start(*arguments, "--output-dir", "run")
    wait_for(lambda: has_checkpoints("run"), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    (*_, newest) = find_checkpoints(Path("run"))
    assert process.returncode == 130
    assert f"The newest checkpoint is {newest.path}" in err and "--output-dir run --checkpoint-every 100" in err
    assert newest.step < LONG["train"]["steps"] and not Path("run/final.json").exists()
    assert len(find_checkpoints(Path("run"))) <= 2
    code, _, err = mooring("finetune", "--output-dir", "run", "--resume")
    assert code == 0 and f"Continuing from {newest.path}: step {newest.step} of" in err
    assert mooring(*arguments, "--output-dir", "straight", "--quiet")[0] == 0
    assert same_bits("run", "straight")
    assert final("run")["cost/gradient_evaluations"] == LONG["train"]["steps"]


def test_what_is_no_complete_checkpoint_is_passed_over(mooring: Mooring) -> None:
    assert mooring(*FINETUNE, "--checkpoint-every", "6", "--keep", "5", "--quiet")[0] == 0
    assert [saved.step for saved in find_checkpoints(Path("run"))] == [6, 12, 18]
    Path("run/checkpoint-18/state.json").unlink()  # as if the process had ended before it was written
    Path("run/final.json").unlink()
    Path("run/.checkpoint-19").mkdir()
    code, _, err = mooring("finetune", "--output-dir", "run")
    assert code == 0 and "checkpoint-12" in err and not Path("run/.checkpoint-19").exists()
    for file in Path("run/checkpoint-18").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    Path("run/final.json").unlink()
    code, _, err = mooring("finetune", "--output-dir", "run")
    assert code == 1 and "checkpoint-18' cannot be read" in err and "Delete its folder" in err


def test_the_state_of_any_optimizer_is_kept(mooring: Mooring) -> None:
    """L-BFGS keeps lists of tensors, and needs its closure."""
    method = "torch.optim:LBFGS[lr=0.1,max_iter=2]"
    arguments = ("finetune", "--method", method, *SMALL, "--checkpoint-every", "7", "--quiet", "--output-dir")
    assert mooring(*arguments, "straight")[0] == 0
    assert mooring(*arguments, "run")[0] == 0
    Path("run/final.json").unlink()
    Path("run/model.safetensors").unlink()
    code, _, err = mooring(*arguments[:-2], "--output-dir", "run")
    assert code == 0 and "Continuing" in err
    assert same_bits("run", "straight")


def test_a_terminal_shows_a_bar_and_a_log_lines() -> None:
    events: list[dict[str, Any]] = [
        {"event": "pretrain", "start": 0, "step": 1, "steps": 7},
        {"event": "message", "text": "said"},
        {"event": "eval", "step": 0, "steps": 20, "id/accuracy": 0.5, "id/nll": 1.25},
        {"event": "step", "step": 3, "steps": 20, "loss": 0.125},
        {"event": "checkpoint", "step": 4, "steps": 20},
    ]
    shown = {}
    for view in (Bar, Lines):
        console = Console(file=io.StringIO(), force_terminal=view is Bar, width=100)
        with view(console) as listening:
            for event in events:
                listening(event)
        assert isinstance(console.file, io.StringIO)
        shown[view] = console.file.getvalue()
    assert "training" in shown[Bar] and "4/20" in shown[Bar] and "ID 50.0  NLL 1.2500" in shown[Bar]
    assert "said" in shown[Bar] and "said" in shown[Lines]
    assert [line.rpartition("  ")[0] for line in shown[Lines].splitlines()][-2:] == [
        "step 0 of 20  ID 50.0  NLL 1.2500",
        "step 4 of 20  checkpoint written",
    ]


# --- Several processes -------------------------------------------------------------------------------------------


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of torchrun's children, in the order of ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) != process.pid:
                continue
            environment = (path / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(path.name)
    return [found[rank] for rank in sorted(found)]


def is_the_same_training(a: str, b: str) -> None:
    """In float32, where two orders of a sum differ in the last digits and Adam makes steps of them where gradients
    are next to nothing: the weights end far nearer to one another than they have moved, and predict the same.

    tests/sharding/test_finetune.py shows in float64 that nothing but rounding is between them."""
    ours, theirs = weights(a), weights(b)
    gap = math.sqrt(sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours))
    assert gap < 0.02 * final(b)["drift/l2"]
    for name, value in final(b).items():
        if name.endswith("/accuracy"):
            assert abs(final(a)[name] - value) <= 0.005, name


linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds torchrun's children in /proc")


@linux
@pytest.mark.sharding
def test_a_lost_process_ends_the_job_and_another_number_goes_on(mooring: Mooring) -> None:
    long_run()
    job = torchrun("run.yaml", "--method", "adamspd", "--output-dir", "run", "--checkpoint-every", "20")
    wait_for(lambda: has_checkpoints("run", 2), job)
    os.kill(workers_of(job)[1], signal.SIGKILL)
    began = time.monotonic()
    out, err = job.communicate(timeout=60)
    assert time.monotonic() - began < 30 and job.returncode == 1 and out == ""
    (*_, newest) = find_checkpoints(Path("run"))
    assert newest.processes == 2 and newest.step < LONG["train"]["steps"]
    assert "process 1 of 2 was lost" in err and f"The newest checkpoint is {newest.path}." in err
    assert "torchrun --nproc-per-node 2 -m mooring finetune --output-dir run --checkpoint-every 20" in err
    code, _, err = mooring("finetune", "--output-dir", "run")
    assert code == 0 and f"step {newest.step} of 800, written by 2 processes" in err
    assert mooring("finetune", "run.yaml", "--method", "adamspd", "--output-dir", "one", "--quiet")[0] == 0
    is_the_same_training("run", "one")


@linux
@pytest.mark.slow
@pytest.mark.sharding
def test_lost_and_stopped_jobs_go_on_with_the_same_bits(mooring: Mooring) -> None:
    long_run(steps=300)
    arguments = ("run.yaml", "--method", "nso", "--checkpoint-every", "20", "--output-dir")
    job = torchrun(*arguments, "run")
    wait_for(lambda: has_checkpoints("run"), job)
    os.kill(workers_of(job)[0], signal.SIGKILL)  # the one that prints, usually
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1 and "process 0 of 2 was lost" in err
    at = find_checkpoints(Path("run"))[-1].step
    job = torchrun("--output-dir", "run")
    wait_for(lambda: len((Path("run/metrics.jsonl")).read_text().splitlines()) > 0 and has_checkpoints("run"), job)
    wait_for(lambda: find_checkpoints(Path("run"))[-1].step > at, job)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=60)
    assert "Interrupted. The newest checkpoint is" in err and err.count("Interrupted.") == 1
    assert not Path("run/final.json").exists()
    job = torchrun("--output-dir", "run", "--quiet")
    out, err = job.communicate(timeout=300)
    assert (job.returncode, out) == (0, "run\n"), err
    job = torchrun(*arguments, "straight", "--json")
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0 and json.loads(out)["metrics"] == final("straight"), err
    assert same_bits("run", "straight")
    assert json.loads(Path("straight/env.json").read_text())["processes"] == 2
    job = torchrun("--output-dir", "straight")
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0 and "finished already" in err and out.count("seed 0") == 1


@pytest.mark.slow
@pytest.mark.sharding
def test_what_is_wrong_is_said_once() -> None:
    for arguments, said in (
        (["--method", "adamspdd"], "adamspdd"),
        (["--method", "adamspd", "--task", "synthetic-spurious", "--resume", "--output-dir", "new"], "no checkpoint"),
        (["--method", "adamspd", "--device", "cuda:1"], "each takes that of its rank"),
        (["--method", "adamw[lr=1e30]", *SMALL, "--output-dir", "far"], "diverged"),
    ):
        job = torchrun(*arguments)
        _, err = job.communicate(timeout=120)
        lines = [line for line in err.splitlines() if line.startswith("mooring")]
        assert job.returncode == 1 and len([line for line in lines if said in line]) == 1, err
