"""From text to tokens, once: the tokenizer is trained, the text encoded by several processes, the tokens kept in files.

A prepared folder is complete, it can be moved to another machine and trained on there:

  prepared.json           what it was made of and with, written last: where it stands, the rest is whole
  tokenizer.model
  train/<task>.*.npy      tokens and offsets, see ``cats.nmt.data.shards``
  text/                   validation and test text, Moses pairs

Killed while it is made, it goes on where it was: finished tasks and blocks of pairs are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Set
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cats.nmt.config.schema import FIELDS, Config
from cats.nmt.data.corpus import Corpus, Split, Task, Text, read_pair, write_corpus
from cats.nmt.data.sampler import temperature_probabilities
from cats.nmt.data.shards import LengthFilter, Shard, encode_pairs, token_dtype
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError, nearest
from cats.nmt.files import atomic_file, atomic_write, cache_folder, locked, remove_strays

INDEX = "prepared.json"
FORMAT = 1
BLOCK = 20_000  # pairs that one process encodes at a time
MOST_PROCESSES = 16  # by themselves: this one, which reads, could not feed more


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Tokens of a corpus: in memory, or mapped. left_out: {task: {reason: pairs}}."""

    tokenizer: Tokenizer
    shards: dict[str, Shard]
    left_out: dict[str, dict[str, int]]


