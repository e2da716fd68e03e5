"""The baseline a trained model must beat: the nearest training sentence's translation, with its numbers replaced."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import numpy.typing as npt

from cats.nmt.data.corpus import Split

_NUMBER = re.compile(r"\d+")
_ORDERS = range(1, 6)  # of character n-grams


def translate(train: Split, lines: list[str]) -> list[str]:
    """Translate each line as `train` translates the source sentence that is nearest to it.

    Near is the cosine of tf-idf weighted character n-grams, with all numbers alike; of equally near sentences that
    with the most numbers in common, then the first. In its translation, the numbers that stand in its source are
    replaced by the line's numbers, by their places.

    Raises:
        ValueError: `train` is empty.
    """
    if not train.source:
        raise ValueError("no training sentences to look up")
    index = _Index(train.source)
    answers = {}
    for line in dict.fromkeys(lines):
        numbers = Counter(_NUMBER.findall(line))
        nearest = max(index.nearest(line), key=lambda i: (numbers & Counter(_NUMBER.findall(train.source[i]))).total())
        answers[line] = _replace_numbers(train.source[nearest], train.target[nearest], line)
    return [answers[line] for line in lines]


class _Index:
    """Inverted lists of n-grams -> (sentences, weights). Each sentence's weights have length 1."""

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
        """All sentences that are as near as the nearest, in order."""
        scores = np.zeros(self._size)
        for gram, count in _grams(sentence).items():
            if gram in self._lists:
                found, weights = self._lists[gram]
                scores[found] += count * self._idf[gram] * weights
        scores *= self._scale
        # Sums in another order may differ in the last bits.
        return [int(row) for row in np.flatnonzero(scores >= scores.max() * (1 - 1e-9))]


def _grams(sentence: str) -> Counter[str]:
    text = f" {_NUMBER.sub('0', sentence)} "
    return Counter(text[i : i + n] for n in _ORDERS for i in range(len(text) - n + 1))


def _replace_numbers(source: str, target: str, line: str) -> str:
    """`target`, with every number of `source` replaced by the number that `line` has in the same place."""
    places: dict[str, list[str]] = {}
    for old, new in zip(_NUMBER.findall(source), _NUMBER.findall(line), strict=False):
        places.setdefault(old, []).append(new)

    def replacement(match: re.Match[str]) -> str:
        queue = places.get(match[0])
        return match[0] if not queue else queue.pop(0) if len(queue) > 1 else queue[0]

    return _NUMBER.sub(replacement, target)
