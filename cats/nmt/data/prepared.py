"""Prepared folders: their files, and how they are read.

A prepared folder is complete: it can be moved to another machine and trained on there.

    prepared.json           the corpus, the settings and the SHA-256 of the other files; it is written last, so a folder
                            that has it is complete
    tokenizer.model
    train/<task>.*.npy      tokens and offsets, see ``cats.nmt.data.shards``
    text/                   validation and test text in the Moses layout

Every file is compared with its SHA-256 before it is used. Folders of earlier versions have none; they are still read,
and a notice says that they were not verified.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cats.nmt.config.schema import FIELDS
from cats.nmt.data.corpus import Corpus, Split, StreamedSplit, Task
from cats.nmt.data.corpus_files import read_pair
from cats.nmt.data.encode import EncodedCorpus, EncodingSettings
from cats.nmt.data.shards import Shard
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError, unknown
from cats.nmt.files import file_digest, is_cached, read_checked_json

INDEX = "prepared.json"
TOKENIZER = "tokenizer.model"
TRAIN = "train"
TEXT = "text"
FILES = "files"  # the key of {file: its SHA-256} in prepared.json
FORMAT = 1


def is_prepared(folder: Path) -> bool:
    """Whether this is a complete prepared folder."""
    return (folder / INDEX).is_file()


def read_prepared(folder: Path, settings: EncodingSettings, tokenizer: Tokenizer | None = None) -> EncodedCorpus:
    """The tokens of a prepared folder, memory-mapped.

    Args:
        settings: must be those that the folder was made with; only the tasks of ``data.tasks`` are read.
        tokenizer: that of the run, if it has one already.

    Raises:
        UserError: the folder was made with other settings or another tokenizer, or a file is missing or damaged.
    """
    index = read_json(folder / INDEX)
    with _consistent(folder):
        for name, value in settings.values().items():
            there = index["settings"].get(name, FIELDS[name].default)  # a setting may be newer than the folder
            if there != value:
                raise UserError(
                    f"{folder}: prepared with {name}={there}, not {value}; "
                    f"give --set {name}={there}, or {again(folder)}"
                )
        wanted = set(settings.data.tasks)
        entries = [entry for entry in index["tasks"] if not wanted or entry["name"] in wanted]
        names = [entry["name"] for entry in entries]
        verify(folder, index, [TOKENIZER, *(file for name in names for file in token_files(name))])
        own = Tokenizer.load(folder / TOKENIZER, settings.tags)
        if tokenizer is not None and tokenizer.digest() != own.digest():
            raise UserError(f"{folder}: prepared with another tokenizer than that of the run; {again(folder)}")
        shards = {entry["name"]: _open_shard(folder, entry, own.vocab_size, FILES in index) for entry in entries}
        left_out = {entry["name"]: dict(entry["left_out"]) for entry in entries if entry["left_out"]}
    return EncodedCorpus(own, shards, left_out)


def read_prepared_corpus(folder: Path, names: tuple[str, ...] = (), *, quiet: bool = False) -> Corpus:
    """The corpus of a prepared folder. The number of its training pairs is known, but their text is not available.

    Args:
        names: the tasks to read; empty: all.
        quiet: do not say that a folder of an earlier version is not verified.

    Raises:
        UserError: an unknown task, no task with training text, or a file is missing or damaged.
    """
    index = read_json(folder / INDEX)
    if FILES not in index and not quiet:
        say_unverified(folder)
    with _consistent(folder):
        entries = [*index["tasks"], *index["zero_shot"]]
        known = {entry["name"] for entry in entries}
        for name in names:
            if name not in known:
                raise unknown("task", name, sorted(known), where=str(folder))
        wanted = set(names) or known
        tasks = [_read_task(folder, index, entry) for entry in entries if entry["name"] in wanted]
        trained = [task for task in tasks if isinstance(task.train, StreamedSplit)]
        if not trained:
            raise UserError(f"{folder}: there is no training text for {', '.join(names)}")
        zero_shot = [task for task in tasks if not isinstance(task.train, StreamedSplit)]
        return Corpus(index["name"], trained, list(index["notices"]), zero_shot)


@functools.cache
def say_unverified(folder: Path) -> None:
    """Says, once per process, that a folder of an earlier version has no checksums."""
    print(
        f"cats: {folder} was prepared by an earlier version, without checksums: its files are not verified; "
        "prepare the text again to have them verified",
        file=sys.stderr,
    )


def again(folder: Path) -> str:
    """What to do about a folder that cannot be used. One in the cache was not made by the user."""
    return f"remove {folder} and start again" if is_cached(folder) else "prepare the text again"


def verify(folder: Path, index: dict[str, Any], names: list[str]) -> None:
    """Compares files of a prepared folder with their checksums. Folders of earlier versions have none.

    Args:
        index: the content of prepared.json.
        names: the files, relative to the folder.

    Raises:
        UserError: a file was changed, or cannot be read.
    """
    for name in names if FILES in index else ():
        try:
            same = file_digest(folder / name) == index[FILES].get(name)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror}); {again(folder)}") from None
        if not same:
            raise UserError(f"{folder / name}: changed since it was prepared; {again(folder)}")


def token_files(task: str) -> list[str]:
    """The files with the tokens of a task, relative to the folder."""
    return [f"{TRAIN}/{name}" for name in Shard.file_names(task)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a prepared folder.

    Raises:
        UserError: it cannot be read, was changed, or has another format.
    """
    try:
        index = read_checked_json(path, required=FILES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        index = {}
    if index.get("format") != FORMAT:
        raise UserError(f"{path}: damaged or made by another version of cats; remove the folder and start again")
    return index


@contextmanager
def _consistent(folder: Path) -> Iterator[None]:
    """Turns the errors of an index with missing or wrong fields into one line. Only an older index can have them."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / INDEX}: damaged; remove the folder and start again") from error


def _open_shard(folder: Path, entry: dict[str, Any], vocab_size: int, verified: bool) -> Shard:
    """The tokens of a task. verified: their checksums are right; otherwise every token is looked at."""
    name = entry["name"]
    try:
        shard = Shard.open(folder / TRAIN, name)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: the tokens of {name} are missing or damaged; {again(folder)}") from error
    if len(shard) != entry["kept"] or not shard.fits(vocab_size) or not (verified or shard.is_consistent(vocab_size)):
        raise UserError(f"{folder}: the tokens of {name} do not match {INDEX}; {again(folder)}")
    return shard


def _read_task(folder: Path, index: dict[str, Any], entry: dict[str, Any]) -> Task:
    def split(name: str) -> Split:
        stem = f"{TEXT}/{name}.{entry['source']}-{entry['target']}"
        parts = [f"{stem}.{suffix}" for suffix in (entry["source"], entry["target"], "meta")]
        verify(folder, index, [part for part in parts if part in index.get(FILES, ()) or (folder / part).exists()])
        found = read_pair(folder / TEXT, name, entry["source"], entry["target"])
        if len(found) != entry[name]:
            raise UserError(
                f"{folder / TEXT}: {entry['name']} has {len(found)} {name} pairs instead of {entry[name]}; "
                f"{again(folder)}"
            )
        return found

    train: Split | StreamedSplit = Split([], [])
    if "pairs" in entry:  # a zero-shot direction has no training text
        older = f"{index.get('older_digest', index['digest'])} {entry['name']}"
        train = StreamedSplit(entry["pairs"], entry.get("sha256", older), older=older)
    return Task(entry["name"], entry["source"], entry["target"], train, split("valid"), split("test"))
