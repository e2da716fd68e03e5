"""The page in headless Chromium: on a desktop and on a phone, in light and in dark, with and without its script."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nmt.scoring.report.browser import Browser, find_chromium

# The elements that reach beyond the window, without those in a box that scrolls.
TOO_WIDE = """
[...document.body.querySelectorAll("*")].filter(e =>
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !e.closest(".box, pre")
).map(e => e.tagName + " " + e.textContent.slice(0, 50))
"""
SORTED = """
(() => {
  const heads = [...document.querySelectorAll("table")[0].tHead.rows[0].cells];
  return [heads.map(h => h.getAttribute("aria-sort")),
          [...document.querySelectorAll("table")[0].tBodies[0].rows].map(r => r.cells[0].textContent)];
})()
"""
TABLE = """
<table><thead><tr><th>name</th><th class="number">chrF</th></tr></thead>
<tbody><tr><th>b</th><td>9.5 ± 0.1</td></tr><tr><th>c</th><td>n/a</td></tr><tr><th>a</th><td>1,000</td></tr></tbody>
<tfoot><tr><th>All</th><td>0</td></tr></tfoot></table>
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium; install it, for example with: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_nothing_is_logged(browser: Browser, shown: Path, width: int, dark: bool) -> None:
    from matplotlib.image import imread

    loaded = browser.open(shown, width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.evaluate(TOO_WIDE) == []
    picture = imread(io.BytesIO(browser.screenshot()), format="png")
    assert picture.shape[1] == width
    assert (picture[2, 2, :3].mean() < 0.2) == dark and picture.std() > 0.01  # the paper's colour, and text on it
    assert browser.evaluate("document.title") == "<title> & more"  # the hostile script has not run
    assert loaded.errors == [] and loaded.requests == [shown.as_uri()]


def test_the_page_can_be_read_without_its_script(browser: Browser, shown: Path) -> None:
    loaded = browser.open(shown, width=390, scripts=False)
    assert browser.evaluate("document.querySelectorAll('thead button').length") == 0
    assert browser.evaluate("document.querySelector('details').open = true, " + TOO_WIDE.strip()) == []
    assert loaded.errors == []


def test_tables_sort_with_the_keyboard(browser: Browser, shown: Path, tmp_path: Path) -> None:
    """By numbers, with those that are missing last; the averages stay at the end."""
    path = tmp_path / "page.html"
    text = shown.read_text(encoding="utf-8")
    path.write_text(text.replace("<main>", f"<main>{TABLE}"), encoding="utf-8")
    loaded = browser.open(path, width=1280)
    assert browser.evaluate(SORTED) == [[None, None], ["b", "c", "a"]]
    browser.evaluate("document.querySelectorAll('thead button')[1].focus()")
    browser.press("Enter")
    assert browser.evaluate(SORTED) == [[None, "ascending"], ["b", "a", "c"]]
    browser.press("Enter")
    assert browser.evaluate(SORTED) == [[None, "descending"], ["a", "b", "c"]]
    browser.evaluate("document.querySelectorAll('thead button')[0].focus()")
    browser.press("Enter")
    assert browser.evaluate(SORTED) == [["ascending", None], ["a", "b", "c"]]
    assert loaded.errors == []