def is_prepared(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def tags(config: Config) -> Tags:
    return Tags(config.tokenizer.source_tag, config.tokenizer.target_tag, config.tokenizer.tag_of)


def limits(config: Config) -> LengthFilter:
    return LengthFilter(config.model.max_length, config.data.max_ratio)


def vocabulary_text(corpus: Corpus, temperature: float, most: int) -> list[str]:
    """Lines for the subword model: every source sentence once; targets repeated, for small languages' sake.

    A task's share of the target lines is ~ pairs^(1/temperature). Of a corpus of more than `most` pairs a task's lines
    are thinned out evenly instead, and there are about `most` sources and as many targets.
    """
    total = sum(corpus.sizes.values())
    sources: set[str] = set()
    targets: list[str] = []
    for task in corpus.tasks:
        count = math.ceil(min(total, most) * temperature_probabilities(corpus.sizes, temperature)[task.name])
        step = max(1, len(task.train) // count) if total > most else 1
        chosen = list(itertools.islice(task.train, 0, None, step))
        sources.update(line for line, _ in chosen)
        targets += itertools.islice(itertools.cycle(line for _, line in chosen), count)
    return [*sorted(sources), *targets]


def train_tokenizer(corpus: Corpus, config: Config) -> Tokenizer:
    """The tokenizer of a corpus, with a tag for every target language, and every source language if they have one."""
    settings, languages = config.tokenizer, tagged(corpus, config)
    if not settings.per_language:
        text = vocabulary_text(corpus, settings.temperature, settings.most_pairs)
        return _trained(text, languages, config)
    return Tokenizer.union(language_models(corpus, config, set(), languages), languages, tags(config))


def tagged(corpus: Corpus, config: Config) -> list[str]:
    """The languages of a corpus that need tags."""
    tasks = [*corpus.tasks, *corpus.zero_shot]
    return sorted(
        {task.target for task in tasks} | {task.source for task in tasks if config.tokenizer.tag_of == "source"}
    )


def language_models(corpus: Corpus, config: Config, known: Set[str], languages: list[str]) -> dict[str, Tokenizer]:
    """{language: a tokenizer of its own} for every language of a corpus but the known ones; languages: with tags."""
    result = {}
    for language in sorted({name for task in corpus.tasks for name in (task.source, task.target)} - known):
        try:
            result[language] = _trained(
                _language_text(corpus, language, config.tokenizer.most_pairs), languages, config
            )
        except UserError as error:
            raise UserError(f"{language}: {error}") from None
    return result


def _trained(text: list[str], languages: list[str], config: Config) -> Tokenizer:
    settings = config.tokenizer
    return Tokenizer.train(text, languages, settings.vocab_size, tags(config), coverage=settings.character_coverage)


def _language_text(corpus: Corpus, language: str, most: int) -> list[str]:
    """All different training lines of a language; of more than `most` pairs in all, about so many, evenly taken."""
    tasks = [task for task in corpus.tasks if language in (task.source, task.target)]
    step = max(1, math.ceil(sum(len(task.train) for task in tasks) / most))
    lines: set[str] = set()
    for task in tasks:
        side = int(task.target == language)
        lines.update(pair[side] for pair in itertools.islice(task.train, 0, None, step))
    return sorted(lines)


def training_tokens(
    corpus: Corpus, config: Config, *, tokenizer: Tokenizer | None = None, quiet: bool = False
) -> Prepared:
    """What a run trains on: a prepared folder's tokens, a small corpus encoded now, a large one from the cache folder.

    tokenizer: that of the run, where it has one already.

    Raises:
        UserError: a prepared folder made with other settings, no pair of a task within the limits, a full disk.
    """
    folder = Path(config.data.path)
    if config.data.path and is_prepared(folder):
        prepared = load(folder, config, tokenizer)
    elif any(isinstance(task.train, Text) for task in corpus.tasks):
        folder = _cached(corpus, config, None)
        if tokenizer is not None and not _has_tokenizer(folder, tokenizer):  # a run that goes on has it from there
            folder = _cached(corpus, config, tokenizer)
        if not is_prepared(folder):
            prepare(corpus, config, folder, tokenizer=tokenizer, quiet=quiet)
        prepared = load(folder, config, tokenizer)
    else:
        tokenizer = tokenizer or train_tokenizer(corpus, config)
        prepared = in_memory(tokenizer, corpus, config, {task.name: list(task.train) for task in corpus.tasks})
    for task, shard in prepared.shards.items():
        if not len(shard):
            reasons = " and ".join(prepared.left_out.get(task, {"empty": 0}))
            raise UserError(f"{task}: every training pair is left out ({reasons}); raise model.max_length")
    return prepared


def in_memory(
    tokenizer: Tokenizer, corpus: Corpus, config: Config, pairs: dict[str, list[tuple[str, str]]]
) -> Prepared:
    """The tokens of some pairs of every task, encoded now."""
    found = {t.name: encode_pairs(pairs[t.name], tokenizer, (t.source, t.target), limits(config)) for t in corpus.tasks}
    return Prepared(
        tokenizer,
        {task: shard for task, (shard, _) in found.items()},
        {task: dict(left_out) for task, (_, left_out) in found.items() if left_out},
    )


def _cached(corpus: Corpus, config: Config, tokenizer: Tokenizer | None) -> Path:
    """The folder in the cache for a corpus, settings, and a tokenizer that is not trained on the corpus."""
    made_with = json.dumps([FORMAT, corpus.digest(), _made_with(config), tokenizer and tokenizer.digest()])
    return cache_folder() / "prepared" / f"{corpus.name}-{hashlib.sha256(made_with.encode()).hexdigest()[:16]}"


def _has_tokenizer(folder: Path, tokenizer: Tokenizer) -> bool:
    try:
        return (folder / "tokenizer.model").read_bytes() == tokenizer.serialized()
    except OSError:
        return False


def prepare(
    corpus: Corpus,
    config: Config,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    processes: int = 0,
    quiet: bool = False,
) -> None:
    """Make a prepared folder of a corpus, or go on making it. Two processes at a time take turns.

    Args:
        config: its sections tokenizer and data, and model.max_length.
        folder: new, empty, or left behind by an interrupted call with the same corpus and settings.
        tokenizer: used instead of a newly trained one.
        processes: that encode; 0: one a core, or none beside this one for a small corpus.
        quiet: no progress bar.

    Raises:
        UserError: the folder holds something else, cannot be written, or the disk is full.
    """
    if not corpus.tasks[0].train.readable:
        raise UserError(f"{config.data.path}: prepared already; give the folder of the text")
    made_with = {"format": FORMAT, "corpus": corpus.digest(), "settings": _made_with(config)}
    made_with["tokenizer"] = tokenizer and tokenizer.digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        other = "set CATS_CACHE to another" if cache_folder() in folder.parents else "choose another folder"
        raise UserError(f"{folder}: cannot be created ({error.strerror}); {other}") from error
    with locked(folder, lambda: print(f"{folder}: waiting for another process that prepares it", file=sys.stderr)):
        remove_strays(folder)
        begun = folder / "making.json"
        if (folder / INDEX).exists() or begun.exists():
            there = _read_json(folder / INDEX if (folder / INDEX).exists() else begun)
            if {key: there.get(key) for key in made_with} != made_with:
                raise UserError(f"{folder}: prepared from another corpus or with other settings; choose another folder")
            if (folder / INDEX).exists():
                return
        elif any(folder.iterdir()):
            raise UserError(f"{folder}: the folder is not empty; choose another")
        atomic_write(begun, json.dumps(made_with))
        (folder / "train").mkdir(exist_ok=True)
        remove_strays(folder / "train")
        if (folder / "tokenizer.model").exists():
            tokenizer = Tokenizer.load(folder / "tokenizer.model", tags(config))
        else:
            tokenizer = tokenizer or train_tokenizer(corpus, config)
            tokenizer.save(folder / "tokenizer.model")
        pairs = sum(corpus.sizes.values())
        processes = processes or (1 if pairs <= BLOCK else min(MOST_PROCESSES, _cores()))
        with _Encoders(processes, tokenizer, limits(config)) as encoders, _bar(pairs, quiet) as bar:
            entries = [
                _prepare_task(task, folder / "train", encoders, tokenizer.vocab_size, bar) for task in corpus.tasks
            ]
        shutil.rmtree(folder / "text", ignore_errors=True)
        empty = Split([], [])
        write_corpus(
            dataclasses.replace(corpus, tasks=[dataclasses.replace(task, train=empty) for task in corpus.tasks]),
            folder / "text",
        )
        index = {
            **made_with,
            "name": corpus.name,
            "digest": corpus.digest(),
            "notices": corpus.notices,
            "tasks": entries,
            "zero_shot": [_entry(task) for task in corpus.zero_shot],
        }
        atomic_write(folder / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
        begun.unlink()


def load(folder: Path, config: Config, tokenizer: Tokenizer | None = None) -> Prepared:
    """The tokens of a prepared folder.

    Raises:
        UserError: it was made with other settings or another tokenizer, or a file is missing or damaged.
    """
    index = _read_json(folder / INDEX)
    for name, value in _made_with(config).items():
        there = index["settings"].get(name, FIELDS[name].default)  # a setting that is younger than the folder
        if there != value:
            raise UserError(
                f"{folder}: prepared with {name}={there}, not {value}; "
                f"give --set {name}={there}, or prepare the text again"
            )
    own = Tokenizer.load(folder / "tokenizer.model", tags(config))
    if tokenizer is not None and tokenizer.digest() != own.digest():
        raise UserError(f"{folder}: prepared with another tokenizer than that of the run; prepare the text again")
    tasks = [entry for entry in index["tasks"] if not config.data.tasks or entry["name"] in config.data.tasks]
    shards = {}
    for entry in tasks:
        try:
            shards[entry["name"]] = Shard.open(folder / "train", entry["name"])
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder}: the tokens of {entry['name']} are missing or damaged; prepare again") from error
        if len(shards[entry["name"]]) != entry["kept"] or not shards[entry["name"]].fits(own.vocab_size):
            raise UserError(f"{folder}: the tokens of {entry['name']} are not those of {INDEX}; prepare again")
    return Prepared(own, shards, {entry["name"]: entry["left_out"] for entry in tasks if entry["left_out"]})


def load_corpus(folder: Path, names: tuple[str, ...] = ()) -> Corpus:
    """The corpus that a prepared folder was made of; its training text can be counted, not read."""
    index = _read_json(folder / INDEX)
    tasks = [_read_task(folder / "text", entry, index["digest"]) for entry in index["tasks"] + index["zero_shot"]]
    known = [task.name for task in tasks]
    for name in names:
        if name not in known:
            raise UserError(f"{folder}: unknown task {name}{nearest(name, known)}; known: {', '.join(known)}")
    tasks = [task for task in tasks if not names or task.name in names]
    trained = [task for task in tasks if isinstance(task.train, Text)]
    if not trained:
        raise UserError(f"{folder}: there is no training text for {', '.join(names)}")
    return Corpus(
        index["name"],
        trained,
        index["notices"],
        [task for task in tasks if not isinstance(task.train, Text)],
    )


def _made_with(config: Config) -> dict[str, Any]:
    """The settings that the tokens depend on."""
    tokenizer = dataclasses.asdict(config.tokenizer)
    del tokenizer["target_tag"]  # stands in no side's length
    return {
        **{f"tokenizer.{name}": value for name, value in tokenizer.items()},
        "model.max_length": config.model.max_length,
        **{f"data.{name}": getattr(config.data, name) for name in ("source", "direction", "max_ratio")},
    }


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_json(path: Path) -> dict[str, Any]:
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
                f"{folder}: {entry['name']} has {len(found)} {name} pairs instead of {entry[name]}; prepare again"
            )
        return found

    train: Split | Text = Split([], [])
    if "pairs" in entry:
        train = Text(entry["pairs"], f"{digest} {entry['name']}")
    return Task(entry["name"], entry["source"], entry["target"], train, split("valid"), split("test"))


def _bar(pairs: int, quiet: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=pairs, desc="preparing", unit="pair", unit_scale=True, disable=True if quiet else None, leave=False
    )


def _prepare_task(task: Task, folder: Path, encoders: _Encoders, vocab_size: int, bar: Any) -> dict[str, Any]:
    """Encodes what is not encoded yet, and joins the blocks; the entry of prepared.json."""
    done = folder / f"{task.name}.json"
    if done.exists():
        bar.update(len(task.train))
        _remove_blocks(folder, task.name)
        return _read_json(done)
    blocks = iter(task.train)
    numbers: list[int] = []
    for number in itertools.count():
        block = list(itertools.islice(blocks, BLOCK))
        if not block:
            break
        numbers.append(number)
        if not (folder / f"{task.name}.{number}.json").exists():
            encoders.submit(folder, task.name, number, (task.source, task.target), block)
        bar.update(len(block))
    encoders.finish()
    names = [f"{task.name}.{number}" for number in numbers]
    marks = [_read_json(folder / f"{name}.json") for name in names]
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
    }
    atomic_write(done, json.dumps(entry))
    _remove_blocks(folder, task.name)
    return entry


