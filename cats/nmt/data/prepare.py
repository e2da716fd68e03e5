"""Prepares text for training: trains the tokenizer, and encodes the text with several processes into files.

For the files see ``cats.nmt.data.prepared``. If the process is killed, the next call continues: tasks that are done,
and blocks of pairs that are done, are not encoded again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cats.nmt.cores import available_cores
from cats.nmt.data.corpus import Corpus, Split, StreamedSplit, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.data.encode import EncodedCorpus, EncodingSettings, encode_tasks
from cats.nmt.data.encoders import Encoders, block_is_done
from cats.nmt.data.prepared import (
    FILES,
    FORMAT,
    INDEX,
    TEXT,
    TOKENIZER,
    TRAIN,
    is_prepared,
    read_json,
    read_prepared,
    say_unverified,
    token_files,
    verify,
)
from cats.nmt.data.shards import Shard, token_dtype
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.data.vocabulary import train_tokenizer
from cats.nmt.errors import UserError
from cats.nmt.files import (
    atomic_file,
    cache_folder,
    file_digest,
    is_cached,
    locked,
    remove_temporary_files,
    write_checked_json,
)
from cats.nmt.screen import doing

UNFINISHED = "making.json"  # in an unfinished folder: the corpus and the settings that it is made from
BLOCK = 20_000  # pairs that a process encodes at a time
MOST_PROCESSES = 16  # the default maximum: one process reads the text, and cannot feed more encoders than this


def training_tokens(
    corpus: Corpus, settings: EncodingSettings, *, tokenizer: Tokenizer | None = None, quiet: bool = False
) -> EncodedCorpus:
    """The tokens that a run trains on.

    They are read from a prepared folder if ``data.path`` is one. Otherwise a small corpus is encoded in memory, and a
    large one into the cache folder, where later runs find it.

    Args:
        tokenizer: that of the run, if it has one already.

    Raises:
        UserError: a prepared folder was made with other settings, a task has no pair that is short enough, or the disk
            is full.
    """
    folder = Path(settings.data.path)
    if settings.data.path and is_prepared(folder):
        encoded = read_prepared(folder, settings, tokenizer)
    elif any(isinstance(task.train, StreamedSplit) for task in corpus.tasks):
        folder = _cached(corpus, settings, None)
        if tokenizer is not None and not _has_tokenizer(
            folder, tokenizer
        ):  # a resumed run has the tokenizer of the folder
            folder = _cached(corpus, settings, tokenizer)
        if not is_prepared(folder):
            prepare(corpus, settings, folder, tokenizer=tokenizer, quiet=quiet)
        encoded = read_prepared(folder, settings, tokenizer)
    else:
        tokenizer = tokenizer or _new_tokenizer(corpus, settings, quiet=quiet)
        pairs = {task.name: list(task.train) for task in corpus.tasks}
        encoded = encode_tasks(corpus.tasks, pairs, tokenizer, settings.length_filter)
    for task, shard in encoded.shards.items():
        if not len(shard):
            reasons = encoded.left_out.get(task, {})
            raise UserError(
                f"{task}: every training pair is left out ({' and '.join(reasons) or 'empty'}); "
                f"raise {settings.length_filter.advice(reasons)}"
            )
    return encoded


def _new_tokenizer(corpus: Corpus, settings: EncodingSettings, *, quiet: bool) -> Tokenizer:
    doing("training the tokenizer", quiet=quiet)
    return train_tokenizer(corpus, settings.tokenizer)


def prepare(
    corpus: Corpus,
    settings: EncodingSettings,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    processes: int = 0,
    quiet: bool = False,
) -> None:
    """Makes a prepared folder of a corpus, or finishes one. If two processes make the same folder, one of them waits.

    Args:
        folder: new, empty, or left unfinished by a call with the same corpus and settings.
        tokenizer: the one to use; None: train one on the corpus.
        processes: number of encoding processes; 0: one per core, or only the calling one for a small corpus.
        quiet: no progress bar.

    Raises:
        UserError: the folder has other contents or cannot be written, or the disk is full.
    """
    if not corpus.tasks[0].train.readable:
        raise UserError(f"{settings.data.path}: prepared already; give the folder of the text")
    made_with: dict[str, Any] = {"format": FORMAT, "corpus": corpus.digest(), "settings": settings.values()}
    made_with["tokenizer"] = tokenizer and tokenizer.digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        other = "set CATS_CACHE to another" if is_cached(folder) else "choose another folder"
        raise UserError(f"{folder}: cannot be created ({error.strerror}); {other}") from error
    with locked(folder, lambda: print(f"{folder}: waiting for another process that prepares it", file=sys.stderr)):
        remove_temporary_files(folder)
        if not _begin(folder, made_with, corpus):
            return
        begun = read_json(folder / UNFINISHED)
        if FILES in begun:
            verify(folder, begun, [TOKENIZER])
            tokenizer = Tokenizer.load(folder / TOKENIZER, settings.tags)
        else:
            tokenizer = tokenizer or _new_tokenizer(corpus, settings, quiet=quiet)
            tokenizer.save(folder / TOKENIZER)
            write_checked_json(folder / UNFINISHED, {**made_with, FILES: {TOKENIZER: file_digest(folder / TOKENIZER)}})
        pairs = sum(corpus.sizes.values())
        processes = processes or (1 if pairs <= BLOCK else min(MOST_PROCESSES, available_cores()))
        train = folder / TRAIN
        with Encoders(processes, tokenizer, settings.length_filter) as encoders, _progress_bar(pairs, quiet) as bar:
            entries = [_encode_task(task, train, encoders, tokenizer.vocab_size, bar) for task in corpus.tasks]
        _remove_blocks(train)
        shutil.rmtree(folder / TEXT, ignore_errors=True)
        without_train = [dataclasses.replace(task, train=Split([], [])) for task in corpus.tasks]
        write_corpus(dataclasses.replace(corpus, tasks=without_train), folder / TEXT)
        files = {TOKENIZER: file_digest(folder / TOKENIZER)}
        for entry in entries:
            files.update(entry.pop(FILES))
        files.update({f"{TEXT}/{path.name}": file_digest(path) for path in sorted((folder / TEXT).iterdir())})
        index = {
            **made_with,
            FILES: files,
            "name": corpus.name,
            "digest": corpus.digest(),
            "older_digest": corpus.older_digest(),
            "notices": corpus.notices,
            "tasks": entries,
            "zero_shot": [_entry(task) for task in corpus.zero_shot],
        }
        write_checked_json(folder / INDEX, index, indent=1)
        (folder / UNFINISHED).unlink()


def _begin(folder: Path, made_with: dict[str, Any], corpus: Corpus) -> bool:
    """Records which corpus and settings the folder is made from. Returns False if the folder is finished."""
    finished, unfinished = folder / INDEX, folder / UNFINISHED
    if finished.exists() or unfinished.exists():
        there = read_json(finished if finished.exists() else unfinished)
        same = all(there.get(key) == value for key, value in made_with.items() if key != "corpus")
        if not same or not corpus.has_digest(there.get("corpus", "")):
            raise UserError(f"{folder}: prepared from another corpus or with other settings; choose another folder")
        if finished.exists():
            if FILES not in there:
                say_unverified(folder)
            return False
        if there["corpus"] != made_with["corpus"]:
            raise UserError(f"{folder}: begun by an earlier version of cats; remove it and prepare again")
    elif any(folder.iterdir()):
        raise UserError(f"{folder}: the folder is not empty; choose another")
    else:
        write_checked_json(unfinished, made_with)
    (folder / TRAIN).mkdir(exist_ok=True)
    remove_temporary_files(folder / TRAIN)
    return True


def _cached(corpus: Corpus, settings: EncodingSettings, tokenizer: Tokenizer | None) -> Path:
    """The cache folder of a corpus with these settings. tokenizer: None if it is trained on the corpus."""
    made_with = json.dumps([FORMAT, corpus.digest(), settings.values(), tokenizer and tokenizer.digest()])
    return cache_folder() / "prepared" / f"{corpus.name}-{hashlib.sha256(made_with.encode()).hexdigest()[:16]}"


def _has_tokenizer(folder: Path, tokenizer: Tokenizer) -> bool:
    try:
        return (folder / TOKENIZER).read_bytes() == tokenizer.serialized()
    except OSError:
        return False


def _progress_bar(pairs: int, quiet: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=pairs, desc="preparing", unit="pair", unit_scale=True, disable=True if quiet else None, leave=False
    )


def _encode_task(task: Task, folder: Path, encoders: Encoders, vocab_size: int, bar: Any) -> dict[str, Any]:
    """Encodes the blocks that are not encoded yet, and joins all blocks. Returns the task's entry of prepared.json."""
    done = folder / f"{task.name}.json"
    if done.exists() and FILES in (entry := read_json(done)):
        bar.update(len(task.train))
        return entry
    pairs = iter(task.train)
    numbers: list[int] = []
    for number in itertools.count():
        block = list(itertools.islice(pairs, BLOCK))
        if not block:
            break
        numbers.append(number)
        if not block_is_done(folder, f"{task.name}.{number}"):
            encoders.submit(folder, task.name, number, (task.source, task.target), block)
        bar.update(len(block))
    encoders.finish()
    names = [f"{task.name}.{number}" for number in numbers]
    marks = [read_json(folder / f"{name}.json") for name in names]
    _join(folder, names, task.name, marks, vocab_size)
    left_out = Counter[str]()
    for mark in marks:
        left_out.update(mark["left_out"])
    entry = {
        "format": FORMAT,
        **_entry(task),
        "pairs": len(task.train),
        "kept": sum(mark["kept"] for mark in marks),
        "left_out": dict(left_out),
        "sha256": task.train.sha256,
        FILES: {name: file_digest(folder.parent / name) for name in token_files(task.name)},
    }
    write_checked_json(done, entry)
    for name in names:
        for file in (*Shard.file_names(name), f"{name}.json"):
            (folder / file).unlink()
    return entry


