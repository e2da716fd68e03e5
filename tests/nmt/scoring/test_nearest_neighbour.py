"""cats.nmt.scoring.nearest_neighbour: known answers, replaced numbers, and the definition of near."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import pytest

from cats.nmt.data.corpus import Split
from cats.nmt.scoring import nearest_neighbour

TRAIN = Split(
    [
        "5 liters and 7 grams",
        "May 7, 2016",
        "Poland and Spain",
        "Poland or Norway",
        "in 3 days",
        "5 liters and 7 miles",
    ],
    ["5 litrů a 7 gramů", "7. května 2016", "Polsko a Španělsko", "Polsko nebo Norsko", "za 3 dny", "5 litrů a 7 mil"],
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Poland and Spain", "Polsko a Španělsko"),  # a training line gets its own translation
        ("May 9, 2021", "9. května 2021"),
        ("May 2016, 7", "2016. května 7"),  # by position, not by value
        ("12 liters and 14 grams", "12 litrů a 14 gramů"),  # all at once: the new 7 for 5 does not become 14
        ("7 liters and 5 grams", "7 litrů a 5 gramů"),
        ("8 liters and 8 miles", "8 litrů a 8 mil"),
        ("in 30 days", "za 30 dny"),  # a number may get longer
        ("Poland and Portugal", "Polsko a Španělsko"),
        ("Sweden or Norway", "Polsko nebo Norsko"),
    ],
)
def test_known_answers(line, expected):
    assert nearest_neighbour.translate(TRAIN, [line]) == [expected]


def test_order_and_repetition_of_lines():
    lines = ["in 1 days", "Poland and Spain", "in 1 days", "in 2 days"]
    assert nearest_neighbour.translate(TRAIN, lines) == ["za 1 dny", "Polsko a Španělsko", "za 1 dny", "za 2 dny"]
    assert nearest_neighbour.translate(TRAIN, []) == []


def test_of_equally_near_lines_the_one_with_the_numbers_then_the_first():
    train = Split(["2 cats", "1 cats", "4 cats", "4 cats"], ["2 few", "1 one", "4 first", "4 second"])
    assert nearest_neighbour.translate(train, ["1 cats", "4 cats", "9 cats"]) == ["1 one", "4 first", "9 few"]


def test_numbers_that_repeat_or_are_missing():
    train = Split(["5 and 5 of 6", "2 months"], ["6: 5, 5 (9)", "two months"])
    # 5 is twice on both sides, 9 is in no source, and the second target has no number.
    assert nearest_neighbour.translate(train, ["1 and 2 of 3", "7 months"]) == ["3: 1, 2 (9)", "two months"]
    # The line has fewer numbers than the training source: the others stay.
    assert nearest_neighbour.translate(train, ["1 and of"]) == ["6: 1, 1 (9)"]


def test_line_that_shares_nothing_with_the_training_text():
    assert nearest_neighbour.translate(TRAIN, ["Ωω"]) == ["5 litrů a 7 gramů"]


def test_empty_training_text():
    with pytest.raises(ValueError, match="no training sentences"):
        nearest_neighbour.translate(Split([], []), ["a"])


def grams(sentence: str) -> Counter[str]:
    text = f" {re.sub('[0-9]+', '0', sentence)} "
    return Counter(text[i : i + n] for n in (1, 2, 3, 4, 5) for i in range(len(text) - n + 1))


def test_nearest_is_the_cosine_of_tf_idf_vectors():
    """Compared with the definition, computed for each sentence with dictionaries."""
    rng = random.Random(1)
    words = ["red", "green", "blue", "one", "three", "house", "horse", "mouse", "12", "7"]
    sentences = list(dict.fromkeys(" ".join(rng.choices(words, k=rng.randint(2, 5))) for _ in range(60)))
    train, queries = sentences[:40], sentences[40:]
    vectors = [grams(sentence) for sentence in train]
    frequency = Counter(gram for vector in vectors for gram in vector)
    idf = {gram: math.log((1 + len(train)) / count) for gram, count in frequency.items()}

    def cosine(a: Counter[str], b: Counter[str]) -> float:
        dot = math.fsum(a[gram] * b[gram] * idf[gram] ** 2 for gram in a if gram in b)
        return dot / math.sqrt(math.fsum((count * idf[gram]) ** 2 for gram, count in b.items()))

    marked = Split(train, [f"<{i}>" for i in map(chr, range(0x4E00, 0x4E00 + len(train)))])
    for query, answer in zip(queries, nearest_neighbour.translate(marked, queries), strict=True):
        scores = [cosine(grams(query), vector) for vector in vectors]
        # The first one is as near as the best one, up to the rounding of sums of about 100 terms.
        assert scores[marked.target.index(answer)] == pytest.approx(max(scores), rel=1e-9)