def _entry(task: Task) -> dict[str, Any]:
    languages = {"name": task.name, "source": task.source, "target": task.target}
    return {**languages, "valid": len(task.valid), "test": len(task.test)}


def _remove_blocks(folder: Path, task: str) -> None:
    for path in folder.glob(f"{task}.*"):
        if path.name.removeprefix(f"{task}.").partition(".")[0].isdecimal():
            path.unlink(missing_ok=True)


def _join(folder: Path, names: list[str], task: str, marks: list[dict[str, Any]], vocab_size: int) -> None:
    """One shard of the blocks, read and copied one after the other."""
    with atomic_file(folder / f"{task}.tokens.npy") as file:
        _header(file, token_dtype(vocab_size), sum(mark["tokens"] for mark in marks))
        for name in names:
            file.write(np.load(folder / f"{name}.tokens.npy", allow_pickle=False).tobytes())
    with atomic_file(folder / f"{task}.offsets.npy") as file:
        _header(file, np.int64, 2 * sum(mark["kept"] for mark in marks) + 1)
        file.write(np.zeros(1, dtype=np.int64).tobytes())
        start = 0
        for name, mark in zip(names, marks, strict=True):
            offsets = np.load(folder / f"{name}.offsets.npy", allow_pickle=False)
            file.write((offsets[1:] + start).tobytes())
            start += mark["tokens"]


