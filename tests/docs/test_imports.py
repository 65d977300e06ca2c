"""The imports that docs/architecture.md draws: which room may import which, and that every package is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.reproduce.registry import EXPERIMENTS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "mooring"
# Lower floors first; a room imports its own floor and those below.
FLOORS = (
    ("kernels", "anchors"),
    ("step", "moments"),
    ("rules",),
    ("optim",),
    ("perturb",),
    ("measure",),
    ("integrations", "finetune"),
    ("compare",),
    ("inspect", "reproduce", "bench"),
    ("cli",),
)
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
# Where the name that is imported is not the name of the distribution.
DISTRIBUTION = {"fontTools": "fonttools", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Modules a file imports, but not those it imports for type checking alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = [
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    ]
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module


def room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0]


def outside(file: Path) -> set[str]:
    """Distributions outside the standard library and this package."""
    names = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names) - {"mooring"}
    return {DISTRIBUTION.get(name, name).replace("_", "-") for name in names}


def declared(extra: str | None) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {re.split(r"[<>=!~\[; ]", r)[0].lower().replace("_", "-") for r in requirements}


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_run_one_way(file: Path) -> None:
    if room(file) not in LEVEL:
        return
    for name in imported(file):
        target = name.split(".")[1] if name.startswith("mooring.") else ""
        if target in LEVEL:
            assert LEVEL[target] <= LEVEL[room(file)], f"{room(file)} must not import {name}"


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(SOURCE)))
def test_every_package_is_declared(file: Path) -> None:
    allowed = declared(None)
    if room(file) == "anchors":
        allowed |= declared("anchors")
    elif room(file) == "measure":
        allowed |= declared("plot") | {"numpy", "scipy"}  # eigenvalues, with the extra cli
    elif room(file) == "integrations":
        allowed |= declared("hosts")
    elif file.parent.name == "cpu" or file.name == "compiled.py":
        allowed |= declared("fast") | {"llvmlite", "numpy"}  # which Numba brings
    elif LEVEL.get(room(file), 0) > LEVEL["perturb"]:
        allowed |= declared("cli")
        if "own" in file.parts or room(file) == "inspect":  # models that the user names
            allowed |= declared("models")
        if file.parent.name == "experiments":  # what the registry says that it needs: left out where that is missing
            needs = EXPERIMENTS[file.stem.replace("_", "-")].needs if file.stem != "__init__" else ()
            allowed |= {need.replace("_", "-") for need in needs}
    assert outside(file) <= allowed


def test_every_declared_package_is_pinned() -> None:
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    extras = ("anchors", "fast", "cli", "plot", "test", "browser", "hosts", "models", "variants", "dev")
    assert declared(None).union(*(declared(extra) for extra in extras)) <= pins
    assert not {"torchvision", "torchaudio"} & pins
