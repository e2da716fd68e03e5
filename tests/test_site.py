"""The site is built from docs/ without a warning, its hooks do what they say, and it fits on a phone."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.nmt.scoring.report.browser import Browser, find_chromium

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytest.importorskip("material")

from docs.hooks.repository import resolve


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_links_go_to_pages_of_the_site_or_become_text(site: Path) -> None:
    text = (site / "trainer/presets.html").read_text(encoding="utf-8")
    assert "<span>cats/nmt/config/presets</span>" in text  # not on the site, and there is no address of the repository
    text = (site / "CONTRIBUTING.html").read_text(encoding="utf-8")
    assert 'href="kernels/add-an-operator.html' in text
    text = (site / "index.html").read_text(encoding="utf-8")
    picture = re.search(r'<img alt="The weights[^>]* src="([^"]+)"', text)
    assert picture and (site / picture[1]).is_file()


def test_a_link_is_resolved_from_the_file_that_it_is_in() -> None:
    site = {"index.md", "guide/cost.md", "CONTRIBUTING.md", "bench/README.md", "bench/results/x.png"}

    def to(link: str, page: str, repo_url: str | None = None) -> str | None:
        return resolve(link, page, site, repo_url)

    assert to("../../bench/README.md#the-engines", "guide/cost.md") == "../bench/README.md#the-engines"
    assert to("../bench", "index.md") == "bench/README.md"  # a folder is its README.md
    assert to("docs/guide/cost.md", "CONTRIBUTING.md") == "guide/cost.md"
    assert to("../CONTRIBUTING.md", "bench/README.md") == "../CONTRIBUTING.md"
    assert to("cost.md", "guide/cost.md") == "cost.md"
    assert to("../cats/optim.py", "index.md") is None
    assert to("../cats/optim.py", "index.md", "https://e.org/cats/") == "https://e.org/cats/blob/main/cats/optim.py"
    for unchanged in ("../cats/nope.py", "nope.md", "https://e.org/x", "#part", "../../outside.md"):
        assert to(unchanged, "index.md") == unchanged  # MkDocs reports those that lead nowhere


def test_docstrings_are_shown_as_they_are_meant(site: Path) -> None:
    page = unescape((site / "reference/optimizer.html").read_text(encoding="utf-8"))
    assert "With r_n = <g_n, ḡ>/‖ḡ‖²" in page  # not taken for HTML
    assert 'href="weighting.html#cats.weighting.CATS"><code>cats.weighting.CATS</code>' in page
    assert not re.search(r":(class|meth|attr|func|mod):|::\s*</p>", page)
    operators = unescape(re.sub(r"<[^>]*>|\s+", " ", (site / "reference/ops.html").read_text(encoding="utf-8")))
    assert "For (R, K) weights: R such lists." in operators  # no colon of a sentence ends the name of a type
    signature = re.sub(r"<[^>]*>", "", page.partition('class="doc-signature')[2].partition("</code>")[0])
    assert 'simplex: Simplex = "proximal"' in signature and "defaults." not in signature


def test_names_in_code_are_links_to_the_reference(site: Path) -> None:
    page = (site / "quickstart.html").read_text(encoding="utf-8")
    assert re.search(r'href="reference/optimizer.html#cats.MultiTask">|href="reference/weighting.html', page)
    assert "<autoref" not in page


@pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")
def test_pages_fit_on_a_phone_and_load_nothing_from_the_net(site: Path, tmp_path: Path) -> None:
    program = find_chromium()
    assert program
    with Browser(program, tmp_path) as browser:
        for name in ("index", "install", "trainer/settings", "trainer/methods", "reference/optimizer", "bench/index"):
            loaded = browser.open(site / f"{name}.html", width=390)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert not loaded.errors
            assert all(request.startswith(("file:", "data:")) for request in loaded.requests)
