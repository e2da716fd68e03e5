"""Parallel text: what a corpus is, and how it is read from and written to a folder of plain files."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cats.nmt.config.schema import Evaluate
from cats.nmt.data import layouts
from cats.nmt.data.groups import groups
from cats.nmt.errors import UserError, nearest
from cats.nmt.files import atomic_write, cache_folder

SPLITS = ("train", "valid", "test")
HEADLINE = "new-pair"
ENGLISH = ("en", "eng", "en_XX", "eng_Latn")  # the names it has in public corpora; "en" stands for any of them
_SCAN = 1  # to be raised when what is left out of a text changes
_SCANNED = {"pairs", "sha256", "left_out", "seen"}
MOST_IN_MEMORY = 64 << 20  # bytes of training files; more is read again whenever it is needed


@dataclass(frozen=True)
class Split:
    """Line i of `source` is translated by line i of `target`.

    meta: (stratum, cluster) of every line: the stratum a line is scored in, and the unit that a bootstrap resamples
    (the template, or the English sentence it came from). None where nothing is known.
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
        """Indices of the lines in a stratum; None stands for all lines."""
        if stratum is None:
            return list(range(len(self.source)))
        return [i for i, (name, _) in enumerate(self.meta or []) if name == stratum]


@dataclass(frozen=True)
class Text:
    """Training text that is too long to be held: as many (source, target) as `pairs`, read from its files on each pass.

    sha256: of its content, hexadecimal. texts: None where only the prepared tokens are at hand.
    """

    pairs: int
    sha256: str
    texts: layouts.Texts | None = None
    flipped: bool = False  # the files' second language is the source

    @property
    def readable(self) -> bool:
        return self.texts is not None

    def __len__(self) -> int:
        return self.pairs

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if self.texts is None:
            raise ValueError("this training text is prepared: its lines are not here")
        return (pair for pair, reason in _sifted(self.texts, self.flipped) if not reason)


@dataclass(frozen=True)
class Task:
    """One translation direction. `name` is the target language if `source` is English, else "source-target"."""

    name: str
    source: str
    target: str
    train: Split | Text
    valid: Split
    test: Split


@dataclass(frozen=True)
class Corpus:
    """The tasks that are trained together. `notices`: what was left out when it was read, and why, one line each.

    zero_shot: directions that have test lines and no training text.
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
        """Training pairs by task."""
        return {task.name: len(task.train) for task in self.tasks}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Task names under "all", "lores" (fewer training pairs than the tasks' mean) and "hires" (the rest)."""
        return groups(self.sizes, Evaluate())

    @property
    def headline(self) -> str | None:
        """The stratum that results are reported on: "new-pair" if any test line has it, else None (all lines)."""
        found = any(stratum == HEADLINE for task in self.tasks for stratum, _ in task.test.meta or [])
        return HEADLINE if found else None

    def digest(self) -> str:
        """sha256 (hex) of the text and meta of all tasks, whatever their order and the corpus's name."""
        digest = hashlib.sha256()
        for task in sorted([*self.tasks, *self.zero_shot], key=lambda task: task.name):
            for name in SPLITS:
                split: Split | Text = getattr(task, name)
                content: list[Any] = [task.name, task.source, task.target, name]
                if isinstance(split, Text):
                    content.append(split.sha256)
                else:
                    content += [split.source, split.target, split.meta or None]
                digest.update(json.dumps(content).encode("ascii"))
        return digest.hexdigest()


