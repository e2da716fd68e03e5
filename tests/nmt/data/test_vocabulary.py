"""Which text the tokenizer is trained on."""

from __future__ import annotations

from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.vocabulary import vocabulary_text

EMPTY = Split([], [])


def sized(**sizes: int) -> Corpus:
    lines = {name: [f"{name} {i}" for i in range(size)] for name, size in sizes.items()}
    return Corpus("c", [Task(n, "en", n, Split([f"en {s}" for s in x], x), EMPTY, EMPTY) for n, x in lines.items()])


def test_small_languages_get_their_share_of_the_vocabulary():
    corpus = sized(xa=200, xb=40)
    lines = vocabulary_text(corpus, 5.0, 1000)
    # of 240 target lines at T = 5: 240 * 200^0.2 / (200^0.2 + 40^0.2) for xa, the others, repeated, for xb
    assert lines[:240] == sorted(line for task in corpus.tasks for line, _ in task.train)
    assert [line[:2] for line in lines[240:]] == ["xa"] * 140 + ["xb"] * 101
    assert lines[240:][140] == lines[240:][140 + 40] == "xb 0"


def test_the_vocabulary_of_a_large_corpus_is_sampled_evenly():
    lines = vocabulary_text(sized(xa=2000, xb=40), 1.0, 100)
    xa = [line for line in lines if line.startswith("xa")]
    assert xa == [f"xa {i}" for i in range(0, 99 * 20, 20)]
    assert [line for line in lines if line.startswith("xb")] == ["xb 0", "xb 20"]
