"""Reads the report's page without anything of the code that wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "path", "rect", "circle", "use"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(c if isinstance(c, str) else c.text for c in self.children).split())

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())

    def find_all(self, tag: str, cls: str = "") -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in (child.tag, "*") and (not cls or cls in child.classes):
                    found.append(child)
                found += child.find_all(tag, cls)
        return found

    def find(self, tag: str, cls: str = "") -> Element:
        return self.find_all(tag, cls)[0]

    def by_id(self, name: str) -> Element:
        (found,) = [e for tag in ("table", "section") for e in self.find_all(tag) if e.attributes.get("id") == name]
        return found


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(path: Path) -> Element:
    """The page as a tree; tags that do not match are an error."""
    builder = _Builder()
    builder.feed(path.read_text(encoding="utf-8"))
    builder.close()
    assert builder.open == [builder.root]
    return builder.root


@dataclass(frozen=True)
class PrintedCell:
    """What a reader sees in one cell."""

    mean: str
    difference: str
    interval: str
    tone: str
    arrow: str
    best: bool


def read_table(page: Element, name: str) -> dict[str, dict[str, PrintedCell]]:
    """Method → column → cell of one of the two tables of results."""
    table = page.by_id(name)
    heads = [th.text for th in table.find("thead").find_all("th")]
    found: dict[str, dict[str, PrintedCell]] = {}
    for row in table.find("tbody").find_all("tr"):
        label = row.find("th").find("span", "name").text
        cells = row.find_all("td")
        assert len(cells) == len(heads) - 1
        found[label] = {head: _cell(cell) for head, cell in zip(heads[2:], cells[1:], strict=True)}
    return found


def _cell(cell: Element) -> PrintedCell:
    mean = cell.find("span", "mean")
    differences = cell.find_all("span", "difference")
    if not differences:
        return PrintedCell(mean.text, "", "", "", "", "best" in mean.classes)
    (difference,) = differences
    intervals, arrows = difference.find_all("span", "interval"), difference.find_all("span", "arrow")
    return PrintedCell(
        mean.text,
        difference.find("b").text,
        intervals[0].text if intervals else "",
        " ".join(difference.classes - {"difference"}),
        arrows[0].text if arrows else "",
        "best" in mean.classes,
    )
