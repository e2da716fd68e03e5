"""A corpus as a folder of plain files: reading and writing."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from cats.nmt.data import layouts
from cats.nmt.data.corpus import ENGLISH, SPLITS, Corpus, PairsDigest, Split, StreamedSplit, Task
from cats.nmt.data.readers import PairReader
from cats.nmt.errors import UserError, nearest, unknown
from cats.nmt.files import (
    atomic_write,
    cache_folder,
    file_digest,
    read_checked_json,
    read_output,
    write_checked_json,
)

MOST_IN_MEMORY = 64 << 20  # bytes of training files; larger ones are read again on each pass
_SCAN_VERSION = 2  # increase it when the rules for leaving out lines or the digests change


class _Direction(NamedTuple):
    """A translation direction of a folder: the task's name, the pair as it was found, and whether it is swapped."""

    task: str
    pair: tuple[str, str]
    swapped: bool

    @property
    def languages(self) -> tuple[str, str]:
        """The source and target language."""
        return self.pair[::-1] if self.swapped else self.pair


def read_corpus(path: Path, source: str = "en", direction: str = "one-to-many", tasks: Iterable[str] = ()) -> Corpus:
    """Reads a folder of parallel text. For the layouts see ``cats.nmt.data.layouts``.

    A line ends with LF or CRLF, and with nothing else; a byte order mark is removed. Pairs with a blank side or a NUL
    byte are left out. A task without test pairs is trained on, but not scored. ``Corpus.notices`` lists what was left
    out. Tasks are sorted by name. If the training files have more than ``MOST_IN_MEMORY`` bytes together, their text is
    not kept in memory. The numbers that need a pass over it are cached until a file changes.

    Args:
        source: the language that all tasks have in common; "en" is English by any of its codes (``ENGLISH``).
        direction: one-to-many: from `source`. many-to-one: to `source`. many-to-many: both ways for every pair with
            training text, with or without `source`; pairs with test text only are zero-shot directions.
        tasks: the names of the tasks to read; empty: all.

    Raises:
        UserError: no such folder, no known layout, no pair with `source`, no training text, a missing side, different
            line counts, bytes that are not UTF-8, a malformed line, an unknown task.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: {'not a folder' if path.exists() else 'no such folder'}; give a folder of parallel text"
        )
    found = layouts.find(path, source)
    languages = {code for pair in found.pairs for code in pair}
    if source == ENGLISH[0] and source not in languages:
        source = next((name for name in ENGLISH if name in languages), source)
    trained, test_only, skipped = _directions(found, source, direction)
    notices = list(found.notices)
    wanted = set(tasks)
    if wanted:
        known = sorted(each.task for each in [*trained, *test_only])
        for name in wanted.difference(known):
            raise unknown("task", name, known, where=str(path))
        trained, test_only = ([each for each in some if each.task in wanted] for some in (trained, test_only))
        if not trained:
            raise UserError(f"{path}: there is no training text for {', '.join(sorted(wanted))}")
    else:
        notices += skipped
    if not trained:
        raise _nothing_to_train(path, found, source, languages)
    files = {file for each in trained for file in found.pairs[each.pair]["train"].paths}
    in_memory = sum(file.stat().st_size for file in files if file.is_file()) <= MOST_IN_MEMORY
    read: list[Task] = []
    zero_shot: list[Task] = []
    for each in [*trained, *test_only]:
        task, said = _read_task(each, found.pairs[each.pair], in_memory)
        if "train" not in found.pairs[each.pair]:
            zero_shot.append(task)
        elif len(task.train):
            read.append(task)
        else:
            lack = f"the training text of {'-'.join(each.pair)} has no pair with text on both sides"
            if len(trained) == 1:
                raise UserError(f"{path}: {lack}")
            said = [f"{task.name}: left out, {lack}"]
        notices += said
    if not read:
        raise UserError(f"{path}: no training text has a pair with text on both sides")
    if not any(len(task.valid) for task in read):
        notices.append("no task has valid pairs, so the newest model counts as the best")
    return Corpus(path.resolve().name, sorted(read, key=_by_name), notices, sorted(zero_shot, key=_by_name))


def write_corpus(corpus: Corpus, path: Path) -> None:
    """Writes ``{split}.{source}-{target}.{source}``, ``.{target}`` and, if known, ``.meta``: Moses, many pairs.

    Splits without pairs get no files. `path` is created if necessary.

    Raises:
        UserError: `path` is a file or a folder that is not empty, or cannot be written.
        ValueError: a line contains a line break.
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
                    raise ValueError(f"{file}: a line contains a line break")
                atomic_write(file, "".join(f"{line}\n" for line in lines))


def read_pair(folder: Path, split: str, source: str, target: str) -> Split:
    """One split of one task from a folder that ``write_corpus`` made; empty if there are no files.

    Raises:
        UserError: a file cannot be read, or the files do not fit each other.
    """
    paths = [folder / f"{split}.{source}-{target}.{suffix}" for suffix in (source, target, "meta")]
    if not paths[0].exists():
        return Split([], [])
    try:
        columns = [read_output(path) for path in paths if path != paths[2] or path.exists()]
        meta = (
            [(stratum, cluster) for stratum, cluster in (line.split("\t") for line in columns[2])]
            if columns[2:]
            else None
        )
        return Split(columns[0], columns[1], meta)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{paths[0]}: does not fit {paths[1].name}; one of them is damaged") from None


def _by_name(task: Task) -> str:
    return task.name


