"""Language modelling on the text of one language: which spans are lost, and which lines it is trained on."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config import schema
from cats.nmt.data import monolingual
from cats.nmt.data.corpus import Corpus, Split, StreamedSplit, Task
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.data.monolingual import CorruptedLines, chosen_tasks, corrupt, language_of, lost_pieces, lost_spans
from cats.nmt.data.shards import pack
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.data.vocabulary import train_tokenizer
from cats.nmt.errors import UserError

SENTINELS = range(900, 932)


def test_the_example_of_the_t5_paper() -> None:
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    source, target = corrupt(np.arange(len(words)), [(2, 4), (8, 9)], SENTINELS)
    name = {900: "<X>", 901: "<Y>", **dict(enumerate(words))}
    assert " ".join(name[i] for i in source.tolist()) == "Thank you <X> me to your party <Y> week"
    assert " ".join(name[i] for i in target.tolist()) == "<X> for inviting <Y> last"


def test_the_numbers_of_lost_pieces_and_spans_are_those_of_t5() -> None:
    lengths = np.array([0, 1, 2, 3, 10, 20, 30, 31, 100, 512, 5000])
    lost, spans = lost_pieces(lengths, 32)
    assert lost.tolist() == [0, 1, 1, 1, 2, 3, 4, 5, 15, 77, 750]
    assert spans.tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 5, 26, 32]  # the last is limited by the sentinels


@pytest.mark.parametrize("length", [1, 2, 5, 31, 100, 640])
def test_spans_do_not_touch_and_the_line_can_be_put_together_again(length: int) -> None:
    lost, spans = (int(number) for number in lost_pieces(np.array(length), 32))
    for seed in range(20):
        drawn = lost_spans(length, 32, np.random.default_rng(seed))
        assert len(drawn) == spans and sum(end - first for first, end in drawn) == lost
        assert all(first < end for first, end in drawn) and drawn[0][0] >= 0 and drawn[-1][1] <= length
        assert all(end < first for (_, end), (first, _) in itertools.pairwise(drawn))
        line = np.arange(length)
        source, target = (side.tolist() for side in corrupt(line, drawn, SENTINELS))
        marks = [i for i in source if i in SENTINELS]
        assert marks == [i for i in target if i in SENTINELS] == list(SENTINELS)[:spans]  # each once, in order
        spanned: dict[int, list[int]] = {}
        for i in target:
            spanned.setdefault(i, []) if i in SENTINELS else spanned[max(spanned)].append(i)
        assert [k for i in source for k in spanned.get(i, [i])] == line.tolist()


def test_all_possible_spans_are_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spans of one piece in a line of 14, which do not touch: C(13, 2) ways, its first and last piece included."""
    monkeypatch.setattr(monolingual, "SPAN", 1.0)
    random = np.random.default_rng(3)
    seen = Counter(tuple(lost_spans(14, 32, random)) for _ in range(1_560))
    assert len(seen) == math.comb(13, 2) and min(map(min, seen)) == (0, 1) and max(map(max, seen)) == (13, 14)
    assert max(seen.values()) < 50  # expected: 20; the Poisson tail beyond 49 is 1e-8


def shard() -> CorruptedLines:
    lines = pack([part for n in (4, 31, 60) for part in ([7], list(range(n)))], 1000)
    return CorruptedLines.of(lines, SENTINELS, seed=5)


def test_lines_depend_on_seed_step_and_number_only_and_their_lengths_on_none() -> None:
    lines = shard()
    sides = np.arange(6)
    first, again, later = lines.at(3).gather(sides), shard().at(3).gather(sides), lines.at(4).gather(sides)
    assert first.ids.tolist() == again.ids.tolist() != later.ids.tolist()
    assert first.lengths.tolist() == later.lengths.tolist() == np.diff(lines.offsets).tolist()
    assert lines.at(3).subset(np.array([2])).gather(np.array([0, 1])).ids.tolist() == (
        lines.at(3).gather(np.array([4, 5])).ids.tolist()
    )
    assert lines.at(3).side(5).tolist() == lines.at(3).gather(np.array([5])).ids.tolist()


def test_sentinels_are_neither_text_nor_tags() -> None:
    text = ["one two <extra_id_0>", "<2aa>"]
    tokenizer = Tokenizer.train(text, ["aa", "bb"], 100, sentinels=True)
    assert len(tokenizer.sentinels) == 32 and tokenizer.languages == ["aa", "bb"]
    assert tokenizer.first_piece == 4 + 2 + 32 == tokenizer.sentinels[-1] + 1
    ids = {i for row in tokenizer.encode(text, "aa") for i in row}
    assert all(i >= tokenizer.first_piece for i in ids)
    assert tokenizer.decode([[tokenizer.sentinels[0], *tokenizer.encode(["one"], "aa")[0]]]) == ["one"]
    assert Tokenizer.train(text, ["aa"], 100).sentinels == []


def corpus() -> Corpus:
    def split(*pairs: str) -> Split:
        return Split([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    return Corpus(
        "toy",
        [
            Task("xa", "en", "xa", split("Aa", "Bb", "Cc"), split("Dd"), split("Ee")),
            Task("xb", "en", "xb", split("Af", "Dg", "Hh"), split("Ii"), split()),
        ],
    )


def test_the_lines_of_a_language_are_those_of_all_tasks_without_held_out_ones() -> None:
    chosen = chosen_tasks(corpus(), ("xb", "en-en", "xa-xa"))
    assert [task.name for task in chosen.tasks] == ["en-en", "xa-xa", "xb"]
    english = chosen.tasks[0]
    assert (english.source, english.target) == ("en", "en")
    assert english.train.target == list("ABCH") and english.valid.target == list("DI") and not len(english.test)
    assert chosen_tasks(corpus(), ()).tasks == corpus().tasks
    assert [language_of(name) for name in ("en-en", "pt-br-pt-br", "xa", "en-xa", "-")] == ["en", "pt-br", "", "", ""]


def test_the_tokenizer_gets_sentinels_only_if_they_are_needed() -> None:
    settings = schema.Tokenizer(vocab_size=60)
    assert not train_tokenizer(corpus(), settings).sentinels
    both = chosen_tasks(corpus(), ("xa", "en-en"))
    assert train_tokenizer(both, settings).sentinels
    assert train_tokenizer(both, schema.Tokenizer(vocab_size=60, per_language=True)).sentinels


def test_unknown_tasks_and_languages_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.tasks: unknown task xx-xx"):
        chosen_tasks(corpus(), ("xx-xx",))
    with pytest.raises(UserError, match=r"data\.tasks: unknown task xx"):
        chosen_tasks(corpus(), ("xx",))


def test_lines_of_a_large_corpus_are_asked_for_as_a_file() -> None:
    large = Corpus("big", [Task("xa", "en", "xa", StreamedSplit(3, ""), Split([], []), Split([], []))])
    with pytest.raises(UserError, match=r"write them to train\.en-en\.en"):
        chosen_tasks(large, ("en-en",))


def test_a_folder_may_have_text_of_one_language(tmp_path: Path) -> None:
    write_corpus(corpus(), tmp_path / "toy")
    for split, text in {"train": "P\nQ\n", "valid": "R\n", "test": "S\n"}.items():
        (tmp_path / "toy" / f"{split}.en-en.en").write_text(text)
    found = read_corpus(tmp_path / "toy")
    assert [task.name for task in found.tasks] == ["en-en", "xa", "xb"]
    english = chosen_tasks(found, ("en-en",)).tasks[0]
    assert english.train.target == ["P", "Q"] and english.valid.target == ["R"] and not len(english.test)
