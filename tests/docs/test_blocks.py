"""Every Python block of README and docs runs, each on its own, as a reader would paste it into a new file; every YAML
block is a configuration that `mooring compare` accepts, every
`mooring` command one that its parser accepts.

Blocks that import a trainer carry the marker `hosts`; blocks meant for torchrun start with a `# torchrun` line and run
in a process group of one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HOSTS = re.compile(r"^\s*(?:from|import) (?:transformers|accelerate|lightning)\b", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, and what it says."""

    page: Path
    line: int
    code: str

    def param(self) -> object:
        marks = [pytest.mark.hosts] if HOSTS.search(self.code) else []
        return pytest.param(self, id=f"{self.page.name}:{self.line}", marks=marks)


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            found.append(Block(page, text[: match.start()].count("\n") + 2, match[1]))
    return found


def run_in_a_process_group(code: str, folder: Path) -> None:
    """What torchrun sets for one process; the interpreter is left at once, because gloo's threads may outlive it."""
    script = folder / "script.py"
    script.write_text(code + "\nimport os\nprint('reached the end', flush=True)\nos._exit(0)\n", encoding="utf-8")
    address = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **address, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "reached the end" in done.stdout, done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [block.param() for block in blocks("python")])
def test_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if block.code.startswith("# torchrun"):
        run_in_a_process_group(block.code, tmp_path)
        return
    source = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
    exec(compile(source, str(block.page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", [block.param() for block in blocks("yaml")])
def test_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    from mooring.compare.config import build_config, read_yaml

    file = tmp_path / "run.yaml"
    file.write_text(block.code, encoding="utf-8")
    assert build_config(read_yaml(file)).trials()


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.code.splitlines()]
    started = [f"mooring {line.partition(' -m mooring ')[2]}" for line in lines if " -m mooring " in line]
    return [line for line in lines if line.startswith("mooring ")] + started


@pytest.mark.parametrize("line", commands())
def test_command_is_accepted(line: str) -> None:
    from mooring.cli.app import app

    app.parse_args(shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False)
