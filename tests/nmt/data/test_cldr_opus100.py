"""The built-in corpus with the languages and the skew of OPUS-100, where languages lack names and patterns."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import pytest

from cats.nmt.config.toml import read_preset
from cats.nmt.data.cldr.generate import generate
from cats.nmt.data.cldr.phrases import TEMPLATES, Atom, Phrase, Template
from cats.nmt.data.cldr.sets import LANGUAGES, LEXICON_SETS, OPUS100_PAIRS, OPUS100_SCALE
from cats.nmt.data.corpus import SPLITS, Corpus
from cats.nmt.data.groups import task_groups

pytest.importorskip("babel")

from cats.nmt.data.cldr.writer import Writer, lexicon, repertoire

# The text of seed 1. It is frozen: what was measured on this corpus was measured on this text.
DIGEST = "8839f644b2e210784d37ca54f36bb777a37abb1dc97504621784ac6a8ccbfbd2"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate("opus100", "opus100")


def test_the_text_is_frozen(corpus):
    assert corpus.digest() == DIGEST


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    return lexicon([Writer(code) for code in sorted({"en", *(c for name in LEXICON_SETS for c in LANGUAGES[name])})])


def test_sizes_are_those_of_opus100_at_a_scale(corpus):
    assert corpus.sizes == {code: pairs // OPUS100_SCALE for code, pairs in OPUS100_PAIRS.items()}
    # In OPUS-100, 44 of 99 languages have a million pairs, 73 at least 100,000. Of these, rw, sh and wa are missing.
    counts = list(OPUS100_PAIRS.values())
    assert (len(counts), counts.count(1_000_000), sum(count >= 100_000 for count in counts)) == (92, 44, 73 - 3)


def test_the_presets_divide_it_into_the_groups_of_opus100(corpus):
    groups = task_groups(corpus.sizes, read_preset("opus100-cldr").evaluate)
    assert {group: len(members) for group, members in groups.items()} == {
        "all": 92,
        "lores": 22,
        "midres": 25,
        "hires": 45,
    }
    assert groups == task_groups(OPUS100_PAIRS, read_preset("opus100").evaluate)


def test_strata(corpus):
    for task in corpus.tasks:
        strata = {"new-pair": 52, "seen-skeleton": 16, "unseen-entity": 16}
        assert Counter(stratum for stratum, _ in task.test.meta) == strata, task.name
        assert len(task.valid) == 20 or len(task.train) < 20, task.name


def test_no_english_line_twice(corpus):
    split_of: dict[str, str] = {}
    for task in corpus.tasks:
        for name in SPLITS:
            source = getattr(task, name).source
            assert len(set(source)) == len(source)
            assert {split_of.setdefault(line, name) for line in source} <= {name}


def test_text_is_clean(corpus):
    for task in corpus.tasks:
        lines = [line for name in SPLITS for line in getattr(task, name).target]
        text = "\n".join(lines)
        assert text == unicodedata.normalize("NFC", text) and all(line == " ".join(line.split()) for line in lines)
        assert not re.search(r"[{}_]|None|(^|\s)'\w", text), task.name
        for char in set(text) - {"\n"}:
            category = unicodedata.category(char)
            # Zero-width joiners, and the zero-width spaces between words of Khmer, are part of the spelling.
            assert category not in ("Cc", "Cf", "Zl", "Zp", "Cn", "Co") or char in "\u200b\u200c\u200d", (task, char)
            assert category != "Nd" or char in "0123456789", (task.name, char)


def test_a_language_writes_only_what_it_has(names):
    mt = repertoire(Writer("mt"), names)  # Maltese: hardly a name of a currency or unit, no pattern for "or"
    assert {template.join for template in mt.templates} == {"and", "range", ""}
    assert not {"price", "rate"} & {atom for template in mt.templates for atom in template.atoms}
    assert Counter(kind for kind, _ in mt.entities)["territory"] == 60
    fa = repertoire(Writer("fa"), names)  # Persian: Babel has no two parts of "March – June 2015"
    assert set(TEMPLATES) - set(fa.templates) == {Template("", ("span",))}


def test_nothing_is_inherited_from_the_root_locale_whatever_babel_has_loaded():
    from babel.units import format_unit

    for _ in range(2):  # Babel is also left as it was
        assert format_unit(20, "mass-kilogram", length="short", locale="yo") == "20 kg"  # the root locale's
        assert Writer("yo").name("unit", "mass-kilogram") is None


def test_norwegian_is_inherited(names):
    date = Phrase(Template("", ("moment",)), (Atom("moment", ("8",), (22, 22, 5)),))
    weekday = Phrase(Template("", ("weekday",)), (Atom("weekday", ("1", "2"), (2022, 8)),))
    written = {code: [Writer(code).write(phrase) for phrase in (date, weekday)] for code in ("no", "nb", "nn")}
    assert written["nb"] == written["no"] == ["22. august, 22:05", "tirsdag 8. februar 2022"]
    assert written["nn"] == ["22. august kl. 22:05", "tysdag 8. februar 2022"]
    assert len(repertoire(Writer("nb"), names).entities) == sum(map(len, names.values()))
