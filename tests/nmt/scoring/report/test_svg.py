"""cats.nmt.scoring.report.svg: figures inside a page."""

from __future__ import annotations

import re

from cats.nmt.scoring.plots.style import new_figure
from cats.nmt.scoring.report.svg import inline


def drawn(number: int) -> str:
    figure, (axis,) = new_figure(1)
    axis.plot([0.0, 1.123456789], [0.0, 2.0], marker="o", label="x")
    axis.set_xlabel("<b> & more")
    return inline(figure, number, "A <title>", "What it shows").markup


def test_nothing_of_a_picture_reaches_beyond_it() -> None:
    """Its ids are its own, and it has no rule of style for the page."""
    one, two = drawn(1), drawn(2)
    ids = [re.findall(r' id="([^"]*)"', text) for text in (one, two)]
    assert ids[0] and not {*ids[0]} & {*ids[1]}
    used = [*re.findall(r"url\(#([^)]*)\)", one), *re.findall(r'href="#([^"]*)"', one)]
    assert used and {*used} <= {*ids[0]}
    assert "<style" not in one and "<metadata" not in one and "http" not in one.replace("http://www.w3.org/", "")
    assert one == drawn(1)


def test_a_picture_has_a_title_and_text() -> None:
    text = drawn(1)
    assert text.startswith("<svg") and 'role="img" aria-labelledby="picture1-title picture1-text"' in text
    assert '<title id="picture1-title">A &lt;title&gt;</title><desc id="picture1-text">What it shows</desc>' in text
    assert "&lt;b&gt; &amp; more</text>" in text
    assert not re.search(r' d="[^"]*\.\d{3}', text)


def test_images_stay_inside() -> None:
    """A matrix is drawn as an image, which the element holds itself."""
    figure, (axis,) = new_figure(1)
    axis.imshow([[0.0, 1.0], [1.0, 0.0]])
    text = inline(figure, 1, "A matrix", "..").markup
    assert 'xlink:href="data:image/png;base64,' in text
