"""cats.nmt.scoring.report.html: text is escaped, whatever it is."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from cats.nmt.scoring.report.html import Html, element, foreign, joined, language_tag


class Texts(HTMLParser):
    """The tags of a document, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text())
def test_text_and_attributes_come_back_as_they_were(text: str) -> None:
    """Whatever it contains, it makes no element, and is read as itself, except for characters that HTML forbids."""
    parser = Texts()
    parser.feed(element("p", text, element("b", text), title=text).markup)
    parser.close()
    allowed = "".join("\ufffd" if (c < " " and c not in "\t\n\r") or c in "\x7f\ufffe\uffff" else c for c in text)
    allowed = "".join("\ufffd" if "\x80" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" else c for c in allowed)
    assert [tag for tag, _ in parser.tags] == ["p", "b"]
    assert parser.tags[0][1] == {"title": allowed} and parser.text == 2 * allowed
    element("p", text).markup.encode()  # also lone surrogates


def test_elements() -> None:
    assert element("p", "a", None, Html("<b>c</b>"), class_="x", aria_label='"', open=True, id=None).markup == (
        '<p class="x" aria-label="&quot;" open>a<b>c</b></p>'
    )
    assert element("meta", charset="utf-8").markup == '<meta charset="utf-8">'
    assert joined("<", Html("<br>")).markup == "&lt;<br>"


def test_languages() -> None:
    names = {"az": "az", "zh_CN": "zh-CN", "zho_Hans": "zho-Hans", "": None, 'az" onclick="x': None, "a b": None}
    assert {name: language_tag(name) for name in names} == names
    assert foreign("x", "ar").markup == '<p lang="ar" dir="auto">x</p>'
    assert foreign("x").markup == '<p dir="auto">x</p>'
