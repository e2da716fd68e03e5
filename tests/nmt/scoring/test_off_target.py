"""cats.nmt.scoring.off_target: scripts, n-grams, and lines without letters."""

from __future__ import annotations

from pathlib import Path

import pytest

from cats.nmt.data.corpus import Corpus, Split, StreamedSplit, Task
from cats.nmt.data.corpus_files import read_corpus
from cats.nmt.scoring import off_target
from cats.nmt.scoring.off_target import Identifier, scripts, train_identifier

RU, UK = ["Привет, как дела?", "Это очень хорошо"], ["Привіт, як справи?", "Це дуже добре, ідіть"]
EN, CS = ["Hello, how are you?", "This is very good"], ["Ahoj, jak se máš?", "To je velmi dobře, jděte"]
SAMPLES = {"ru": RU, "uk": UK, "en": EN, "cs": CS}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Привет, Bob"], {"CYRILLIC", "LATIN"}),
        (["Привет, друзья из GTK"], {"CYRILLIC"}),
        (["12 + 5 !", ""], set()),
        (["これはテストです。漢字"], {"CJK"}),
        (["안녕하세요"], {"HANGUL"}),
        (["नमस्ते"], {"DEVANAGARI"}),
    ],
)
def test_scripts(lines: list[str], expected: set[str]) -> None:
    assert scripts(lines) == expected


@pytest.mark.parametrize(
    ("line", "off"),
    [
        ("Привет, это хорошо", False),
        ("Привіт, це добре", True),  # the same script, other n-grams
        ("Hello, this is good", True),  # another script
        ("Это GTK+ хорошо", False),
        ("GNOME GTK хорошо", True),  # most letters are foreign
        ("12:30 :-)", False),
        ("", False),
    ],
)
def test_off_target(line: str, off: bool) -> None:
    assert Identifier(SAMPLES).off_target([line], "ru", RU) == float(off)


def test_shares() -> None:
    known = Identifier(SAMPLES)
    for name, lines in SAMPLES.items():
        assert known.off_target(lines, name, lines) == 0.0
    assert known.off_target([*RU, *UK], "ru", RU) == 0.5
    assert known.off_target([], "ru", RU) is None
    # For a language without a sample, only the script is compared.
    assert known.off_target(["Здраво", "Hello"], "mk", ["Здраво"]) == 0.5
    assert Identifier({"ru": []}).off_target(["Hello"], "ru", RU) == 1.0


def test_references_without_letters() -> None:
    known = Identifier({"az": ["salam dünya"], "ru": ["привет мир"]})
    assert known.off_target(["5 km"], "az", ["5"]) == 0  # by the script of the language's training text
    assert known.off_target(["5 км"], "az", ["5"]) == 1
    assert known.off_target(["5 km"], "xx", ["5"]) is None


def test_samples_of_a_corpus() -> None:
    train = Split([f"hello {i}" for i in range(2500)], [f"ahoj {i}" for i in range(2500)])
    assert [len(off_target._some(s, Split([], []))) for s in (train, Split([], []))] == [834, 0]  # every third
    prepared = StreamedSplit(5, "", None)
    tasks = [Task("cs", "en", "cs", train, Split([], []), Split([], []))]
    tasks.append(Task("ru", "en", "ru", prepared, Split(EN, RU), Split([], [])))
    known = train_identifier(Corpus("toy", tasks))
    assert known.languages == ["en", "cs", "ru"] and known.scripts["ru"] == {"CYRILLIC"}


def test_error_on_the_references_of_real_sentences(help8: Path) -> None:
    """At most the 4 % that the docstring of `Identifier.off_target` names."""
    corpus = read_corpus(help8)
    known = train_identifier(corpus)
    for task in corpus.tasks:
        assert (known.off_target(task.test.target, task.target, task.test.target) or 0) <= 0.04, task.name
        assert (known.off_target(task.test.source, task.target, task.test.target) or 0) > 0.98, task.name
