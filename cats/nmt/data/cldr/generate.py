"""The built-in corpus: phrases of the Unicode CLDR, written in English and in each of a set of languages.

Dates, amounts, measures, relative times and names of territories, languages and currencies, one to three to a line.
Both sides are written from one object, so they are translations. Nothing is downloaded; Babel carries the data.

The test split asks for what must be composed. In every template a quarter of the names of each kind are kept out of
the training text of all languages, and the headline lines of the test ("new-pair") have such names in all their
slots: template and names are known, together they are new. Beside them, "seen-skeleton" are training lines with other
numbers, and "unseen-entity" lines have a name that the language never showed, though other languages did.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cats.nmt.data.cldr.phrases import TEMPLATES, Entity, Phrase, Template
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.errors import UserError, nearest

LANGUAGES = {
    "related": ("az", "be", "gl", "sk", "tr", "ru", "pt", "cs"),
    "diverse": ("bs", "mr", "hi", "mk", "el", "bg", "fr", "ko"),
    "wmt": ("kk", "vi", "tr", "ja", "nl", "it", "ar", "ro", "hi", "de"),
}
# Training pairs of each language, in the order of LANGUAGES. "ted": 10 to 1, as in the TED talks corpus by rank.
# "wmt": the proportions of the WMT corpus, 0.1 0.1 0.2 0.2 0.2 0.3 0.3 0.6 0.8 27.8 (millions there), one giant.
SIZES = {
    "ted": {
        "related": (150, 120, 200, 500, 1000, 1200, 1000, 700),
        "diverse": (120, 150, 200, 500, 700, 1000, 1000, 1200),
        "wmt": (120, 120, 200, 200, 200, 300, 460, 1000, 1200, 1200),
    },
    "wmt": {
        "related": (100, 100, 200, 200, 300, 600, 800, 27800),
        "diverse": (100, 100, 200, 200, 300, 600, 800, 27800),
        "wmt": (100, 100, 200, 200, 200, 300, 300, 600, 800, 27800),
    },
}
NEW_PAIR, SEEN_SKELETON, UNSEEN_ENTITY = STRATA = ("new-pair", "seen-skeleton", "unseen-entity")
VALID_LINES = 100
TEST_LINES = {NEW_PAIR: 260, SEEN_SKELETON: 80, UNSEEN_ENTITY: 80}

OPEN = 40  # a kind with fewer names (months, days) has no rare ones, and none is kept from a language
UNSEEN = 5  # names of an open kind that a language never sees
FLATNESS = 8  # a name of rank r (from 0) is as frequent as 1 / (r + FLATNESS)
PATIENCE = 200  # draws without a new line before a template is given up


@dataclass(frozen=True)
class Lines:
    """The phrases of one language."""

    train: list[Phrase]
    valid: list[Phrase]
    test: dict[str, list[Phrase]]  # by stratum


def generate(languages: str = "related", sizes: str = "ted", seed: int = 1) -> Corpus:
    """Make the corpus of a set of languages ("related", "diverse", "wmt") in a set of sizes ("ted", "wmt").

    The same arguments give the same corpus, everywhere. Test and validation lines carry (stratum, template) in
    ``Split.meta``; validation lines are as the headline's, with other combinations. No English line is in two splits,
    over all languages.

    Raises:
        UserError: unknown set of languages or sizes, Babel is not installed.
    """
    for what, value, known in (("languages", languages, LANGUAGES), ("sizes", sizes, SIZES)):
        if value not in known:
            raise UserError(f"data.{what}: no set {value!r}{nearest(value, known)}; choose from {', '.join(known)}")
    try:
        from cats.nmt.data.cldr.writer import Writer, lexicon
    except ModuleNotFoundError as error:
        if error.name != "babel":
            raise
        raise UserError("the built-in corpus needs Babel; install it with: pip install 'cats-optim[nmt]'") from error
    # The lexicon is of all languages, whichever are asked for, so that all sets have the same.
    everywhere = sorted({"en", *(code for codes in LANGUAGES.values() for code in codes)})
    writers = {code: Writer(code) for code in everywhere}
    counts = dict(zip(LANGUAGES[languages], SIZES[sizes][languages], strict=True))

    def split(code: str, lines: Mapping[str, Sequence[Phrase]]) -> Split:
        phrases = [(stratum, phrase) for stratum, part in lines.items() for phrase in part]
        return Split(
            [writers["en"].write(phrase) for _, phrase in phrases],
            [writers[code].write(phrase) for _, phrase in phrases],
            [(stratum, phrase.template.name) for stratum, phrase in phrases],
        )

    tasks = []
    for code, lines in draft(lexicon(list(writers.values())), counts, writers["en"].write, seed).items():
        train, valid = split(code, {"": lines.train}), split(code, {NEW_PAIR: lines.valid})
        tasks.append(Task(code, "en", code, Split(train.source, train.target), valid, split(code, lines.test)))
    return Corpus(f"cldr-{languages}-{sizes}-{seed}", tasks)


def draft(
    lexicon: Mapping[str, Sequence[str]], counts: Mapping[str, int], english: Callable[[Phrase], str], seed: int
) -> dict[str, Lines]:
    """Phrases for each language of `counts` (training pairs). `english` writes one, to tell lines apart."""
    drawing = _Drawing(lexicon, list(counts), english, seed)
    train = drawing.train(counts)
    valid = {code: drawing.new_pairs(code, "valid", VALID_LINES) for code in counts}
    return {
        code: Lines(
            train[code],
            valid[code],
            {
                NEW_PAIR: drawing.new_pairs(code, "test", TEST_LINES[NEW_PAIR]),
                SEEN_SKELETON: drawing.seen_skeletons(code, train[code], TEST_LINES[SEEN_SKELETON]),
                UNSEEN_ENTITY: drawing.unseen_entities(code, TEST_LINES[UNSEEN_ENTITY]),
            },
        )
        for code in counts
    }


class _Drawing:
    def __init__(
        self, lexicon: Mapping[str, Sequence[str]], codes: Sequence[str], english: Callable[[Phrase], str], seed: int
    ) -> None:
        self._lexicon = lexicon
        self._english = english
        self._seed = seed
        self._split: dict[str, str] = {}  # English line -> the split it is in
        self._seen: dict[str, set[Entity]] = {}  # language -> entities of its training lines
        # (template, kind) -> split -> names that the template has there, in all languages
        self._names: dict[tuple[str, str], dict[str, list[str]]] = {}
        self._unseen: dict[str, set[Entity]] = {code: set() for code in codes}
        self._frequency: dict[str, dict[str, float]] = {}
        for kind, names in lexicon.items():
            shuffled = list(names)
            self._rng("names", kind).shuffle(shuffled)
            self._keep_out(kind, shuffled)
            flat = len(names) < OPEN
            self._frequency[kind] = {name: 1.0 if flat else 1.0 / (rank + FLATNESS) for rank, name in enumerate(names)}
            if not flat:
                for i, code in enumerate(codes):
                    self._unseen[code] |= {(kind, name) for name in shuffled[i * UNSEEN : (i + 1) * UNSEEN]}

    def train(self, counts: Mapping[str, int]) -> dict[str, list[Phrase]]:
        """Languages draw from one pool, so that they share part of their English, each without its unseen names."""
        rng = self._rng("train")

        def propose(template: Template) -> Phrase | None:
            return template.draw(rng, lambda kind: self._pick(rng, kind, self._names[template.name, kind]["train"]))

        pool = self._fill(TEMPLATES, 3 * max(counts.values()) // 2, propose)
        lines: dict[str, list[Phrase]] = {}
        for code, count in counts.items():
            rest: dict[str, list[Phrase]] = {template.name: [] for template in TEMPLATES}
            for phrase in pool:
                if not self._unseen[code].intersection(phrase.entities):
                    rest[phrase.template.name].append(phrase)
            rng = self._rng("train", code)
            for phrases in rest.values():
                rng.shuffle(phrases)

            def take(template: Template, rest: dict[str, list[Phrase]] = rest) -> Phrase | None:
                return rest[template.name].pop() if rest[template.name] else None

            lines[code] = self._fill(TEMPLATES, count, take)
            rng.shuffle(lines[code])
            self._seen[code] = {entity for phrase in lines[code] for entity in phrase.entities}
        for phrases in lines.values():
            self._split.update((self._english(phrase), "train") for phrase in phrases)
        return lines

    def new_pairs(self, code: str, split: str, count: int) -> list[Phrase]:
        """Lines whose names are all kept out of the template's training lines, and are known to the language."""
        rng = self._rng(split, NEW_PAIR, code)
        names = {
            key: [name for name in parts[split] if (key[1], name) in self._seen[code]]
            for key, parts in self._names.items()
        }
        templates = [t for t in TEMPLATES if all(names[t.name, kind] for kind in t.kinds)]

        def propose(template: Template) -> Phrase | None:
            return template.draw(rng, lambda kind: self._pick(rng, kind, names[template.name, kind]))

        return self._keep(split, self._fill(templates, count, propose, split))

    def seen_skeletons(self, code: str, train: Sequence[Phrase], count: int) -> list[Phrase]:
        """Training lines of the language with other numbers."""
        rng = self._rng(SEEN_SKELETON, code)
        numbered = [phrase for phrase in train if any(atom.numbers for atom in phrase.atoms)]
        by_template: dict[Template, list[Phrase]] = {}
        for phrase in numbered:
            by_template.setdefault(phrase.template, []).append(phrase)

        def propose(template: Template) -> Phrase | None:
            names = iter(rng.choice(by_template[template]).entities)
            return template.draw(rng, lambda kind: next(names)[1])

        return self._keep("test", self._fill(list(by_template), count, propose, "test"))

    def unseen_entities(self, code: str, count: int) -> list[Phrase]:
        """Lines with one name that the language never showed and another language did; it knows their other names."""
        rng = self._rng(UNSEEN_ENTITY, code)
        elsewhere = set().union(*(self._seen[other] for other in self._seen if other != code))
        unseen, known = (
            {kind: [name for name in names if (kind, name) in entities] for kind, names in self._lexicon.items()}
            for entities in (self._unseen[code] & elsewhere, self._seen[code])
        )
        templates = [template for template in TEMPLATES if any(unseen[kind] for kind in template.kinds)]

        def propose(template: Template) -> Phrase | None:
            turn = rng.choice([i for i, kind in enumerate(template.kinds) if unseen[kind]])
            slots = iter(range(len(template.kinds)))
            return template.draw(
                rng, lambda kind: self._pick(rng, kind, (unseen if next(slots) == turn else known)[kind])
            )

        return self._keep("test", self._fill(templates, count, propose, "test"))

    def _keep_out(self, kind: str, names: list[str]) -> None:
        """For each template with the kind: a quarter of the names are for the test, an eighth for the validation.

        The parts move along `names` from template to template, so that every name is trained on in most of them.
        """
        templates = [template for template in TEMPLATES if kind in template.kinds]
        test, valid = max(2, len(names) // 4), max(1, len(names) // 8)
        for i, template in enumerate(templates):
            start = i * len(names) // len(templates)
            turned = names[start:] + names[:start]
            self._names[template.name, kind] = {
                "test": turned[:test],
                "valid": turned[test : test + valid],
                "train": turned[test + valid :],
            }

    def _fill(
        self,
        templates: Sequence[Template],
        count: int,
        propose: Callable[[Template], Phrase | None],
        split: str = "train",
    ) -> list[Phrase]:
        """Up to `count` phrases, as many of each template as can be, no English line twice or in another split."""
        phrases: list[Phrase] = []
        lines: set[str] = set()
        live = list(templates)
        while live:
            for template in tuple(live):
                if len(phrases) == count:
                    return phrases
                for _ in range(PATIENCE):
                    phrase = propose(template)
                    if phrase is None:
                        continue
                    line = self._english(phrase)
                    if line not in lines and self._split.get(line, split) == split:
                        phrases.append(phrase)
                        lines.add(line)
                        break
                else:
                    live.remove(template)
        return phrases

    def _keep(self, split: str, phrases: list[Phrase]) -> list[Phrase]:
        self._split.update((self._english(phrase), split) for phrase in phrases)
        return phrases

    def _pick(self, rng: random.Random, kind: str, names: Sequence[str]) -> str:
        frequency = self._frequency[kind]
        return rng.choices(names, [frequency[name] for name in names])[0]

    def _rng(self, *purpose: str) -> random.Random:
        # A string seeds the generator by its sha512, whatever PYTHONHASHSEED is.
        return random.Random("/".join((str(self._seed), *purpose)))