def _entry(task: Task) -> dict[str, Any]:
    languages = {"name": task.name, "source": task.source, "target": task.target}
    return {**languages, "valid": len(task.valid), "test": len(task.test)}


def _remove_blocks(folder: Path) -> None:
    """Removes the blocks of finished tasks that a killed process left."""
    for path in folder.iterdir():
        if path.name.partition(".")[2].partition(".")[0].isdecimal():  # <task>.<number>.<part>
            path.unlink()


def _join(folder: Path, names: list[str], task: str, marks: list[dict[str, Any]], vocab_size: int) -> None:
    """Joins the blocks into one shard, reading one block at a time."""
    with atomic_file(folder / f"{task}.tokens.npy") as file:
        _write_header(file, token_dtype(vocab_size), sum(mark["tokens"] for mark in marks))
        for name in names:
            file.write(np.load(folder / f"{name}.tokens.npy", allow_pickle=False).tobytes())
    with atomic_file(folder / f"{task}.offsets.npy") as file:
        _write_header(file, np.int64, 2 * sum(mark["kept"] for mark in marks) + 1)
        file.write(np.zeros(1, dtype=np.int64).tobytes())
        start = 0
        for name, mark in zip(names, marks, strict=True):
            offsets = np.load(folder / f"{name}.offsets.npy", allow_pickle=False)
            file.write((offsets[1:] + start).tobytes())
            start += mark["tokens"]


def _write_header(file: BinaryIO, kind: type[np.generic], count: int) -> None:
    """The start of a .npy file with `count` numbers."""
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, description)
