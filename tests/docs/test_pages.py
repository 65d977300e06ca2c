"""README and docs point at files that exist, and CI can read its commands out of the README."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [t.split("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)]
    missing = [t for t in local if not (page.parent / t).exists()]
    assert not missing, f"{page.name} links to files that do not exist: {missing}"


def test_ci_finds_the_commands_of_the_readme() -> None:
    spec = importlib.util.spec_from_file_location("readme_block", ROOT / ".ci" / "readme_block.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "mooring compare" in module.block(readme, "main")
    assert "pytest" in module.block(readme, "test")
    with pytest.raises(SystemExit, match="0 bash blocks"):
        module.block(readme, "no such block")


def test_citation_names_the_papers_of_the_methods() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for paper in ("2006.08217", "2011.11152", "2411.01713", "2306.08553"):
        assert f"arXiv:{paper}" in citation


def test_the_readme_says_what_every_extra_is_for() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("| extra |")[1].split("## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert told == set(project["optional-dependencies"])


def test_an_error_for_a_missing_extra_names_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        extra
        for file in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r"mooring\[(\w+)\]", file.read_text(encoding="utf-8"))
    }
    assert {"anchors", "cli"} <= named <= set(project["optional-dependencies"])
