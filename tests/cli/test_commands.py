"""Help, lists, versions, and what is said to bad input."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mooring import __version__
from mooring.finetune.methods import METHODS
from mooring.finetune.tasks.registry import OWN, TASKS
from tests.compare.conftest import make_run_in

from .conftest import Mooring


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compare", "--help"], ["bench", "--help"], ["methods"], ["tasks"], ["--version"]]
)
def test_what_needs_no_torch_does_not_import_it(arguments: list[str]) -> None:
    code = (
        "import sys; from mooring.cli import main; code = main(sys.argv[1:])\n"
        "slow = {'torch', 'scipy', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "assert code == 0 and not slow, (code, slow)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_report_is_rebuilt_without_torch(tmp_path: Path) -> None:
    folder = make_run_in(tmp_path / "run", methods="adamw,sgd", seeds=2)
    code = (
        "import sys; from mooring.cli import main; code = main(sys.argv[1:])\n"
        "assert code == 0 and 'torch' not in sys.modules, code"
    )
    arguments = [sys.executable, "-c", code, "report", str(folder.path), "--quiet"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder.path / 'report.html'}\n"


def test_help_names_every_command_and_option(mooring: Mooring) -> None:
    _, out, _ = mooring("--help")
    assert all(name in out for name in ("compare", "report", "bench", "methods", "tasks", "env", "--version"))
    _, out, _ = mooring("compare", "--help")
    options = (
        "--methods", "--seeds", "--steps", "--task", "--baseline", "--output-dir", "--jobs", "--quick", "--overwrite",
        "--quiet", "--json",
    )  # fmt: skip
    assert all(name in out for name in options)


def test_version(mooring: Mooring) -> None:
    assert mooring("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compar"], 'Unknown command "compar". Did you mean "compare"?'),
        (["compare", "--metods", "adamw"], "Did you mean --methods?"),
        (["compare", "--steps", "many"], 'unable to convert "many" into int'),
        (["compare", "--methods", "adamv"], "unknown method 'adamv' (did you mean 'adamw'?)"),
        (["compare", "--task", "synthetic"], "did you mean 'synthetic-spurious'?"),
        (["compare", "--seeds", "few"], "write a number of seeds (10), a list (0,3,7) or a range (10-19)"),
        (["compare", "--steps", "0"], "train.steps should be greater than or equal to 1, got 0"),
        (["compare", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["compare", "--baseline", "adamwp"], "the baseline 'adamwp' is not among the methods"),
        (["compare", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["report", "nowhere"], "there is no comparison in 'nowhere'"),
        (["report"], "requires an argument"),
        (["methods", "adamspt"], "unknown method 'adamspt' (did you mean 'adamspd'?)"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(mooring: Mooring, arguments: list[str], message: str) -> None:
    code, out, err = mooring(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("mooring: ") and message in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert list(Path.cwd().iterdir()) == []  # nothing was started


def test_an_unknown_key_in_the_file_is_named_with_its_path(mooring: Mooring) -> None:
    Path("run.yaml").write_text("train: {stepz: 10}\n")
    code, _, err = mooring("compare", "run.yaml")
    assert code == 2
    assert err.startswith("mooring: run.yaml: unknown key 'train.stepz' (did you mean 'steps'?)")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("torch.optim:NAdamm", "module 'torch.optim' has no 'NAdamm' (did you mean 'NAdam'?)"),
        ("torch.optimm:NAdam", "module 'torch.optimm' cannot be imported"),
        ("adamw[weight_dekay=1]", "has no option 'weight_dekay' (did you mean 'weight_decay'?)"),
        ("adamw[lr=-1]", "lr"),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_bad_input_too(mooring: Mooring, method: str, message: str) -> None:
    code, _, err = mooring("compare", "--task", "synthetic-spurious", "--methods", f"adamw[label=a],{method}")
    assert code == 2, err
    assert message in err and "Traceback" not in err


def test_methods_and_tasks_are_listed(mooring: Mooring) -> None:
    _, out, _ = mooring("methods")
    assert all(name in out for name in METHODS)
    _, out, _ = mooring("methods", "AdamSPD")
    assert METHODS["adamspd"].paper in out and "strength" in out
    out = " ".join(out.split())  # however wide the terminal is
    assert "tuned over lr 1e-4 to 3e-2 (log), strength 0.1 to 2 cost" in out
    assert "12 bytes of state, 11 passes over memory, 1 gradient per step, 1 collective where sharded" in out
    _, out, _ = mooring("methods", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == list(METHODS)
    assert rows["adamspd"]["space"]["strength"] == {"low": 0.1, "high": 2.0, "log": False}
    assert rows["adamspd"]["cost"]["state_bytes_per_weight"] == 12 and rows["adamw"]["cost"]["passes"] == 7
    _, out, _ = mooring("tasks")
    assert all(name in out for name in TASKS)
    assert [row["name"] for row in json.loads(mooring("tasks", "--json")[1])] == [*TASKS, *OWN]


def test_the_environment_names_no_host_and_no_user(mooring: Mooring) -> None:
    code, out, _ = mooring("env", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["mooring"] == __version__ and found["python"] == platform.python_version()
    assert found["cores"] >= 1 and found["torch"]["threads"] >= 1
    words = set(out.replace('"', " ").replace(",", " ").split())
    assert not {platform.node(), getpass.getuser(), str(Path.home())} & words
    assert "torch" in mooring("env")[1]
