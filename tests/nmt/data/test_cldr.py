from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from cats.nmt.data.cldr.generate import UNSEEN, Lines, draft, generate, misaligned
from cats.nmt.data.cldr.phrases import COUNTS, TEMPLATES, Atom, Phrase, Template
from cats.nmt.data.cldr.sets import LANGUAGES, LEXICON_SETS, NOISY, SIZES
from cats.nmt.data.corpus import SPLITS, Corpus
from cats.nmt.errors import UserError
from cats.nmt.scoring import nearest_neighbour

sacrebleu = pytest.importorskip("sacrebleu")
localedata = pytest.importorskip("babel.localedata")

from cats.nmt.data.cldr.writer import LEXICON_SIZE, Writer, lexicon, repertoire  # noqa: E402  (needs Babel)

CODES = sorted({code for name in LEXICON_SETS for code in LANGUAGES[name]})
OPEN_KINDS = ("territory", "language", "currency", "unit")
# The text of (related, ted, seed 1). It is frozen: what was measured on this corpus was measured on this text. Runs of
# earlier versions recorded the older digest.
DIGEST = "bb781cc4d2354b9461ce7a4dfdadd1834814e8a9186c17b6e33bd135d432a2ec"
OLDER_DIGEST = "eb1ae58b315c3f1342696225cbb6f12fc561664fbb4b457a879ccce214d20280"


@pytest.fixture(scope="module")
def writers() -> dict[str, Writer]:
    return {code: Writer(code) for code in ["en", *CODES]}


@pytest.fixture(scope="module")
def names(writers: dict[str, Writer]) -> dict[str, list[str]]:
    return lexicon([writers[code] for code in sorted(writers)])


@pytest.fixture(scope="module", params=["related/ted", "diverse/ted", "wmt/wmt"])
def arguments(request: pytest.FixtureRequest) -> tuple[str, str]:
    languages, sizes = request.param.split("/")
    return languages, sizes


@pytest.fixture(scope="module")
def corpus(arguments: tuple[str, str]) -> Corpus:
    return generate(*arguments)


@pytest.fixture(scope="module")
def drafts(arguments, names, writers) -> dict[str, Lines]:
    languages, sizes = arguments
    counts = dict(zip(LANGUAGES[languages], SIZES[sizes][languages], strict=True))
    repertoires = {code: repertoire(writers[code], names) for code in counts}
    return draft(names, repertoires, counts, writers["en"].write, 1)


# What the corpus is


def test_sizes_and_groups(arguments, corpus):
    languages, sizes = arguments
    assert tuple(corpus.sizes) == LANGUAGES[languages]
    assert tuple(corpus.sizes.values()) == SIZES[sizes][languages]
    assert corpus.headline == "new-pair"
    if sizes == "ted":
        assert 4800 <= sum(corpus.sizes.values()) <= 5000
        assert max(corpus.sizes.values()) == 10 * min(corpus.sizes.values())
        assert len(corpus.groups["lores"]) == len(corpus.groups["hires"]) == 4
    else:
        assert corpus.groups["hires"] == [LANGUAGES[languages][-1]]


def test_wmt_sizes_have_the_proportions_of_the_wmt_corpus():
    proportions = {"kk": 1, "vi": 1, "tr": 2, "ja": 2, "nl": 2, "it": 3, "ar": 3, "ro": 6, "hi": 8, "de": 278}
    sizes = dict(zip(LANGUAGES["wmt"], SIZES["wmt"]["wmt"], strict=True))
    assert sizes == {code: 100 * part for code, part in proportions.items()}


def test_strata(corpus):
    for task in corpus.tasks:
        assert task.train.meta is None
        assert Counter(stratum for stratum, _ in task.valid.meta) == {"new-pair": 100}
        strata = {"new-pair": 260, "seen-skeleton": 80, "unseen-entity": 80}
        assert Counter(stratum for stratum, _ in task.test.meta) == strata
        assert {cluster for _, cluster in task.test.meta} == {template.name for template in TEMPLATES}
    # 2,000 headline lines resolve half a point of chrF.
    assert sum(stratum == "new-pair" for task in corpus.tasks for stratum, _ in task.test.meta) >= 2000


def test_no_english_line_twice(corpus):
    split_of: dict[str, str] = {}
    for task in corpus.tasks:
        for name in SPLITS:
            source = getattr(task, name).source
            assert len(set(source)) == len(source)
            assert {split_of.setdefault(line, name) for line in source} == {name}


def test_languages_share_part_of_their_english(corpus):
    largest = max(corpus.tasks, key=lambda task: len(task.train.source))
    for task in corpus.tasks:
        if task is not largest:
            shared = len(set(task.train.source) & set(largest.train.source)) / len(task.train.source)
            assert 0.2 < shared < 0.9


