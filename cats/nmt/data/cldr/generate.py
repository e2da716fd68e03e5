"""The built-in corpus: phrases of the Unicode CLDR, written in English and in each language of a set.

A line has one to three dates, amounts, measures, relative times or names of territories, languages and currencies.
Both sides are written from the same object, so they are translations. Nothing is downloaded: the data is in Babel.

The test split tests composition. For every template, a quarter of the names of each kind are held out of the training
text of all languages. The test lines have one of three strata:

    new-pair        the headline: all names of the line are held out for its template. The model has seen the template,
                    and it has seen the names, but not together.
    seen-skeleton   training lines in which the numbers are replaced
    unseen-entity   lines with one name that is in the training text of other languages, but not of this one
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cats.extras import install
from cats.nmt.data.cldr.phrases import TEMPLATES, Entity, Phrase, Repertoire, Template
from cats.nmt.data.cldr.sets import LANGUAGES, LEXICON_SETS, NOISY, SIZES
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.errors import UserError, nearest

NEW_PAIR, SEEN_SKELETON, UNSEEN_ENTITY = "new-pair", "seen-skeleton", "unseen-entity"
VALID_LINES = 100
TEST_LINES = {NEW_PAIR: 260, SEEN_SKELETON: 80, UNSEEN_ENTITY: 80}
NOISE = 0.5  # with the sizes "noisy": the share of wrong training targets in a noisy language
MANY = 50  # in a set with more languages than this, each has a fifth of these lines: results are averages over groups

# Kinds with at least this many names are open: their names have skewed frequencies. Others (months, days) are uniform.
OPEN_KIND = 40
UNSEEN = 5  # names of each open kind that a language never sees
FLATNESS = 8  # open kinds: the frequency of the name of rank r (from 0) is proportional to 1 / (r + FLATNESS)
MOST_TRIES = 200  # a template is given up after this many draws without a new line


@dataclass(frozen=True)
class Lines:
    """The phrases of one language."""

    train: list[Phrase]
    valid: list[Phrase]
    test: dict[str, list[Phrase]]  # by stratum


def generate(languages: str = "related", sizes: str = "ted", seed: int = 1) -> Corpus:
    """The corpus of a set of languages ("related", "diverse", "wmt", "opus100") with a set of sizes ("ted", "wmt",
    "noisy", "opus100"). The sizes and the languages of OPUS-100 go together only with each other.

    "noisy" is "ted" with wrong training targets: in two languages (``sets.NOISY``), half of the lines have the target
    of another line. So the text is fluent, and it is no translation. All other text is that of "ted".

    The same arguments give the same corpus on every machine. ``Split.meta`` of the test and validation lines is
    (stratum, template). Validation lines are new-pair lines with other combinations than the test. No English line is
    in two splits, not even of different languages.

    Raises:
        UserError: unknown set of languages or sizes, two that do not go together, or Babel is not installed.
    """
    for what, value, known in (("languages", languages, LANGUAGES), ("sizes", sizes, SIZES)):
        if value not in known:
            raise UserError(f"data.{what}: no set {value!r}{nearest(value, known)}; choose from {', '.join(known)}")
    if languages not in SIZES[sizes]:
        fitting = " or ".join(name for name, counts in SIZES.items() if languages in counts)
        raise UserError(f"data.languages = {languages} needs data.sizes = {fitting}, not {sizes}")
    try:
        from cats.nmt.data.cldr.writer import Writer, lexicon, repertoire
    except ModuleNotFoundError as error:
        if error.name != "babel":
            raise
        raise UserError(f"the built-in corpus needs Babel; install it with: {install('nmt')}") from error
    counts = dict(zip(LANGUAGES[languages], SIZES[sizes][languages], strict=True))
    everywhere = sorted({"en", *(code for name in LEXICON_SETS for code in LANGUAGES[name])})
    writers = {code: Writer(code) for code in {*everywhere, *counts}}
    names = lexicon([writers[code] for code in everywhere])

    def split(code: str, lines: Mapping[str, Sequence[Phrase]]) -> Split:
        phrases = [(stratum, phrase) for stratum, part in lines.items() for phrase in part]
        return Split(
            [writers["en"].write(phrase) for _, phrase in phrases],
            [writers[code].write(phrase) for _, phrase in phrases],
            [(stratum, phrase.template.name) for stratum, phrase in phrases],
        )

    repertoires = {code: repertoire(writers[code], names) for code in counts}
    noisy = NOISY[languages] if sizes == "noisy" else ()
    tasks = []
    for code, lines in draft(names, repertoires, counts, writers["en"].write, seed).items():
        train, valid = split(code, {"": lines.train}), split(code, {NEW_PAIR: lines.valid})
        target = misaligned(train.target, NOISE, f"{seed}/noise/{code}") if code in noisy else train.target
        tasks.append(Task(code, "en", code, Split(train.source, target), valid, split(code, lines.test)))
    notices = (
        [f"data.sizes = noisy: half of the training targets of {' and '.join(noisy)} are shuffled"] if noisy else []
    )
    return Corpus(f"cldr-{languages}-{sizes}-{seed}", tasks, notices)


def misaligned(lines: Sequence[str], share: float, seed: str) -> list[str]:
    """The lines, of which a random share has changed places, so that none of these is where it was."""
    rng = random.Random(seed)
    moved = rng.sample(range(len(lines)), round(share * len(lines)))
    result = list(lines)
    for i, j in zip(moved, [*moved[1:], *moved[:1]], strict=True):  # a random cycle
        result[i] = lines[j]
    return result


def draft(
    lexicon: Mapping[str, Sequence[str]],
    repertoires: Mapping[str, Repertoire],
    counts: Mapping[str, int],
    english: Callable[[Phrase], str],
    seed: int,
) -> dict[str, Lines]:
    """The phrases of each language.

    Args:
        lexicon: {kind: names}, the most frequent first.
        repertoires: {language: what it can write}.
        counts: {language: training pairs}, in the same order.
        english: writes a phrase in English; two phrases with the same English text count as equal.
        seed: the seed of all random choices.
    """
    sampler = _PhraseSampler(lexicon, repertoires, english, seed)
    train = sampler.train(counts)
    fewer = 5 if len(counts) > MANY else 1
    valid = {code: sampler.new_pairs(code, "valid", VALID_LINES // fewer) for code in counts}
    return {
        code: Lines(
            train[code],
            valid[code],
            {
                NEW_PAIR: sampler.new_pairs(code, "test", TEST_LINES[NEW_PAIR] // fewer),
                SEEN_SKELETON: sampler.seen_skeletons(code, train[code], TEST_LINES[SEEN_SKELETON] // fewer),
                UNSEEN_ENTITY: sampler.unseen_entities(code, TEST_LINES[UNSEEN_ENTITY] // fewer),
            },
        )
        for code in counts
    }


class _PhraseSampler:
    """Draws the phrases of all languages and splits. It remembers which English lines are used in which split."""

    def __init__(
        self,
        lexicon: Mapping[str, Sequence[str]],
        repertoires: Mapping[str, Repertoire],
        english: Callable[[Phrase], str],
        seed: int,
    ) -> None:
        self._lexicon = lexicon
        self._repertoires = repertoires
        self._english = english
        self._seed = seed
        self._split: dict[str, str] = {}  # {English line: the split it is in}
        self._seen: dict[str, set[Entity]] = {}  # {language: entities of its training lines}
        self._templates: dict[str, list[Template]] = {}  # {language: templates of its training lines}
        # {(template, kind): {split: names that the template may have there, in all languages}}
        self._names: dict[tuple[str, str], dict[str, list[str]]] = {}
        self._unseen: dict[str, set[Entity]] = {code: set() for code in repertoires}
        self._frequency: dict[str, dict[str, float]] = {}
        for kind, names in lexicon.items():
            shuffled = list(names)
            self._rng("names", kind).shuffle(shuffled)
            self._hold_out(kind, shuffled)
            uniform = len(names) < OPEN_KIND
            self._frequency[kind] = {
                name: 1.0 if uniform else 1.0 / (rank + FLATNESS) for rank, name in enumerate(names)
            }
            if not uniform:
                for i, (code, repertoire) in enumerate(repertoires.items()):
                    own = [(kind, name) for name in shuffled if (kind, name) in repertoire.entities]
                    if len(own) >= OPEN_KIND:
                        self._unseen[code] |= {own[j % len(own)] for j in range(i * UNSEEN, (i + 1) * UNSEEN)}

    def train(self, counts: Mapping[str, int]) -> dict[str, list[Phrase]]:
        """The training phrases of every language.

        All languages draw from one pool, so they share part of their English lines. A language never draws its unseen
        names.
        """
        rng = self._rng("train")

        def propose(template: Template) -> Phrase | None:
            return template.draw(rng, lambda kind: self._pick(rng, kind, self._names[template.name, kind]["train"]))

        needed = max(int(count / self._writable(code)) for code, count in counts.items())
        pool = self._fill(TEMPLATES, 3 * needed // 2, propose)
        lines: dict[str, list[Phrase]] = {}
        for code, count in counts.items():
            usable = self._repertoires[code].entities - self._unseen[code]
            templates = list(self._repertoires[code].templates)
            rest: dict[str, list[Phrase]] = {template.name: [] for template in TEMPLATES}
            for phrase in pool:
                if usable.issuperset(phrase.entities):
                    rest[phrase.template.name].append(phrase)
            rng = self._rng("train", code)
            if count < len(templates):
                rng.shuffle(templates)
            for phrases in rest.values():
                rng.shuffle(phrases)

            def take(template: Template, rest: dict[str, list[Phrase]] = rest) -> Phrase | None:
                return rest[template.name].pop() if rest[template.name] else None

            lines[code] = self._fill(templates, count, take)
            rng.shuffle(lines[code])
            self._seen[code] = {entity for phrase in lines[code] for entity in phrase.entities}
            trained = {phrase.template for phrase in lines[code]}
            self._templates[code] = [template for template in TEMPLATES if template in trained]
        for phrases in lines.values():
            self._split.update((self._english(phrase), "train") for phrase in phrases)
        return lines

    def new_pairs(self, code: str, split: str, count: int) -> list[Phrase]:
        """Phrases whose names are all held out for their template, and are in other training lines of the language.

        Their templates are in its training lines, too.
        """
        rng = self._rng(split, NEW_PAIR, code)
        names = {
            key: [name for name in parts[split] if (key[1], name) in self._seen[code]]
            for key, parts in self._names.items()
        }
        templates = [t for t in self._templates[code] if all(names[t.name, kind] for kind in t.kinds)]

        def propose(template: Template) -> Phrase | None:
            return template.draw(rng, lambda kind: self._pick(rng, kind, names[template.name, kind]))

        return self._remember(split, self._fill(templates, count, propose, split))

    def seen_skeletons(self, code: str, train: Sequence[Phrase], count: int) -> list[Phrase]:
        """Phrases of the language's training set in which the numbers are replaced."""
        rng = self._rng(SEEN_SKELETON, code)
        numbered = [phrase for phrase in train if any(atom.numbers for atom in phrase.atoms)]
        by_template: dict[Template, list[Phrase]] = {}
        for phrase in numbered:
            by_template.setdefault(phrase.template, []).append(phrase)

        def propose(template: Template) -> Phrase | None:
            names = iter(rng.choice(by_template[template]).entities)
            return template.draw(rng, lambda kind: next(names)[1])

        return self._remember("test", self._fill(list(by_template), count, propose, "test"))

    def unseen_entities(self, code: str, count: int) -> list[Phrase]:
        """Phrases with one name that only other languages' training lines have. Their other names are known."""
        rng = self._rng(UNSEEN_ENTITY, code)
        elsewhere = set().union(*(self._seen[other] for other in self._seen if other != code))
        unseen, known = (
            {kind: [name for name in names if (kind, name) in entities] for kind, names in self._lexicon.items()}
            for entities in (self._unseen[code] & elsewhere, self._seen[code])
        )
        templates = [
            t for t in self._templates[code] if any(unseen[kind] for kind in t.kinds) and all(known[k] for k in t.kinds)
        ]

        def propose(template: Template) -> Phrase | None:
            unseen_slot = rng.choice([i for i, kind in enumerate(template.kinds) if unseen[kind]])
            slots = iter(range(len(template.kinds)))
            return template.draw(
                rng, lambda kind: self._pick(rng, kind, (unseen if next(slots) == unseen_slot else known)[kind])
            )

        return self._remember("test", self._fill(templates, count, propose, "test"))

    def _writable(self, code: str) -> float:
        """The share of all phrases that a language can write: 1 if it has all templates and names."""
        repertoire = self._repertoires[code]
        own = Counter(kind for kind, _ in repertoire.entities)
        share = {kind: own[kind] / len(names) for kind, names in self._lexicon.items()}
        return sum(math.prod(share[kind] for kind in t.kinds) for t in repertoire.templates) / len(TEMPLATES)

    def _hold_out(self, kind: str, names: list[str]) -> None:
        """For each template with this kind, holds out a quarter of the names for the test and an eighth for validation.

        The held-out part moves along `names` from template to template, so every name is trained on in most templates.
        """
        templates = [template for template in TEMPLATES if kind in template.kinds]
        test, valid = max(2, len(names) // 4), max(1, len(names) // 8)
        for i, template in enumerate(templates):
            start = i * len(names) // len(templates)
            rotated = names[start:] + names[:start]
            self._names[template.name, kind] = {
                "test": rotated[:test],
                "valid": rotated[test : test + valid],
                "train": rotated[test + valid :],
            }

    def _fill(
        self,
        templates: Sequence[Template],
        count: int,
        propose: Callable[[Template], Phrase | None],
        split: str = "train",
    ) -> list[Phrase]:
        """Up to `count` phrases, as evenly from the templates as possible.

        An English line is used at most once, and never if another split has it.

        Args:
            propose: draws a phrase of a template, or None.
        """
        phrases: list[Phrase] = []
        lines: set[str] = set()
        remaining = list(templates)
        while remaining:
            for template in tuple(remaining):
                if len(phrases) == count:
                    return phrases
                for _ in range(MOST_TRIES):
                    phrase = propose(template)
                    if phrase is None:
                        continue
                    line = self._english(phrase)
                    if line not in lines and self._split.get(line, split) == split:
                        phrases.append(phrase)
                        lines.add(line)
                        break
                else:
                    remaining.remove(template)
        return phrases

    def _remember(self, split: str, phrases: list[Phrase]) -> list[Phrase]:
        """Records that the phrases' English lines belong to this split, and returns the phrases."""
        self._split.update((self._english(phrase), split) for phrase in phrases)
        return phrases

    def _pick(self, rng: random.Random, kind: str, names: Sequence[str]) -> str:
        """One of the names, drawn by frequency."""
        frequency = self._frequency[kind]
        return rng.choices(names, [frequency[name] for name in names])[0]

    def _rng(self, *purpose: str) -> random.Random:
        # A string seeds the generator with its sha512, which does not depend on PYTHONHASHSEED.
        return random.Random("/".join((str(self._seed), *purpose)))