def _directions(
    found: layouts.Found, source: str, direction: str
) -> tuple[list[_Direction], list[_Direction], list[str]]:
    """The directions to train, those that only have test text, and notices about what is left out."""
    trained: dict[str, _Direction] = {}
    test_only: dict[str, _Direction] = {}
    notices: list[str] = []
    without_source = 0  # pairs with test text only
    # A pair that begins with the source comes first: train.en-az is used, train.az-en is not.
    for pair in sorted(found.pairs, key=lambda pair: (pair[0] != source, pair)):
        splits, name = found.pairs[pair], "-".join(pair)
        if pair[0] == pair[1]:
            if "train" in splits:
                trained[name] = _Direction(name, pair, False)  # language modelling
            continue
        if source not in pair and direction != "many-to-many":
            if "train" in splits:
                notices.append(f"{name}: left out, {source} is not one of its languages")
            without_source += "train" not in splits
            continue
        if "train" not in splits and ("test" not in splits or direction != "many-to-many"):
            notices.append(f"{name}: left out, it has no training text")
            continue
        from_source, to_source = pair[0] != source, pair[0] == source  # whether this direction swaps the pair
        ways = {"one-to-many": [from_source], "many-to-one": [to_source]}.get(direction, [False, True])
        for swapped in ways:
            first, second = pair[::-1] if swapped else pair
            task = second if first in ENGLISH and first == source else f"{first}-{second}"
            if task in trained:
                notices.append(f"{name}: left out, {'-'.join(pair[::-1])} is used")
                break
            (trained if "train" in splits else test_only)[task] = _Direction(task, pair, swapped)
    if without_source:
        left = f"{without_source} pair{'s' if without_source > 1 else ''} of test text without {source} left out"
        notices.append(f"{left}; with data.direction=many-to-many they are scored too")
    return list(trained.values()), [each for name, each in test_only.items() if name not in trained], notices


def _nothing_to_train(path: Path, found: layouts.Found, source: str, languages: Collection[str]) -> UserError:
    names = ", ".join(sorted("-".join(pair) for pair in found.pairs))
    if source in languages:
        return UserError(f"{path}: no training text for {names}; known layouts: {layouts.KNOWN}")
    return UserError(
        f"{path}: no pair has the source language {source}{nearest(source, languages)}; found {names}; set data.source"
    )


def _read_task(direction: _Direction, splits: dict[str, PairReader], in_memory: bool) -> tuple[Task, list[str]]:
    """A task and notices about it. in_memory: the training text is kept, else it is streamed."""
    name, pair = direction.task, "-".join(direction.pair)
    notices: list[str] = []
    small: dict[str, Split] = {}
    for split in SPLITS if in_memory else ("valid", "test"):
        small[split], left_out = Split([], []), Counter[str]()
        if split in splits:
            small[split], left_out = _read_split(splits[split], direction.swapped)
        notices += [f"{pair}: {n} {split} pairs left out, {reason}" for reason, n in left_out.items()]
    train: Split | StreamedSplit
    if in_memory or "train" not in splits:
        train = small.get("train", Split([], []))
        seen = len(set(small["test"]).intersection(train))
    else:
        reader = splits["train"]
        found = _scan(reader, direction.swapped, small["test"], pair)
        train, seen = StreamedSplit(found.pairs, found.sha256, reader, direction.swapped, found.older), found.seen
        notices += [f"{pair}: {n} train pairs left out, {reason}" for reason, n in found.left_out.items()]
    if "train" in splits:
        lacking = {
            "valid": "so it does not count when the best model is chosen",
            "test": "so it is trained on and not scored",
        }
        notices += [f"{name}: no {split} pairs, {so}" for split, so in lacking.items() if not len(small[split])]
        if seen:
            notices.append(f"{name}: {seen} test pairs are in the training text too")
    return Task(name, *direction.languages, train, small["valid"], small["test"]), notices


def _read_split(reader: PairReader, swapped: bool) -> tuple[Split, Counter[str]]:
    """A split, and how many pairs are left out by reason."""
    lines = list(reader.checked(swapped))
    meta = reader.read_meta(len(lines))
    kept = [i for i, (_, reason) in enumerate(lines) if not reason]
    split = Split(
        [lines[i][0][0] for i in kept],
        [lines[i][0][1] for i in kept],
        None if meta is None else [meta[i] for i in kept],
    )
    return split, Counter(reason for _, reason in lines if reason)


@dataclass(frozen=True)
class _Scan:
    """The results of one pass over a training text.

    pairs, sha256, older: see ``StreamedSplit``.
    left_out: how many pairs are left out, by reason.
    seen: how many test pairs it contains.
    """

    pairs: int
    sha256: str
    older: str
    left_out: dict[str, int]
    seen: int


def _scan(reader: PairReader, swapped: bool, test: Split, pair: str) -> _Scan:
    """One pass over a large training text, or the cached results of an earlier one on files with the same content."""
    files = [[file.name, file_digest(file)] for file in reader.paths]  # the name tells how the file is read
    key = hashlib.sha256(json.dumps([_SCAN_VERSION, files, swapped, pair, list(test)]).encode("ascii")).hexdigest()
    cached = cache_folder() / "scans" / f"{key}.json"
    try:
        return _Scan(**read_checked_json(cached, required=True))
    except (OSError, ValueError, TypeError, UserError):  # not there, or damaged
        pass
    digest, older, reasons, seen, wanted = PairsDigest(), hashlib.sha256(), Counter[str](), set(), set(test)
    lines = reader.checked(swapped)
    while block := list(itertools.islice(lines, 10_000)):
        reasons.update(reason for _, reason in block)
        kept = [line for line, reason in block if not reason]
        seen.update(wanted.intersection(kept))
        digest.update(kept)
        older.update(json.dumps(kept).encode("ascii"))
    pairs = reasons.pop("", 0)
    found = _Scan(pairs, digest.hexdigest(), older.hexdigest(), dict(reasons), len(seen))
    with contextlib.suppress(OSError, UserError):  # the cache only saves time
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_checked_json(cached, asdict(found))
    return found
