"""`mooring reproduce` as a user runs it: in a process of its own, interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from mooring.cli import main
from tests.cli.conftest import start


def test_ctrl_c_ends_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start("reproduce", "norm-growth", "toy-2d", "--jobs", "2", "--output-dir", tmp_path)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        assert "norm-growth: " in first or "toy-2d: " in first
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Finished jobs are kept; the same command goes on." in err
    assert "Traceback" not in err
    assert not (tmp_path / "norm-growth" / "result.json").exists()


def test_several_side_by_side_end_with_the_page(tmp_path: Path) -> None:
    assert main(["reproduce", "toy-2d", "trust-ratio", "--quick", "--jobs", "2", "--output-dir", str(tmp_path)]) == 0
    page = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert page.index("## toy-2d") < page.index("## trust-ratio"), "in the order of the registry"
