"""Directions of translation, (source language, target language), and how they follow from the names of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from cats.nmt.data.corpus import ENGLISH
from cats.nmt.data.tokenizer import Tokenizer


def direction(task: str, targets: Iterable[str]) -> tuple[str, str]:
    """Return the direction of a task. Its name is "target" if the source is English, else "source-target".

    Both languages may contain hyphens, so `targets`, the known target languages, tell where the second one begins.
    """
    known = targets if isinstance(targets, Set) else set(targets)
    if task in known:
        return ENGLISH[0], task
    ends = [task[i + 1 :] for i, letter in enumerate(task) if letter == "-"]  # the longest first
    target = next((end for end in ends if end in known), task.rpartition("-")[2])
    return task.removesuffix(f"-{target}"), target


def target_languages(directions: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[str]:
    """Return the languages that a model trained on `directions` translates into.

    If the tokenizer tags sources with their own language, a language with a tag need not be a target.
    """
    if not directions or tokenizer.tags.of == "target":
        return tokenizer.languages
    return list(dict.fromkeys(target for _, target in directions))


def source_languages(directions: Sequence[tuple[str, str]], target: str) -> list[str]:
    """Return the source languages of `target`. If there are none: all source languages, or English."""
    fitting = [source for source, other in directions if other == target] or [source for source, _ in directions]
    return list(dict.fromkeys(fitting)) or [ENGLISH[0]]


def tokenizer_name(source: str, target: str, tokenizer: Tokenizer) -> str:
    """Return the name by which the tokenizer knows `source`: English has several, such as en and eng."""
    names = ENGLISH if source == ENGLISH[0] else (source,)
    return next((name for name in names if tokenizer.translates(name, target)), source)
