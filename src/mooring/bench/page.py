"""The results in a page of the docs, between two marks; what stands around them is written by hand."""

from __future__ import annotations

from pathlib import Path

from mooring.bench.results import Results
from mooring.bench.tables import about, markdown, summary, tables
from mooring.finetune.errors import SpecError
from mooring.finetune.files import write_text

BEGIN, END = "<!-- results of mooring bench -->", "<!-- end of results -->"


def section(results: Results, pictures: dict[str, str]) -> str:
    """Everything that was found, as Markdown.

    Args:
        results: of a run.
        pictures: name -> path, relative to the page.
    """
    parts = ["\n".join(f"- {line}" for line in [*about(results), summary(results.rows) + "."])]
    for name, path in pictures.items():
        what = "Time per step over fused AdamW's" if name == "bench" else "How that ratio grows"
        parts.append(f'<img src="{path}" width="100%" alt="{what}; the numbers are in the tables">')
    parts += [markdown(table) for table in tables(results)]
    return "\n\n".join(parts)


def check(page: Path) -> None:
    """Refuse a page without the marks, before anything is measured.

    Raises:
        SpecError: where they are missing.
    """
    text = page.read_text(encoding="utf-8")
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise SpecError(f"--page: {str(page)!r} needs a line {BEGIN} and a later line {END}; results go between them")


def fill(page: Path, content: str) -> None:
    """Put the results between the marks."""
    check(page)
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    write_text(page, f"{before}{BEGIN}\n\n{content}\n\n{END}{after}")
