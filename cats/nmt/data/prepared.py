"""Prepared folders: their files, and how they are read.

A prepared folder is complete: it can be moved to another machine and trained on there.

    prepared.json           the corpus and the settings; it is written last, so a folder that has it is complete
    tokenizer.model
    train/<task>.*.npy      tokens and offsets, see ``cats.nmt.data.shards``
    text/                   validation and test text in the Moses layout
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cats.nmt.config.schema import FIELDS
from cats.nmt.data.corpus import Corpus, Split, StreamedSplit, Task
from cats.nmt.data.corpus_files import read_pair
from cats.nmt.data.encode import EncodedCorpus, EncodingSettings
from cats.nmt.data.shards import Shard
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError, unknown

INDEX = "prepared.json"
TOKENIZER = "tokenizer.model"
TRAIN = "train"
TEXT = "text"
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
    for name, value in settings.values().items():
        there = index["settings"].get(name, FIELDS[name].default)  # a setting may be newer than the folder
        if there != value:
            raise UserError(
                f"{folder}: prepared with {name}={there}, not {value}; "
                f"give --set {name}={there}, or prepare the text again"
            )
    own = Tokenizer.load(folder / TOKENIZER, settings.tags)
    if tokenizer is not None and tokenizer.digest() != own.digest():
        raise UserError(f"{folder}: prepared with another tokenizer than that of the run; prepare the text again")
    wanted = settings.data.tasks
    entries = [entry for entry in index["tasks"] if not wanted or entry["name"] in wanted]
    shards = {}
    for entry in entries:
        name = entry["name"]
        try:
            shards[name] = Shard.open(folder / TRAIN, name)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder}: the tokens of {name} are missing or damaged; prepare the text again") from error
        if len(shards[name]) != entry["kept"] or not shards[name].fits(own.vocab_size):
            raise UserError(f"{folder}: the tokens of {name} do not match {INDEX}; prepare the text again")
    return EncodedCorpus(own, shards, {entry["name"]: entry["left_out"] for entry in entries if entry["left_out"]})


def read_prepared_corpus(folder: Path, names: tuple[str, ...] = ()) -> Corpus:
    """The corpus of a prepared folder. The number of its training pairs is known, but their text is not available.

    Args:
        names: the tasks to read; empty: all.

    Raises:
        UserError: an unknown task, no task with training text, or a file is missing or damaged.
    """
    index = read_json(folder / INDEX)
    tasks = [_read_task(folder / TEXT, entry, index["digest"]) for entry in index["tasks"] + index["zero_shot"]]
    known = [task.name for task in tasks]
    for name in names:
        if name not in known:
            raise unknown("task", name, known, where=str(folder))
    tasks = [task for task in tasks if not names or task.name in names]
    trained = [task for task in tasks if isinstance(task.train, StreamedSplit)]
    if not trained:
        raise UserError(f"{folder}: there is no training text for {', '.join(names)}")
    zero_shot = [task for task in tasks if not isinstance(task.train, StreamedSplit)]
    return Corpus(index["name"], trained, index["notices"], zero_shot)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a prepared folder.

    Raises:
        UserError: it cannot be read, is damaged, or has another format.
    """
    try:
        index = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        index = None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"{path}: damaged or made by another version of cats; remove the folder and prepare again")
    return index


def _read_task(folder: Path, entry: dict[str, Any], digest: str) -> Task:
    def split(name: str) -> Split:
        found = read_pair(folder, name, entry["source"], entry["target"])
        if len(found) != entry[name]:
            raise UserError(
                f"{folder}: {entry['name']} has {len(found)} {name} pairs instead of {entry[name]}; "
                "prepare the text again"
            )
        return found

    train: Split | StreamedSplit = Split([], [])
    if "pairs" in entry:  # a zero-shot direction has no training text
        train = StreamedSplit(entry["pairs"], f"{digest} {entry['name']}")
    return Task(entry["name"], entry["source"], entry["target"], train, split("valid"), split("test"))
