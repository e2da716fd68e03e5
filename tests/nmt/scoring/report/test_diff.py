"""cats.nmt.scoring.report.diff: what is different between a reference and a translation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cats.nmt.scoring.report.diff import difference


def marked(reference: str, translation: str) -> str:
    """The pieces as text: [missing], {added}."""
    signs = {"same": "{}", "missing": "[{}]", "added": "{{{}}}"}
    return "".join(signs[piece.kind].format(piece.text) for piece in difference(reference, translation))


@given(st.text(alphabet="ab 7,ä\u0301न्द日\u200d", max_size=20), st.text(alphabet="ab 7,ä\u0301न्द日\u200d", max_size=20))
def test_the_pieces_make_up_both_texts(reference: str, translation: str) -> None:
    pieces = difference(reference, translation)
    assert "".join(piece.text for piece in pieces if piece.kind != "added") == reference
    assert "".join(piece.text for piece in pieces if piece.kind != "missing") == translation
    assert all(piece.text for piece in pieces)
    assert all(one.kind != other.kind for one, other in itertools.pairwise(pieces))
    if reference == translation:
        assert all(piece.kind == "same" for piece in pieces)


@pytest.mark.parametrize(
    ("reference", "translation", "expected"),
    [
        ("3 Stunden am Montag", "4 Stunden am Montag", "[3]{4} Stunden am Montag"),  # a word
        ("drei Stunden", "drei Stunde", "drei Stunde[n]"),  # a letter of a similar word
        ("am Montag", "am Dienstag", "am [Montag]{Dienstag}"),  # what other words have in common is chance
        ("18 ringgits", "18ringgits", "18[ ]ringgits"),  # numbers end where letters begin
        ("", "x", "{x}"),
        ("x", "", "[x]"),
        ("日本語とポーランド語", "日本語とフランス語", "日本語と[ポー]{フ}ラン[ド]{ス}語"),  # no spaces between words
        ("हिन्दी भाषा", "हिन्दु भाषा", "[हिन्दी]{हिन्दु} भाषा"),  # a vowel sign is not torn off its letter
    ],
)
def test_marks(reference: str, translation: str, expected: str) -> None:
    assert marked(reference, translation) == expected