def _header(file: BinaryIO, kind: type[np.generic], count: int) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, description)


class _Encoders:
    """Processes that encode blocks into files, with few blocks waiting; with one process, this one does it."""

    def __init__(self, processes: int, tokenizer: Tokenizer, limits: LengthFilter) -> None:
        self.processes, self.tokenizer, self.limits = processes, tokenizer, limits
        self.waiting: deque[Future[None]] = deque()

    def __enter__(self) -> _Encoders:
        self.pool = None
        if self.processes > 1:
            # Spawned, because torch's threads are running here; __main__ must be importable, and is not run again.
            context = multiprocessing.get_context("spawn")
            arguments = (self.tokenizer.serialized(), self.tokenizer.tags, self.limits)
            self.pool = ProcessPoolExecutor(self.processes, context, _begin_encoder, arguments)
        else:
            _set_encoder(self.tokenizer, self.limits)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def submit(
        self, folder: Path, task: str, number: int, direction: tuple[str, str], block: list[tuple[str, str]]
    ) -> None:
        if self.pool is None:
            _encode_block(folder, task, number, direction, block)
            return
        while len(self.waiting) >= 2 * self.processes:
            self._next()
        self.waiting.append(self.pool.submit(_encode_block, folder, task, number, direction, block))

    def finish(self) -> None:
        """Waits for all blocks."""
        while self.waiting:
            self._next()

    def _next(self) -> None:
        try:
            self.waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a process that encodes was killed, for want of memory perhaps; give --processes a smaller number"
            ) from None


_encoder: tuple[Tokenizer, LengthFilter]  # of this process


def _set_encoder(tokenizer: Tokenizer, limits: LengthFilter) -> None:
    global _encoder
    _encoder = tokenizer, limits


def _begin_encoder(model: bytes, tags: Tags, limits: LengthFilter) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = multiprocessing.parent_process()

    def die_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
    _set_encoder(Tokenizer(model, tags), limits)


def _encode_block(
    folder: Path, task: str, number: int, direction: tuple[str, str], block: list[tuple[str, str]]
) -> None:
    tokenizer, limits = _encoder
    shard, left_out = encode_pairs(block, tokenizer, direction, limits)
    name = f"{task}.{number}"
    shard.save(folder, name)
    mark = {"format": FORMAT, "kept": len(shard), "tokens": len(shard.tokens), "left_out": dict(left_out)}
    atomic_write(folder / f"{name}.json", json.dumps(mark))
