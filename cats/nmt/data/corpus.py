"""A corpus in memory: its tasks and their splits. ``cats.nmt.data.corpus_files`` reads and writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cats.nmt.config.schema import Evaluate
from cats.nmt.data.groups import task_groups
from cats.nmt.data.readers import PairReader

SPLITS = ("train", "valid", "test")
HEADLINE = "new-pair"  # the stratum that results are reported on, if the corpus has it
ENGLISH = ("en", "eng", "en_XX", "eng_Latn")  # the codes of English in public corpora; "en" stands for any of them


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
    sha256: the SHA-256 of its content, in hexadecimal.
    reader: None if only the encoded tokens are available, as in a prepared folder.
    swapped: the second language of the files is the source.
    """

    pairs: int
    sha256: str
    reader: PairReader | None = None
    swapped: bool = False

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
    """One translation direction. `name` is the target language if `source` is English, else "source-target"."""

    name: str
    source: str
    target: str
    train: Split | StreamedSplit
    valid: Split
    test: Split


@dataclass(frozen=True)
class Corpus:
    """The tasks that are trained together.

    notices: what was left out when the corpus was read, and why, one line each.
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

    def digest(self) -> str:
        """sha256 (hex) of the text and meta of all tasks. Their order and the name of the corpus do not matter."""
        digest = hashlib.sha256()
        for task in sorted([*self.tasks, *self.zero_shot], key=lambda task: task.name):
            for name in SPLITS:
                split: Split | StreamedSplit = getattr(task, name)
                content: list[Any] = [task.name, task.source, task.target, name]
                if isinstance(split, StreamedSplit):
                    content.append(split.sha256)
                else:
                    content += [split.source, split.target, split.meta or None]
                digest.update(json.dumps(content).encode("ascii"))
        return digest.hexdigest()