def test_text_is_clean(corpus):
    for task in corpus.tasks:
        for name in SPLITS:
            split = getattr(task, name)
            for line in (*split.source, *split.target):
                assert line == unicodedata.normalize("NFC", line) == " ".join(line.split()) != ""
                for char in line:
                    category = unicodedata.category(char)
                    # Zero-width joiners are part of the spelling of Hindi and Marathi.
                    assert category not in ("Cc", "Cf", "Zl", "Zp", "Cn", "Co") or char in "\u200c\u200d", (line, char)
                    assert category != "Nd" or char in "0123456789", (line, char)
                    assert category != "Zs" or char == " "
                assert not re.search(r"[{}_]|None", line), line


def test_numbers_are_the_same_on_both_sides(corpus):
    """A language may express 1 or 2 by the form of the noun. Only the number of a month may be on one side alone."""
    for task in corpus.tasks:
        exact = 0
        for source, target in zip(task.test.source, task.test.target, strict=True):
            left, right = (Counter(map(int, re.findall(r"\d+", text))) for text in (source, target))
            months = sum(source.count(month) for month in MONTHS)
            assert (right - left).total() <= months, (source, target)
            assert set(left - right) <= {1, 2}, (source, target)
            exact += left == right
        assert exact > 0.6 * len(task.test.source)


MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905


# What the strata mean


def combinations(phrase: Phrase) -> set[tuple[str, tuple[str, str]]]:
    return {(phrase.template.name, entity) for entity in phrase.entities}


def known(phrases: list[Phrase]) -> set[tuple[str, str]]:
    return {entity for phrase in phrases for entity in phrase.entities}


def test_headline_combinations_are_in_no_training_text_and_their_parts_are_in_the_languages_own(drafts):
    trained = {pair for lines in drafts.values() for phrase in lines.train for pair in combinations(phrase)}
    validated = {pair for lines in drafts.values() for phrase in lines.valid for pair in combinations(phrase)}
    for lines in drafts.values():
        templates, entities = {phrase.template for phrase in lines.train}, known(lines.train)
        assert templates == set(TEMPLATES)
        for phrases, others in ((lines.test["new-pair"], trained | validated), (lines.valid, trained)):
            for phrase in phrases:
                assert not combinations(phrase) & others, phrase
                assert set(phrase.entities) <= entities, phrase


