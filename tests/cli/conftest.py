"""Running the command: in this process where that is quick, in one of its own where that is the point."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mooring.cli import main

Mooring = Callable[..., tuple[int, str, str]]

SMALL = ("--task", "synthetic-spurious", "--steps", "20")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained starts are made once for all tests of the command."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mooring(capfd: pytest.CaptureFixture[str]) -> Mooring:
    """Run ``mooring`` with arguments; the exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than small trials; most tests are not about them."""
    monkeypatch.setattr("mooring.compare.report.render", lambda results, folder: {})


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start ``python -m mooring`` in a process group of its own, as a terminal does.

    Also as a terminal does, with Ctrl-C not ignored: a shell that runs the tests in the background has it ignored, and
    children inherit that.
    """
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = f"import runpy; {listen}; runpy.run_module('mooring', run_name='__main__', alter_sys=True)"
    return subprocess.Popen(
        [sys.executable, "-c", run, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        start_new_session=True,
    )
