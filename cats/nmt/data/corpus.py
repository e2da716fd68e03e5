"""A corpus in memory: its tasks and their splits. ``cats.nmt.data.corpus_files`` reads and writes it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cats.nmt.config.schema import Evaluate
from cats.nmt.data.groups import task_groups
from cats.nmt.data.readers import PairReader

T = TypeVar("T")
SPLITS = ("train", "valid", "test")
HEADLINE = "new-pair"  # the stratum that results are reported on, if the corpus has it
ENGLISH = ("en", "eng", "en_XX", "eng_Latn")  # the codes of English in public corpora; "en" stands for any of them


def evenly_spread(rows: Sequence[T], count: int) -> list[T]:
    """`count` of the rows, evenly spread and always the same. All of them if there are not so many, or if it is 0."""
    count = min(count or len(rows), len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


class PairsDigest:
    """The SHA-256 of pairs of lines. It does not depend on how they are divided into blocks."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def update(self, pairs: list[tuple[str, str]]) -> None:
        """Adds the next pairs."""
        if pairs:
            self._sum.update(f"{json.dumps(pairs)[1:-1]}, ".encode("ascii"))

    def hexdigest(self) -> str:
        return self._sum.hexdigest()


@dataclass(frozen=True)
class Split:
    """Line i of `source` is translated by line i of `target`.

    meta: (stratum, cluster) of every line, or None if unknown. Lines are scored per stratum. The bootstrap resamples
        clusters: lines made from the same template or the same English sentence.
    """

    source: list[str]
    target: list[str]
    meta: list[tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        counts = [len(self.source), len(self.target), *([] if self.meta is None else [len(self.meta)])]
        if len(set(counts)) > 1:
            raise ValueError(f"source, target (and meta) must be equally long, got {counts}")

    readable = True

    @property
    def sha256(self) -> str:
        """The SHA-256 of its pairs, in hexadecimal."""
        digest, pairs = PairsDigest(), iter(self)
        while block := list(itertools.islice(pairs, 10_000)):
            digest.update(block)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self.source, self.target, strict=True)

    def rows(self, stratum: str | None) -> list[int]:
        """The indices of the lines in a stratum; None: of all lines."""
        if stratum is None:
            return list(range(len(self.source)))
        return [i for i, (name, _) in enumerate(self.meta or []) if name == stratum]


@dataclass(frozen=True)
class StreamedSplit:
    """Training text that is too large for memory: its files are read again on each pass.

    pairs: the number of (source, target) that one pass yields.
    sha256: the SHA-256 of its pairs, in hexadecimal: that of a ``Split`` with the same pairs.
    reader: None if only the encoded tokens are available, as in a prepared folder.
    swapped: the second language of the files is the source.
    older: what stood in place of sha256 in the digests of older runs; see ``Corpus.has_digest``.
    """

    pairs: int
    sha256: str
    reader: PairReader | None = None
    swapped: bool = False
    older: str = ""

    @property
    def readable(self) -> bool:
        """Whether the lines can be read."""
        return self.reader is not None

    def __len__(self) -> int:
        return self.pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if self.reader is None:
            raise ValueError("this training text is prepared: its lines are not available")
        return (pair for pair, reason in self.reader.checked(self.swapped) if not reason)


@dataclass(frozen=True)
class Task:
    """One translation direction. `name` is the target language if `source` is English, else "source-target".

    If both are the same language, as in "en-en", it is language modelling: see ``cats.nmt.data.monolingual``.
    """

    name: str
    source: str
    target: str
    train: Split | StreamedSplit
    valid: Split
    test: Split


@dataclass(frozen=True)
class Corpus:
    """The tasks that are trained together.

    notices: what a user should know about the text, one line each, such as what was left out and why.
    zero_shot: directions with test text but no training text.
    """

    name: str
    tasks: list[Task]
    notices: list[str] = field(default_factory=list)
    zero_shot: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [task.name for task in [*self.tasks, *self.zero_shot]]
        if not self.tasks or len(set(names)) < len(names):
            raise ValueError(f"a corpus needs tasks of different names, got {names}")

    @property
    def sizes(self) -> dict[str, int]:
        """{task: training pairs}."""
        return {task.name: len(task.train) for task in self.tasks}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Task names under "all", "lores" (fewer training pairs than the mean of the tasks) and "hires" (the rest)."""
        return task_groups(self.sizes, Evaluate())

    @property
    def headline(self) -> str | None:
        """The stratum that results are reported on: "new-pair" if any test line has it, else None (all lines)."""
        found = any(stratum == HEADLINE for task in self.tasks for stratum, _ in task.test.meta or [])
        return HEADLINE if found else None

    @property
    def counts(self) -> dict[str, list[int]]:
        """{task: pairs of training, validation and test}, the zero-shot directions included."""
        tasks = [*self.tasks, *self.zero_shot]
        return {task.name: [len(task.train), len(task.valid), len(task.test)] for task in tasks}

    def digest(self) -> str:
        """sha256 (hex) of the text of all tasks, and of the meta of their validation and test text.

        The order of the tasks and the name of the corpus do not matter, nor does it matter whether the training text is
        in memory, streamed or prepared.
        """
        digest = hashlib.sha256()
        for task, name, split in self._splits():
            meta = split.meta if isinstance(split, Split) and name != "train" else None
            content = [task.name, task.source, task.target, name, split.sha256, meta or None]
            digest.update(json.dumps(content).encode("ascii"))
        return digest.hexdigest()

    def older_digest(self) -> str:
        """The digest that runs of earlier versions recorded. It depends on where the training text is."""
        digest = hashlib.sha256()
        for task, name, split in self._splits():
            if isinstance(split, StreamedSplit):
                parts: list[Any] = [split.older]
            else:
                parts = [split.source, split.target, split.meta or None]
            digest.update(json.dumps([task.name, task.source, task.target, name, *parts]).encode("ascii"))
        return digest.hexdigest()

    def has_digest(self, digest: str) -> bool:
        """Whether a run that recorded this digest was trained on this corpus."""
        return digest in (self.digest(), self.older_digest())

    def _splits(self) -> Iterator[tuple[Task, str, Split | StreamedSplit]]:
        """The splits of all tasks in the order of the tasks' names."""
        for task in sorted([*self.tasks, *self.zero_shot], key=lambda task: task.name):
            for name in SPLITS:
                yield task, name, getattr(task, name)
