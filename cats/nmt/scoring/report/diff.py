"""What is different between a reference and a translation: word by word, and letter by letter within similar words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal, NamedTuple

# Two passages are compared letter by letter if they are at least this similar (2 × equal letters / all letters). Below,
# what they have in common is chance: "Montag" and "Dienstag" share "tag" and "n".
_SIMILAR = 0.6
_SHORTEST = 2  # equal letters between two differences; a single one would only make the marks hard to read
_JOINERS = "\u200c\u200d"
# Thai and Lao, Burmese, Khmer: like Chinese and Japanese, they write no spaces between words.
_WITHOUT_SPACES = (("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"))
_VIRAMA = 9  # the combining class of the signs that join a consonant to the next one

Kind = Literal["same", "missing", "added"]


class Piece(NamedTuple):
    """A part of the text. missing: only in the reference. added: only in the translation."""

    kind: Kind
    text: str


def difference(reference: str, translation: str) -> list[Piece]:
    """The translation in pieces, with those of the reference that it lacks.

    The pieces that are not missing make up the translation, and those that are not added the reference. The time grows
    with the square of the lengths, and faster in the worst case.
    """
    pieces: list[Piece] = []
    for kind, theirs, ours in _compare(_words(reference), _words(translation)):
        if kind == "same":
            pieces.append(Piece("same", "".join(ours)))
        else:
            pieces += _within("".join(theirs), "".join(ours))
    return [Piece(kind, "".join(p.text for p in group)) for kind, group in groupby(pieces, key=lambda p: p.kind)]


def _within(reference: str, translation: str) -> list[Piece]:
    """The difference of two passages that replace each other."""
    theirs, ours = _letters(reference), _letters(translation)
    matcher = SequenceMatcher(None, theirs, ours, autojunk=False)
    if not reference or not translation or matcher.ratio() < _SIMILAR:
        return _replaced(reference, translation)
    pieces: list[Piece] = []
    before: tuple[str, str] = ("", "")  # of the reference and the translation, not yet in `pieces`
    for kind, start, end, our_start, our_end in matcher.get_opcodes():
        left, right = "".join(theirs[start:end]), "".join(ours[our_start:our_end])
        inner = start > 0 and end < len(theirs)
        if kind == "equal" and not (inner and end - start < _SHORTEST):
            pieces += [*_replaced(*before), Piece("same", right)]
            before = ("", "")
        else:
            before = (before[0] + left, before[1] + right)
    return [*pieces, *_replaced(*before)]


def _replaced(reference: str, translation: str) -> list[Piece]:
    pieces = (Piece("missing", reference), Piece("added", translation))
    return [piece for piece in pieces if piece.text]


def _compare(theirs: Sequence[str], ours: Sequence[str]) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """The parts of two sequences that are the same, and those that replace each other."""
    for kind, i, j, k, m in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        yield ("same" if kind == "equal" else "replaced"), theirs[i:j], ours[k:m]


def _words(text: str) -> list[str]:
    """Words, numbers, spaces, and every other letter or sign by itself; together they are the text."""
    found: list[str] = []
    for kind, group in groupby(_letters(text), key=_kind):
        letters = list(group)
        found += ["".join(letters)] if kind else letters
    return found


def _kind(letter: str) -> str:
    """ "word" or "space", which go on with the next letter of this kind; "" for a letter that stands by itself."""
    first = letter[0]
    if first.isspace():
        return "space"
    if unicodedata.category(first)[0] not in "LMN" or unicodedata.east_asian_width(first) in "WF":
        return ""
    return "" if any(start <= first <= end for start, end in _WITHOUT_SPACES) else "word"


def _letters(text: str) -> list[str]:
    """The letters as readers see them: with their accents and vowel signs, which must not be torn off."""
    found: list[str] = []
    for character in text:
        joins = unicodedata.category(character)[0] == "M" or character in _JOINERS
        if found and (joins or found[-1][-1] in _JOINERS or unicodedata.combining(found[-1][-1]) == _VIRAMA):
            found[-1] += character
        else:
            found.append(character)
    return found
