"""Language modelling on the text of single languages, as tasks beside translation: T5's span corruption.

A task from a language into itself, such as ``en-en``, has lines instead of pairs. A line loses some spans of pieces,
and the decoder writes them (Raffel et al., 2020, section 3.1.4; sentinels are `<0>`, `<1>`, ..):

    line      Thank you for inviting me to your party last week
    source    Thank you <0> me to your party <1> week
    target    <0> for inviting <1> last

As in T5, 15 % of the pieces are lost, in spans of 3 on average, and both numbers depend only on the length of the line.
Every update draws other spans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cats.nmt.data.batch import Ragged
from cats.nmt.data.corpus import SPLITS, Corpus, Split, StreamedSplit, Task
from cats.nmt.data.shards import Shard
from cats.nmt.errors import UserError, unknown

LOST = 0.15  # share of the pieces of a line
SPAN = 3.0  # mean length of a lost span
VALIDATION_SEED = 0  # of the spans of validation text: they are the same in every run


def language_of(task: str) -> str:
    """The language of a language-modelling task: "xx" if its name is "xx-xx", else ""."""
    half = task[: len(task) // 2]
    return half if half and task == f"{half}-{half}" else ""


def chosen_tasks(corpus: Corpus, names: Sequence[str]) -> Corpus:
    """The corpus with the tasks `names`, in the order of their names; all tasks of the corpus if there are no names.

    A name "xx-xx" is language modelling on the text of xx in all tasks: every line once. Lines that are validation or
    test text of any task are not trained on. There is no test text.

    Raises:
        UserError: the corpus has no such task or language, or its training text is not in memory.
    """
    if not names:
        return corpus
    languages = sorted({language for task in corpus.tasks for language in (task.source, task.target)})
    known = {task.name: task for task in corpus.tasks}
    zero_shot = [task for task in corpus.zero_shot if task.name in names]
    found = []
    for name in dict.fromkeys(names):
        if name in known:
            found.append(known[name])
        elif language_of(name) in languages:
            found.append(_monolingual(corpus, language_of(name)))
        elif name not in {task.name for task in zero_shot}:
            raise unknown("task", name, [*known, *(f"{one}-{one}" for one in languages)], where="data.tasks")
    if not found:
        raise UserError(f"data.tasks: there is no training text for {', '.join(names)}")
    return dataclasses.replace(corpus, tasks=sorted(found, key=lambda task: task.name), zero_shot=zero_shot)


def _monolingual(corpus: Corpus, language: str) -> Task:
    """Language modelling on all lines of a language."""
    lines: dict[str, dict[str, None]] = {split: {} for split in SPLITS}  # dicts keep the order
    for task in corpus.tasks:
        for split, seen in lines.items():
            pairs: Split | StreamedSplit = getattr(task, split)
            if isinstance(pairs, StreamedSplit):
                raise UserError(
                    f"data.tasks = {language}-{language}: the training text of {corpus.name} is too large to collect "
                    f"its lines; write them to train.{language}-{language}.{language} in its folder"
                )
            if task.source == language:
                seen.update(dict.fromkeys(pairs.source))
            if task.target == language:
                seen.update(dict.fromkeys(pairs.target))
    held_out = lines["valid"].keys() | lines["test"].keys()
    train = [line for line in lines["train"] if line not in held_out]
    valid = list(lines["valid"])
    name = f"{language}-{language}"
    return Task(name, language, language, Split(train, train), Split(valid, valid), Split([], []))


@dataclass(frozen=True)
class CorruptedLines(Shard):
    """The lines of one task as pairs (line without the lost spans, lost spans).

    The lengths of both sides depend only on the length of the line, so the offsets are those of every update.

    tokens: empty; the tokens are made when they are asked for.
    lines: the lines are its targets. numbers: (lines,) their numbers in the whole text, on which their spans depend.
    seed, step: the spans also depend on these. Validation text keeps step = 0.
    sentinels: the ids of the sentinels, the first one first.
    """

    lines: Shard
    numbers: np.ndarray
    sentinels: Sequence[int]
    seed: int
    step: int = 0

    @classmethod
    def of(cls, lines: Shard, sentinels: Sequence[int], seed: int) -> CorruptedLines:
        """The lines that are the targets of a shard."""
        pieces = np.diff(lines.offsets)[1::2]
        lost, spans = lost_pieces(pieces, len(sentinels))
        sides = np.stack([pieces - lost + spans, lost + spans], axis=1).ravel()
        offsets = np.concatenate([[0], sides.cumsum()]).astype(np.int64)
        return cls(lines.tokens[:0], offsets, lines, np.arange(len(pieces)), sentinels, seed)

    def at(self, step: int) -> CorruptedLines:
        return dataclasses.replace(self, step=step)

    def side(self, index: int) -> np.ndarray:
        return self.gather(np.array([index])).ids

    def gather(self, sides: np.ndarray) -> Ragged:
        rows = [self._pair(int(side) // 2)[int(side) % 2] for side in sides]
        return Ragged(np.concatenate(rows, dtype=np.int64), np.array([len(row) for row in rows], dtype=np.int64))

    def subset(self, pairs: np.ndarray) -> CorruptedLines:
        part = self.of(self.lines.subset(pairs), self.sentinels, self.seed)
        return dataclasses.replace(part, numbers=self.numbers[pairs], step=self.step)

    def _pair(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of line i."""
        line = self.lines.side(2 * i + 1)
        random = np.random.default_rng([self.seed, 5, self.step, int(self.numbers[i])])
        return corrupt(line, lost_spans(len(line), len(self.sentinels), random), self.sentinels)


def lost_pieces(pieces: np.ndarray, most_spans: int) -> tuple[np.ndarray, np.ndarray]:
    """How many pieces lines of these lengths lose, and in how many spans: at least one, except for empty lines.

    As in T5. A line that needs more than `most_spans` loses longer spans.
    """
    lost = np.clip(np.rint(LOST * pieces).astype(np.int64), 1, np.maximum(pieces - 1, 1)) * (pieces > 0)
    spans = np.clip(np.rint(lost / SPAN).astype(np.int64), 1, most_spans) * (pieces > 0)
    return lost, np.minimum(spans, pieces - lost + 1)


def lost_spans(pieces: int, most_spans: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Draws the spans [first, end) that a line loses, from left to right. At least one piece is between two spans.

    All possibilities are equally likely. T5's own code always ends with a lost span, so that a line of up to 30 pieces
    would always lose its end; most lines of a translation corpus are that short.
    """
    lost, spans = (int(number) for number in lost_pieces(np.array(pieces), most_spans))
    if not spans:
        return []
    lengths = _parts(lost, spans, random)
    gaps = _parts(pieces - lost + 2, spans + 1, random)  # before each span, and the rest; the outer two may be empty
    gaps[0] -= 1
    firsts = gaps[:-1].cumsum() + lengths.cumsum() - lengths
    return [(int(first), int(first + length)) for first, length in zip(firsts, lengths, strict=True)]


def corrupt(
    line: np.ndarray, spans: Sequence[tuple[int, int]], sentinels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The line with a sentinel in the place of each span, and the spans, each after its sentinel."""
    source: list[int] = []
    target: list[int] = []
    before = 0
    for (first, end), sentinel in zip(spans, sentinels, strict=False):
        source += [*line[before:first].tolist(), sentinel]
        target += [sentinel, *line[first:end].tolist()]
        before = end
    return np.array([*source, *line[before:].tolist()], dtype=np.int64), np.array(target, dtype=np.int64)


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` positive numbers with this sum; all possibilities are equally likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]).astype(np.int64))
