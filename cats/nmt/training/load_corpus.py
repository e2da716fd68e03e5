"""The corpus that the settings of a run name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from cats.nmt.config import schema
from cats.nmt.data.corpus import Corpus
from cats.nmt.data.corpus_files import read_corpus
from cats.nmt.data.monolingual import chosen_tasks, language_of
from cats.nmt.data.prepared import is_prepared, read_prepared_corpus
from cats.nmt.training import processes


def load_corpus(settings: schema.Data, *, quiet: bool = False) -> Corpus:
    """The corpus that the settings name: a folder of text, a prepared folder, or the one generated from CLDR.

    Args:
        quiet: do not say that a prepared folder of an earlier version is not verified. Only the main process says it.

    Raises:
        UserError: the folder is missing, its files are unusable, or it lacks a task of `data.tasks`.
    """
    if settings.path:
        folder = Path(settings.path)
        if is_prepared(folder):
            return read_prepared_corpus(folder, settings.tasks, quiet=quiet or not processes.is_main())
        # Language modelling takes the text of a language from all tasks.
        named = () if any(map(language_of, settings.tasks)) else settings.tasks
        corpus = read_corpus(folder, settings.source, settings.direction, named)
    else:
        corpus = _built_in_corpus(settings.languages, settings.sizes, settings.seed)
    return chosen_tasks(corpus, settings.tasks)


@lru_cache(maxsize=1)  # the training and the scoring of a run load the same one
def _built_in_corpus(languages: str, sizes: str, seed: int) -> Corpus:
    from cats.nmt.data.cldr.generate import generate  # imported here because it needs Babel

    return generate(languages, sizes, seed)