def read_corpus(path: Path, source: str = "en", direction: str = "one-to-many", tasks: Iterable[str] = ()) -> Corpus:
    """Read a folder of parallel text in place. For the layouts see ``cats.nmt.data.layouts``.

    Lines end in LF or CRLF, nothing else ends one; a byte order mark is removed. Pairs with a blank side or a NUL byte
    are left out. A task without test pairs is trained on and not scored. ``Corpus.notices`` tells what was left out.
    Tasks are sorted by name. Of training files of more than ``MOST_IN_MEMORY`` bytes in all, the text is not kept, and
    the numbers that need a pass over it are remembered in the cache folder until a file changes.

    Args:
        source: the language that all tasks have in common; "en" is English by any of its names (``ENGLISH``).
        direction: one-to-many: from `source`; many-to-one: to `source`; many-to-many: both ways for every pair that has
            training text, with or without `source`, and test-only pairs as zero-shot directions.
        tasks: the names of those to take; none stands for all.

    Raises:
        UserError: no such folder, no known layout, no pair with `source`, a side or all of the training text missing,
            different line counts, bytes that are not UTF-8, a malformed line, an unknown task.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: {'not a folder' if path.exists() else 'no such folder'}; give a folder of parallel text"
        )
    codes: set[str] = set()
    found = layouts.find(path, source)
    for pair in found.pairs:
        codes.update(pair)
    if source == ENGLISH[0] and source not in codes:
        source = next((name for name in ENGLISH if name in codes), source)
    notices = list(found.notices)
    wanted = set(tasks)
    skipped: list[str] = []
    chosen, tests = _directions(found, source, direction, skipped)
    if wanted:
        for name in wanted - {name for name, _, _ in [*chosen, *tests]}:
            known = sorted(name for name, _, _ in [*chosen, *tests])
            raise UserError(f"{path}: unknown task {name}{nearest(name, known)}; known: {', '.join(known)}")
        chosen, tests = ([c for c in some if c[0] in wanted] for some in (chosen, tests))
        if not chosen:
            raise UserError(f"{path}: there is no training text for {', '.join(sorted(wanted))}")
    else:
        notices += skipped
    if not chosen:
        if source not in codes:
            raise UserError(
                f"{path}: no pair has the source language {source}{nearest(source, codes)}; "
                f"found {', '.join(sorted('-'.join(pair) for pair in found.pairs))}; set data.source"
            )
        names = ", ".join(sorted("-".join(pair) for pair in found.pairs))
        raise UserError(f"{path}: no training text for {names}; known layouts: {layouts.KNOWN}")
    files = {file for _, pair, _ in chosen for file in found.pairs[pair]["train"].paths}
    in_memory = sum(file.stat().st_size for file in files if file.is_file()) <= MOST_IN_MEMORY
    read: list[Task] = []
    zero_shot: list[Task] = []
    for name, pair, flipped in [*chosen, *tests]:
        splits = found.pairs[pair]
        said: list[str] = []
        small = {
            split: _read(splits[split], flipped, f"{'-'.join(pair)}: {{}} {split} pairs left out", said)
            if split in splits
            else Split([], [])
            for split in SPLITS
            if split != "train" or in_memory
        }
        train: Split | Text
        if in_memory or "train" not in splits:
            train = small.get("train", Split([], []))
            seen = len(set(small["test"]).intersection(train))
        else:
            train, seen = _scan(splits["train"], flipped, small["test"], "-".join(pair), said)
        if "train" in splits:
            if not len(train):
                lack = f"the training text of {'-'.join(pair)} has no pair with text on both sides"
                if len(chosen) == 1:
                    raise UserError(f"{path}: {lack}")
                notices.append(f"{name}: left out, {lack}")
                continue
            said += [f"{name}: no {split} pairs" for split in ("valid", "test") if not len(small[split])]
            if not len(small["test"]):
                said[-1] += ", so it is trained on and not scored"
            if seen:
                said.append(f"{name}: {seen} test pairs stand in the training text too")
        notices += said
        languages = pair[::-1] if flipped else pair
        task = Task(name, *languages, train, small["valid"], small["test"])
        (read if "train" in splits else zero_shot).append(task)
    if not read:
        raise UserError(f"{path}: no training text has a pair with text on both sides")
    return Corpus(path.resolve().name, sorted(read, key=_by_name), notices, sorted(zero_shot, key=_by_name))


def write_corpus(corpus: Corpus, path: Path) -> None:
    """Write ``{split}.{source}-{target}.{source}``, ``.{target}`` and, where known, ``.meta``: Moses, many pairs.

    Splits without pairs get no files. `path` is created if need be.

    Raises:
        UserError: `path` is a file or a folder with something in it, or cannot be written.
        ValueError: a line has a line break in it.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: not a folder; choose another")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path}: the folder is not empty; choose another")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created ({error.strerror}); choose another folder") from error
    for task in [*corpus.tasks, *corpus.zero_shot]:
        for name in SPLITS:
            split: Split = getattr(task, name)
            if not split.source:
                continue
            columns = {task.source: split.source, task.target: split.target}
            if split.meta is not None:
                columns["meta"] = [f"{stratum}\t{cluster}" for stratum, cluster in split.meta]
            for suffix, lines in columns.items():
                file = path / f"{name}.{task.source}-{task.target}.{suffix}"
                if any("\n" in line for line in lines):
                    raise ValueError(f"{file}: a line has a line break in it")
                atomic_write(file, "".join(f"{line}\n" for line in lines))


def read_pair(folder: Path, split: str, source: str, target: str) -> Split:
    """One split of one task from a folder that ``write_corpus`` made, empty where it has no files."""
    first, second, meta = (folder / f"{split}.{source}-{target}.{suffix}" for suffix in (source, target, "meta"))
    if not first.exists():
        return Split([], [])
    return _read(layouts.two_files(first, second, meta if meta.exists() else None), False, "", [])


