"""Parallel text: what a corpus is, and how it is read from and written to a folder of plain files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path

from cats.nmt.errors import UserError, nearest
from cats.nmt.files import atomic_write

SPLITS = ("train", "valid", "test")
LAYOUTS = (
    "train.en-xx.en with train.en-xx.xx (Moses, any number of pairs), "
    "train.en with train.xx (Moses, one pair), "
    "supervised/en-xx/opus.en-xx-train.en with .xx (OPUS-100)"
)
HEADLINE = "new-pair"

_PAIR = re.compile(r"(?P<split>train|valid|dev|test)\.(?P<pair>[^.]+-[^.]+)\.(?P<suffix>[^.]+)")
_SINGLE = re.compile(r"(?P<split>train|valid|dev|test)\.(?P<suffix>[^.]+)")
_OPUS = re.compile(r"opus\.(?P<pair>[^.]+-[^.]+)-(?P<split>train|dev|test)\.(?P<suffix>[^.]+)")

_Files = dict[str, dict[str, dict[str, Path]]]  # pair -> split as the file has it -> suffix -> file


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

    def rows(self, stratum: str | None) -> list[int]:
        """Indices of the lines in a stratum; None stands for all lines."""
        if stratum is None:
            return list(range(len(self.source)))
        return [i for i, (name, _) in enumerate(self.meta or []) if name == stratum]


@dataclass(frozen=True)
class Task:
    """One translation direction. `name` is the target language if `source` is English, else "source-target"."""

    name: str
    source: str
    target: str
    train: Split
    valid: Split
    test: Split


@dataclass(frozen=True)
class Corpus:
    """The tasks that are trained together. `notices`: what was left out when it was read, and why, one line each."""

    name: str
    tasks: list[Task]
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a corpus needs tasks of different names, got {names}")

    @property
    def sizes(self) -> dict[str, int]:
        """Training pairs by task."""
        return {task.name: len(task.train.source) for task in self.tasks}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Task names under "all", "lores" (fewer training pairs than the tasks' mean) and "hires" (the rest)."""
        sizes = self.sizes
        total = sum(sizes.values())
        low = [name for name, size in sizes.items() if size * len(sizes) < total]
        return {"all": list(sizes), "lores": low, "hires": [name for name in sizes if name not in low]}

    @property
    def headline(self) -> str | None:
        """The stratum that results are reported on: "new-pair" if any test line has it, else None (all lines)."""
        found = any(stratum == HEADLINE for task in self.tasks for stratum, _ in task.test.meta or [])
        return HEADLINE if found else None

    def digest(self) -> str:
        """sha256 (hex) of the text and meta of all tasks, whatever their order and the corpus's name."""
        digest = hashlib.sha256()
        for task in sorted(self.tasks, key=lambda task: task.name):
            for name in SPLITS:
                split: Split = getattr(task, name)
                content = [task.name, task.source, task.target, name, split.source, split.target, split.meta or None]
                digest.update(json.dumps(content).encode("ascii"))
        return digest.hexdigest()


