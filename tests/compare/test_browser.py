"""The report in a real browser: it loads nothing, complains of nothing, and fits a telephone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mooring.compare.report import write_report
from mooring.compare.results import Results

from .conftest import make_run_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("MOORING_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "install chromium, or name it in MOORING_CHROMIUM"
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything a report can hold: failures, long names, many methods."""
    odd = {"name": "adamw", "lr": 0.1, "label": "a-method-with-a-name-that-is-much-too-long"}
    rules = ["RadialProjection", {"StableDecay": 1e-4}, "SelectiveProjection"]
    recipe = {"name": "adam", "lr": 0.1, "rules": rules}  # its own label has no place to break at
    folder = make_run_in(
        tmp_path_factory.mktemp("browser") / "run",
        methods=["adamw", "adamp", "adamspd", "sgd", "sgds", odd, recipe],
        seeds=6,
        failed=[("sgd", 3)],
        error="RuntimeError: " + "x" * 400 + "\n\nTraceback (most recent call last):\n" + "y" * 400,
    )
    return write_report(Results(folder))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_alone_and_fits(
    browser: Browser, page_file: Path, tmp_path: Path, width: int, scheme: Any
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    for closed in page.query_selector_all("details"):
        closed.evaluate("element => element.open = true")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SPILLED) == []  # no method's name runs into the next column
    figures = page.query_selector_all("figure svg")
    assert len(figures) >= 15
    for figure in figures:
        box = figure.bounding_box()
        assert box and box["width"] >= 300 and box["height"] >= 80
    overlapping = page.evaluate(OVERLAPS)
    assert overlapping == [], overlapping
    # The page's own colours, in both schemes: text against paper as WCAG asks of small text.
    ratios = page.evaluate(CONTRASTS)
    assert min(ratios.values()) >= 4.5, ratios
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert (tmp_path / "report.png").stat().st_size > 50_000
    context.close()


def test_it_prints(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf(format="A4")) > 50_000
    context.close()


# Level texts of one figure that cover each other by more than a sliver (the boxes of slanted ones always do).
SPILLED = """() => [...document.querySelectorAll("tbody th .name")]
  .filter(name => name.getBoundingClientRect().right > name.closest("th").getBoundingClientRect().right + 1
    || name.scrollWidth > name.clientWidth + 1)
  .map(name => name.textContent)"""
OVERLAPS = r"""() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const level = [...svg.querySelectorAll('text')].filter(t => !/rotate\(-[1-9]/.test(t.getAttribute('transform')));
  const boxes = level.map(text => [text.textContent, text.getBoundingClientRect()]);
  const found = [];
  boxes.forEach(([a, x], i) => boxes.slice(i + 1).forEach(([b, y]) => {
    const width = Math.min(x.right, y.right) - Math.max(x.left, y.left);
    const height = Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top);
    if (width > 2 && height > 0.45 * Math.min(x.height, y.height)) found.push([svg.ariaLabel.slice(0, 40), a, b]);
  }));
  return found;
})"""

CONTRASTS = """() => {
  const style = getComputedStyle(document.documentElement);
  const luminance = name => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const [r, g, b] = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  return Object.fromEntries(['--ink', '--muted', '--better', '--worse'].flatMap(
    name => ['--paper', '--raised'].map(ground => [name + ' on ' + ground, contrast(name, ground)])));
}"""