def _by_name(task: Task) -> str:
    return task.name


_Direction = tuple[str, tuple[str, str], bool]  # the task's name, the pair as it was found, and whether it is turned


def _directions(
    found: layouts.Found, source: str, direction: str, notices: list[str]
) -> tuple[list[_Direction], list[_Direction]]:
    """The tasks to train, and those there is only test text for."""
    chosen: dict[str, _Direction] = {}
    tests: dict[str, _Direction] = {}
    silent = 0
    # A pair that has the source first comes first: train.en-az wins over train.az-en.
    for pair in sorted(found.pairs, key=lambda pair: (pair[0] != source, pair)):
        splits, name = found.pairs[pair], "-".join(pair)
        if source not in pair and direction != "many-to-many":
            if "train" in splits:
                notices.append(f"{name}: left out, {source} is not one of its languages")
            silent += "train" not in splits
            continue
        if "train" not in splits and ("test" not in splits or direction != "many-to-many"):
            notices.append(f"{name}: left out, it has no training text")
            continue
        ways = [pair[0] != source, pair[0] == source]  # turned, for: from the source, to the source
        for flipped in {"one-to-many": ways[:1], "many-to-one": ways[1:]}.get(direction, [False, True]):
            first, second = pair[::-1] if flipped else pair
            task = second if first in ENGLISH and first == source else f"{first}-{second}"
            kind = chosen if "train" in splits else tests
            if task in chosen:
                notices.append(f"{name}: left out, {'-'.join(pair[::-1])} is there too")
                break
            kind[task] = (task, pair, flipped)
    if silent:
        left = f"{silent} pair{'s' if silent > 1 else ''} left out, test text without {source}"
        notices.append(f"{left}; with data.direction=many-to-many they are scored too")
    return list(chosen.values()), [task for name, task in tests.items() if name not in chosen]


_Sifted = tuple[tuple[str, str], str]


def _sifted(texts: layouts.Texts, flipped: bool) -> Iterator[_Sifted]:
    """((source, target), why it is left out or "") of every line."""
    for first, second in texts.read():
        reason = ""
        if not first.strip() or not second.strip():
            reason = "a side is blank"
        elif "\0" in first or "\0" in second:
            reason = "a NUL byte is in them"
        yield ((second, first) if flipped else (first, second)), reason


def _read(texts: layouts.Texts, flipped: bool, notice: str, notices: list[str]) -> Split:
    lines = list(_sifted(texts, flipped))
    meta = layouts.read_meta(texts, len(lines)) if texts.meta else None
    notices += [f"{notice.format(n)}, {reason}" for reason, n in Counter(r for _, r in lines if r).items()]
    kept = [i for i, (_, reason) in enumerate(lines) if not reason]
    return Split(
        [lines[i][0][0] for i in kept],
        [lines[i][0][1] for i in kept],
        None if meta is None else [meta[i] for i in kept],
    )


def _scan(texts: layouts.Texts, flipped: bool, test: Split, pair: str, notices: list[str]) -> tuple[Text, int]:
    """One pass over a long training text, or what an earlier one found: its Text, and how many test pairs it holds."""
    state = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in texts.paths]
    key = hashlib.sha256(json.dumps([_SCAN, state, flipped, pair, list(test)]).encode("ascii")).hexdigest()
    memo = cache_folder() / "scans" / f"{key}.json"
    try:
        known = json.loads(memo.read_text("utf-8"))
        known = known if isinstance(known, dict) and known.keys() == _SCANNED else None
    except (OSError, ValueError):
        known = None
    if known is None:
        digest, reasons, seen, wanted = hashlib.sha256(), Counter[str](), set(), set(test)
        lines = _sifted(texts, flipped)
        while block := list(itertools.islice(lines, 10_000)):
            reasons.update(reason for _, reason in block)
            kept = [line for line, reason in block if not reason]
            seen.update(wanted.intersection(kept))
            digest.update(json.dumps(kept).encode("ascii"))
        pairs = reasons.pop("", 0)
        known = {"pairs": pairs, "sha256": digest.hexdigest(), "left_out": dict(reasons), "seen": len(seen)}
        with contextlib.suppress(OSError, UserError):  # it would only have saved time
            memo.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(memo, json.dumps(known))
    notices += [f"{pair}: {n} train pairs left out, {reason}" for reason, n in known["left_out"].items()]
    return Text(known["pairs"], known["sha256"], texts, flipped), known["seen"]
