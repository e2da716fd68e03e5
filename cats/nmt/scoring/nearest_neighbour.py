"""The nearest-neighbour baseline: translates a line like the nearest training sentence, with the numbers replaced.

A trained model must be better than this.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import numpy.typing as npt

from cats.nmt.data.corpus import Split

# The baseline is left out for tasks with more training pairs than this. It would take hours.
MOST_NEIGHBOURS = 200_000

_NUMBER = re.compile(r"\d+")
_ORDERS = range(1, 6)  # of character n-grams


def translate(train: Split, lines: list[str]) -> list[str]:
    """Translates each line with the translation of the nearest source sentence in `train`.

    The nearest sentence has the highest cosine similarity of tf-idf weighted character n-grams, where all numbers count
    as equal. Among equally near sentences, the one with the most numbers in common is taken, then the first one. In its
    translation each number that is also in its source is replaced by the number at the same position in the line.

    Raises:
        ValueError: `train` is empty.
    """
    if not train.source:
        raise ValueError("no training sentences to search")
    index = _Index(train.source)
    answers = {}
    for line in dict.fromkeys(lines):
        numbers = Counter(_NUMBER.findall(line))
        nearest = max(index.nearest(line), key=lambda i: (numbers & Counter(_NUMBER.findall(train.source[i]))).total())
        answers[line] = _replace_numbers(train.source[nearest], train.target[nearest], line)
    return [answers[line] for line in lines]


class _Index:
    """Inverted lists: for each n-gram, the sentences that have it, and its weights in them.

    The weights of each sentence are scaled to a vector of length 1.
    """

    def __init__(self, sentences: list[str]) -> None:
        self._size = len(sentences)
        rows: dict[str, list[int]] = {}
        counts: dict[str, list[float]] = {}
        for row, sentence in enumerate(sentences):
            for gram, count in _grams(sentence).items():
                rows.setdefault(gram, []).append(row)
                counts.setdefault(gram, []).append(count)
        self._idf = {gram: float(np.log((1 + self._size) / len(found))) for gram, found in rows.items()}
        self._lists: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = {}
        squares = np.zeros(self._size)
        for gram, found in rows.items():
            weights = self._idf[gram] * np.array(counts[gram])
            self._lists[gram] = np.array(found), weights
            squares[found] += weights**2
        self._scale = 1 / np.sqrt(np.maximum(squares, np.finfo(float).tiny))

    def nearest(self, sentence: str) -> list[int]:
        """The numbers of the nearest sentences, ascending; more than one if they are equally near."""
        scores = np.zeros(self._size)
        for gram, count in _grams(sentence).items():
            if gram in self._lists:
                found, weights = self._lists[gram]
                scores[found] += count * self._idf[gram] * weights
        scores *= self._scale
        # Sums of equal terms may differ in the last bits, because of their order.
        return [int(row) for row in np.flatnonzero(scores >= scores.max() * (1 - 1e-9))]


def _grams(sentence: str) -> Counter[str]:
    text = f" {_NUMBER.sub('0', sentence)} "
    return Counter(text[i : i + n] for n in _ORDERS for i in range(len(text) - n + 1))


def _replace_numbers(source: str, target: str, line: str) -> str:
    """Replaces each number of `source` in `target` by the number at the same position in `line`."""
    places: dict[str, list[str]] = {}
    for old, new in zip(_NUMBER.findall(source), _NUMBER.findall(line), strict=False):
        places.setdefault(old, []).append(new)

    def replacement(match: re.Match[str]) -> str:
        queue = places.get(match[0])
        return match[0] if not queue else queue.pop(0) if len(queue) > 1 else queue[0]

    return _NUMBER.sub(replacement, target)
