"""Tokenizers trained on a corpus: which text they are trained on, and which languages get tags."""

from __future__ import annotations

import itertools
import math
from collections.abc import Set

from cats.nmt.config import schema
from cats.nmt.data.corpus import Corpus
from cats.nmt.data.sampler import temperature_probabilities
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError


def train_tokenizer(corpus: Corpus, settings: schema.Tokenizer) -> Tokenizer:
    """The tokenizer of a corpus: one joint model, or the union of one model per language.

    Raises:
        UserError: see ``Tokenizer.train``.
    """
    languages = tagged_languages(corpus, settings)
    if settings.per_language:
        models = train_language_tokenizers(corpus, settings, set(), languages)
        return Tokenizer.union(models, languages, Tags.from_settings(settings), sentinels=needs_sentinels(corpus))
    text = vocabulary_text(corpus, settings.temperature, settings.most_pairs)
    return _train(text, languages, settings, sentinels=needs_sentinels(corpus))


def train_language_tokenizers(
    corpus: Corpus, settings: schema.Tokenizer, known: Set[str], languages: list[str]
) -> dict[str, Tokenizer]:
    """{language: a tokenizer trained on its text alone}.

    Args:
        known: languages of the corpus that already have a tokenizer; they are left out.
        languages: those that get a tag.

    Raises:
        UserError: see ``Tokenizer.train``; the message begins with the language.
    """
    result = {}
    for language in sorted({name for task in corpus.tasks for name in (task.source, task.target)} - known):
        try:
            result[language] = _train(language_text(corpus, language, settings.most_pairs), languages, settings)
        except UserError as error:
            raise UserError(f"{language}: {error}") from None
    return result


def tagged_languages(corpus: Corpus, settings: schema.Tokenizer) -> list[str]:
    """The languages of a corpus that need tags: all target languages, and the sources if sources have their own tag."""
    tasks = [*corpus.tasks, *corpus.zero_shot]
    return sorted({task.target for task in tasks} | {task.source for task in tasks if settings.tag_of == "source"})


def needs_sentinels(corpus: Corpus) -> bool:
    """Whether a task of the corpus is language modelling, see ``cats.nmt.data.monolingual``."""
    return any(task.source == task.target for task in corpus.tasks)


def vocabulary_text(corpus: Corpus, temperature: float, most_pairs: int) -> list[str]:
    """The lines that a joint model is trained on: every source line once, target lines by temperature sampling.

    A task's share of the target lines is ~ pairs^(1/temperature), so the lines of small languages are repeated. If the
    corpus has more than `most_pairs` pairs, every n-th line of a task is taken instead, so that there are about
    `most_pairs` source lines and as many target lines.
    """
    total = sum(corpus.sizes.values())
    shares = temperature_probabilities(corpus.sizes, temperature)
    sources: set[str] = set()
    targets: list[str] = []
    for task in corpus.tasks:
        count = math.ceil(min(total, most_pairs) * shares[task.name])
        step = max(1, len(task.train) // max(1, count)) if total > most_pairs else 1
        chosen = list(itertools.islice(task.train, 0, None, step))
        sources.update(line for line, _ in chosen)
        targets += itertools.islice(itertools.cycle(line for _, line in chosen), count)
    return [*sorted(sources), *targets]


def language_text(corpus: Corpus, language: str, most_pairs: int) -> list[str]:
    """The distinct training lines of a language. If it has more than `most_pairs` pairs, every n-th line is taken."""
    tasks = [task for task in corpus.tasks if language in (task.source, task.target)]
    step = max(1, math.ceil(sum(len(task.train) for task in tasks) / most_pairs))
    lines: set[str] = set()
    for task in tasks:
        side = int(task.target == language)
        lines.update(pair[side] for pair in itertools.islice(task.train, 0, None, step))
    return sorted(lines)


def _train(text: list[str], languages: list[str], settings: schema.Tokenizer, *, sentinels: bool = False) -> Tokenizer:
    return Tokenizer.train(
        text,
        languages,
        settings.vocab_size,
        Tags.from_settings(settings),
        coverage=settings.character_coverage,
        sentinels=sentinels,
    )