def load(path: Path, source: str = "en") -> Corpus:
    """Read a folder of parallel text in place; each pair of languages with `source` becomes a task from `source`.

    Known layouts, told apart by the files' names:
      - Moses, many pairs: ``{train,valid,test}.en-xx.en`` and ``.xx``; ``.meta`` beside them may hold a line
        "stratum<TAB>cluster" for every pair (see ``Split``);
      - Moses, one pair: ``{train,valid,test}.en`` and ``.xx`` (and ``.meta``);
      - OPUS-100: ``supervised/{x-y}/opus.{x-y}-{train,dev,test}.{x,y}``, from the folder that holds v1.0 or
        supervised, from supervised itself, or from one pair's folder.
    The two languages may stand in either order, and "dev" means "valid".

    Lines end in LF or CRLF, nothing else ends one; a byte order mark is removed. Pairs with a blank side are left
    out. A task without test pairs is trained on and not scored. ``Corpus.notices`` tells what was left out. Tasks
    are sorted by name.

    Raises:
        UserError: no such folder, no known layout, no pair with `source`, a side or all of the training text missing,
            different line counts, bytes that are not UTF-8, a malformed line of meta.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: {'not a folder' if path.exists() else 'no such folder'}; give a folder of parallel text"
        )
    files = _moses(path) or _single(path, source) or _opus(path)
    if not files:
        empty = "the folder is empty" if not any(path.iterdir()) else "no parallel text in this folder"
        raise UserError(f"{path}: {empty}; known layouts: {LAYOUTS}")

    notices: list[str] = []
    tasks: dict[str, Task] = {}
    # A pair that has the source first comes first: train.en-az wins over train.az-en.
    for pair in sorted(files, key=lambda pair: (not pair.startswith(f"{source}-"), pair)):
        target = _other(pair, source)
        if target is None:
            notices.append(f"{pair}: left out, {source} is not one of its languages")
            continue
        name = target if source == "en" else f"{source}-{target}"
        if name in tasks:
            notices.append(f"{pair}: left out, {source}-{target} is there too")
            continue
        splits = {split: _read_split(files[pair], split, pair, source, target, notices) for split in SPLITS}
        if splits["train"] is None:
            notices.append(f"{pair}: left out, it has no training text")
            continue
        task = Task(name, source, target, *(splits[split] or Split([], []) for split in SPLITS))
        if not task.train.source:
            raise UserError(f"{path}: the training text of {pair} has no pair with text on both sides")
        tasks[name] = task
        notices += _remarks(task)
    if not tasks:
        codes = {code for pair in files for code in pair.split("-")}
        if source not in codes:
            raise UserError(
                f"{path}: no pair has the source language {source}{nearest(source, codes)}; "
                f"found {', '.join(sorted(files))}; set data.source"
            )
        raise UserError(f"{path}: no training text for {', '.join(sorted(files))}; known layouts: {LAYOUTS}")
    return Corpus(path.resolve().name, [tasks[name] for name in sorted(tasks)], notices)


def write(corpus: Corpus, path: Path) -> None:
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
    for task in corpus.tasks:
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


def _moses(path: Path) -> _Files:
    files: _Files = {}
    for file in path.iterdir():
        if match := _PAIR.fullmatch(file.name):
            files.setdefault(match["pair"], {}).setdefault(match["split"], {})[match["suffix"]] = file
    return files


def _single(path: Path, source: str) -> _Files:
    splits: dict[str, dict[str, Path]] = {}
    for file in path.iterdir():
        if match := _SINGLE.fullmatch(file.name):
            splits.setdefault(match["split"], {})[match["suffix"]] = file
    languages = set(splits.get("train", {})) - {"meta"}
    if source in languages and len(languages) != 2:
        others = ", ".join(f"train.{suffix}" for suffix in sorted(languages - {source})) or "nothing"
        raise UserError(
            f"{path}: train.{source} needs exactly one other side, found {others}; name pairs train.en-xx.xx"
        )
    return {"-".join(sorted(languages)): splits} if len(languages) == 2 else {}


def _opus(path: Path) -> _Files:
    files: _Files = {}
    for folder in ("", "supervised", "v1.0/supervised"):
        for file in [*path.glob(f"{folder}/opus.*".lstrip("/")), *path.glob(f"{folder}/*/opus.*".lstrip("/"))]:
            if match := _OPUS.fullmatch(file.name):
                files.setdefault(match["pair"], {}).setdefault(match["split"], {})[match["suffix"]] = file
    return files


def _other(pair: str, language: str) -> str | None:
    """The language that a pair such as "en-az" or "az-en" has beside `language`; a code may have hyphens itself."""
    if pair.startswith(f"{language}-"):
        return pair.removeprefix(f"{language}-")
    return pair.removesuffix(f"-{language}") if pair.endswith(f"-{language}") else None


def _read_split(
    files: dict[str, dict[str, Path]], split: str, pair: str, source: str, target: str, notices: list[str]
) -> Split | None:
    """One split of one pair, None if it has no files."""
    found = {name: files[name] for name in (split, *(["dev"] if split == "valid" else [])) if name in files}
    if len(found) > 1:
        notices.append(f"{pair}: its dev files are left out, it has valid files too")
    sides = next(iter(found.values()), {})
    if source not in sides and target not in sides:
        return None
    for language, other in ((source, target), (target, source)):
        if language not in sides:
            there = sides[other]
            missing = there.with_name(there.name.removesuffix(other) + language)
            raise UserError(f"{missing}: no such file, but {there.name} is there; add it or remove the other side")
    columns = [_read_lines(sides[source]), _read_lines(sides[target])]
    _check_counts(sides[source], columns[0], sides[target], columns[1])
    meta = None
    if "meta" in sides:
        meta = _read_meta(sides["meta"])
        _check_counts(sides["meta"], meta, sides[source], columns[0])
    kept = [i for i, pair_of_lines in enumerate(zip(*columns, strict=True)) if all(map(str.strip, pair_of_lines))]
    if len(kept) < len(columns[0]):
        notices.append(f"{pair}: {len(columns[0]) - len(kept)} {split} pairs left out, a side is blank")
    return Split(
        [columns[0][i] for i in kept], [columns[1][i] for i in kept], None if meta is None else [meta[i] for i in kept]
    )


def _read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file. Only LF and CRLF end a line: U+2028, U+0085 and their like are text."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8; convert the file, for example with iconv") from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _read_meta(file: Path) -> list[tuple[str, str]]:
    meta = []
    for number, line in enumerate(_read_lines(file), start=1):
        match line.split("\t"):
            case [stratum, cluster]:
                meta.append((stratum, cluster))
            case columns:
                raise UserError(f"{file}, line {number}: {len(columns)} columns; must be stratum, a tab, cluster")
    return meta


def _check_counts(file: Path, lines: Sized, other_file: Path, other_lines: Sized) -> None:
    if len(lines) != len(other_lines):
        raise UserError(
            f"{file} has {len(lines)} lines, {other_file.name} has {len(other_lines)}; "
            "line i of one must belong to line i of the other"
        )


def _remarks(task: Task) -> list[str]:
    """What somebody who reads this task's scores should know."""
    remarks = [f"{task.name}: no {split} pairs" for split in ("valid", "test") if not getattr(task, split).source]
    if not task.test.source:
        remarks[-1] += ", so it is trained on and not scored"
    test = set(zip(task.test.source, task.test.target, strict=True))
    seen = test.intersection(zip(task.train.source, task.train.target, strict=True))
    if seen:
        remarks.append(f"{task.name}: {len(seen)} test pairs stand in the training text too")
    return remarks