def test_seen_skeletons_are_training_lines_with_other_numbers(drafts):
    def skeleton(phrase: Phrase) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The phrase without its numbers."""
        return phrase.template.name, phrase.entities

    for lines in drafts.values():
        skeletons, train = {skeleton(phrase) for phrase in lines.train}, set(lines.train)
        for phrase in lines.test["seen-skeleton"]:
            assert skeleton(phrase) in skeletons and phrase not in train


def test_unseen_entities_are_in_other_languages_training_text_only(drafts):
    for code, lines in drafts.items():
        own = known(lines.train)
        elsewhere = known([phrase for other in drafts if other != code for phrase in drafts[other].train])
        for phrase in lines.test["unseen-entity"]:
            unseen = set(phrase.entities) - own
            assert len(unseen) == 1 and unseen <= elsewhere, phrase


def test_languages_are_kept_from_different_entities(drafts):
    by_language = []
    for lines in drafts.values():
        own = known(lines.train)
        by_language.append({e for phrase in lines.test["unseen-entity"] for e in phrase.entities if e not in own})
    assert all(len(entities) >= 10 for entities in by_language)
    assert sum(map(len, by_language)) == len(set().union(*by_language))


def test_frequent_names_come_first_and_rare_ones_come(drafts, names):
    lines = max(drafts.values(), key=lambda lines: len(lines.train))
    counts = Counter(entity for phrase in lines.train for entity in phrase.entities)
    for kind in OPEN_KINDS:
        found = [counts[kind, name] for name in names[kind]]
        assert sum(found[:20]) > 1.3 * sum(found[-20:]) > 0
        assert UNSEEN <= found.count(0) <= UNSEEN + 4  # the unseen names, and a few rare names by chance


def test_templates_are_as_frequent_as_each_other(drafts):
    for lines in drafts.values():
        if len(lines.train) <= 1200:  # with 27,800 pairs, some templates run out of new lines
            counts = Counter(phrase.template.name for phrase in lines.train)
            # 45 of each template, or slightly fewer if it runs out of new lines
            assert max(counts.values()) - min(counts.values()) <= 6


# The nearest neighbour does not solve it


def test_the_nearest_neighbour_does_not_solve_it(arguments, corpus):
    if arguments == ("wmt", "wmt"):
        corpus = Corpus("without the giant", corpus.tasks[:-1])
    bound = 60
    for task in corpus.tasks:
        rows = [i for i, (stratum, _) in enumerate(task.test.meta) if stratum == "new-pair"]
        found = nearest_neighbour.translate(task.train, [task.test.source[i] for i in rows])
        score = sacrebleu.corpus_chrf(found, [[task.test.target[i] for i in rows]]).score
        # Well above what a wrong sentence scores, well below what composition reaches.
        assert 25 < score < bound, task.name


# The lexicon and the writing


def test_lexicon_has_the_same_size_for_every_kind_and_a_different_text_for_every_name(names, writers):
    for kind in OPEN_KINDS:
        assert len(names[kind]) == LEXICON_SIZE == 60
    sizes = {kind: len(names[kind]) for kind in names if kind not in OPEN_KINDS}
    assert sizes == {"per": 7, "relative": 28, "month": 12, "weekday": 7}
    for writer in writers.values():
        for kind in names:
            texts = [writer.name(kind, key) for key in names[kind]]
            assert None not in texts and len(set(texts)) == len(texts)


def test_names_are_no_fallbacks(names, writers):
    root = localedata.load("root")["unit_patterns"]
    for code, writer in writers.items():
        for kind in ("territory", "language", "currency"):
            for key in names[kind]:
                name = writer.name(kind, key)
                letters = sum(unicodedata.category(char).startswith("L") for char in name)
                assert name.casefold() != key.casefold() and letters >= 2, (code, key, name)
        for key in names["unit"]:
            text = writer.name("unit", key)
            assert key not in text
            assert code == "en" or text != root[key]["short"]["other"].format(20), (code, text)
    # If the language has no name, `name` returns None instead of the name of the root locale.
    assert writers["az"].name("unit", "length-nautical-mile") is None
    assert writers["kk"].name("currency", "ADP") is None
    assert writers["vi"].name("language", "af") is None
    assert writers["de"].name("territory", "XX") is None


@pytest.mark.parametrize("code", CODES)
def test_every_count_of_every_unit_and_currency_can_be_written(code, names, writers):
    texts = set()
    for kind, atom in (("unit", "quantity"), ("currency", "amount"), ("relative", "relative")):
        for key in names[kind]:
            for count in COUNTS:
                text = writers[code].write(Phrase(Template("", (atom,)), (Atom(atom, (key,), (count,)),)))
                assert "{" not in text and "None" not in text
                texts.add(text)
    assert len(texts) > 0.95 * len(COUNTS) * (60 + 60 + 28)


def phrase(join: str, *atoms: str) -> Phrase:
    """Atoms as "kind name name | number number"."""
    made = []
    for text in atoms:
        (kind, *names), *numbers = (part.split() for part in text.split("|"))
        made.append(Atom(kind, tuple(names), tuple(int(number) for part in numbers for number in part)))
    return Phrase(Template(join, tuple(atom.kind for atom in made)), tuple(made))


WRITTEN = [
    ("and", "territory PL", "territory ES", {"en": "Poland and Spain", "ru": "Польша и Испания"}),
    ("and", "territory PL", "territory ES", "territory DE", {"en": "Poland, Spain, and Germany"}),
    ("and", "territory PL", "territory ES", "territory DE", {"cs": "Polsko, Španělsko a Německo"}),
    ("and", "territory PL", "territory ES", "territory DE", {"ar": "بولندا وإسبانيا وألمانيا"}),
    ("or", "language fr", "language de", {"en": "French or German", "tr": "Fransızca veya Almanca"}),
    ("range", "territory JP", "territory CN", {"en": "Japan – China", "ko": "일본 ~ 중국"}),
    ("", "locale pt BR", {"en": "Portuguese (Brazil)", "az": "portuqal (Braziliya)"}),
    ("", "quantity length-kilometer | 1", {"en": "1 kilometer", "ru": "1 километр", "be": "1 кіламетр"}),
    ("", "quantity length-kilometer | 3", {"en": "3 kilometers", "ru": "3 километра", "sk": "3 kilometre"}),
    ("", "quantity length-kilometer | 5", {"ru": "5 километров", "sk": "5 kilometrov", "ro": "5 kilometri"}),
    ("", "quantity length-kilometer | 20", {"ro": "20 de kilometri", "ar": "20 كيلومترًا"}),
    ("", "quantity length-kilometer | 20", {"fr": "20 kilomètres", "hi": "20 किलोमीटर"}),
    ("", "amount PLN | 4", {"en": "4 Polish zlotys", "cs": "4 polské zloté", "de": "4 Polnische Złoty"}),
    ("", "price EUR duration-hour | 7", {"en": "7 euros per hour", "ko": "시간당 7 유로"}),
    ("", "rate mass-gram duration-day | 9", {"en": "9 grams per day", "it": "9 grammi al giorno"}),
    # Kilometers per hour are a unit with a name of its own.
    ("", "rate length-kilometer duration-hour | 9", {"en": "9 kilometers per hour", "ru": "9 километров в час"}),
    ("", "rate length-kilometer duration-hour | 9", {"tr": "9 kilometre/saat", "az": "9 kilometr/saat"}),
    ("", "relative day:future | 2", {"en": "in 2 days", "ru": "через 2 дня", "ar": "خلال يومين"}),
    ("", "relative sat:past | 1", {"en": "1 Saturday ago", "fr": "il y a 1 samedi", "sk": "pred 1 sobotou"}),
    ("", "day 5 | 7", {"en": "May 7", "cs": "7. května", "ja": "5月7日"}),
    ("", "date 5 | 2016 7", {"en": "May 7, 2016", "gl": "7 de maio de 2016", "kk": "2016 ж. 7 мамыр"}),
    ("", "weekday 5 5 | 2016 7", {"en": "Saturday, May 7, 2016", "tr": "7 Mayıs 2016 Cumartesi"}),
    ("", "moment 5 | 7 9 5", {"en": "May 7, 09:05", "cs": "7. května 9:05", "bg": "7 май, 09:05 ч."}),
    ("", "span 3 6 | 2015", {"en": "March – June 2015", "ru": "март – июнь 2015 г.", "bs": "mart – juni 2015."}),
]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: " ".join(case[:-1]))
def test_writing(case, writers):
    *parts, expected = case
    assert {code: writers[code].write(phrase(*parts)) for code in expected} == expected


def test_spans_of_months_do_not_run_backwards(drafts):
    spans = [
        tuple(map(int, phrase.atoms[0].names))
        for lines in drafts.values()
        for phrase in lines.test["new-pair"]
        if phrase.template.atoms == ("span",)
    ]
    assert spans and all(a < b for span in spans for a, b in pairwise(span))


# Determinism


def test_the_text_is_frozen():
    corpus = generate("related", "ted", 1)
    assert corpus.digest() == DIGEST
    assert corpus.older_digest() == OLDER_DIGEST


def test_processes_agree_and_seeds_do_not():
    program = "from cats.nmt.data.cldr.generate import generate; print(*(generate(seed=s).digest() for s in (1, 2)))"
    root = Path(__file__).resolve().parents[3]
    running = []
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root), "LC_ALL": "tr_TR.UTF-8"}
        command = [sys.executable, "-c", program]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    digests = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert digests[0] == digests[1]
    assert digests[0][0] == DIGEST != digests[0][1]


# Wrong translations


def test_noisy_shuffles_half_of_the_training_targets_of_two_languages():
    clean, noisy = generate("related", "ted", 3), generate("related", "noisy", 3)
    wrong = {}
    for before, after in zip(clean.tasks, noisy.tasks, strict=True):
        assert (after.name, after.valid, after.test) == (before.name, before.valid, before.test)
        assert after.train.source == before.train.source
        assert Counter(after.train.target) == Counter(before.train.target)  # every line is still there
        moved = sum(one != other for one, other in zip(after.train.target, before.train.target, strict=True))
        wrong[after.name] = moved / len(before.train)
    assert wrong == dict.fromkeys(wrong, 0) | {"tr": 0.5, "pt": 0.5}
    assert noisy.notices == ["data.sizes = noisy: half of the training targets of tr and pt are shuffled"]
    assert generate("related", "noisy", 3).digest() == noisy.digest()  # and not the same lines with another seed:
    assert misaligned("abcdefgh", 0.5, "1") != misaligned("abcdefgh", 0.5, "2")


@pytest.mark.parametrize("languages", ["related", "diverse", "wmt"])
def test_the_noisy_languages_are_hires(languages):
    sizes = dict(zip(LANGUAGES[languages], SIZES["noisy"][languages], strict=True))
    assert len(NOISY[languages]) == 2 and all(sizes[code] >= 1000 for code in NOISY[languages])


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("Related", "ted"),
            r"data\.languages: no set 'Related' \(did you mean related\?\); choose from related, diver",
        ),
        (("related", "tedd"), r"data\.sizes: no set 'tedd' \(did you mean ted\?\); choose from ted, wmt"),
        (("", "ted"), r"data\.languages: no set ''; choose from"),
        (("opus100", "ted"), r"data\.languages = opus100 needs data\.sizes = opus100, not ted"),
        (("related", "opus100"), r"data\.languages = related needs data\.sizes = ted or wmt or noisy, not opus100"),
    ],
)
def test_unknown_sets(arguments, message):
    with pytest.raises(UserError, match=message):
        generate(*arguments)


def test_missing_babel(monkeypatch):
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "babel" or name == "cats.nmt.data.cldr.writer"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(UserError, match=r"needs Babel; install it with: pip install '\.\[nmt\]'"):
        generate()
