"""Processes that encode blocks of pairs into files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from cats.nmt.data.encode import LengthFilter, Pairs, encode_pairs
from cats.nmt.data.prepared import FILES, FORMAT
from cats.nmt.data.shards import Shard
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.files import file_digest, read_checked_json, write_checked_json

WAITING_PER_PROCESS = 2  # blocks that are queued for each process


class Encoders:
    """A pool of processes that encode blocks of pairs into files. With one process, the caller encodes them itself."""

    def __init__(self, processes: int, tokenizer: Tokenizer, length_filter: LengthFilter) -> None:
        self.processes, self.tokenizer, self.length_filter = processes, tokenizer, length_filter
        self.waiting: deque[Future[None]] = deque()
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Encoders:
        if self.processes > 1:
            # Spawned, not forked, because torch has threads in this process. The children import the main module.
            context = multiprocessing.get_context("spawn")
            arguments = (self.tokenizer.serialized(), self.tokenizer.tags, self.length_filter)
            self.pool = ProcessPoolExecutor(self.processes, context, _begin_encoder, arguments)
        else:
            _set_encoder(self.tokenizer, self.length_filter)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def submit(self, folder: Path, task: str, number: int, direction: tuple[str, str], block: Pairs) -> None:
        """Queues a block, and waits if too many are queued. Without a pool, encodes it at once."""
        if self.pool is None:
            encode_block(folder, task, number, direction, block)
            return
        while len(self.waiting) >= WAITING_PER_PROCESS * self.processes:
            self._wait_for_next()
        self.waiting.append(self.pool.submit(encode_block, folder, task, number, direction, block))

    def finish(self) -> None:
        """Waits until all blocks are encoded."""
        while self.waiting:
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        try:
            self.waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "an encoding process was killed, perhaps because memory ran out; give --processes a smaller number"
            ) from None


def encode_block(folder: Path, task: str, number: int, direction: tuple[str, str], block: Pairs) -> None:
    """Writes the tokens of a block, and then a JSON file that says that they are complete."""
    tokenizer, length_filter = _encoder
    shard, left_out = encode_pairs(block, tokenizer, direction, length_filter)
    name = f"{task}.{number}"
    shard.save(folder, name)
    mark = {
        "format": FORMAT,
        "kept": len(shard),
        "tokens": len(shard.tokens),
        "left_out": dict(left_out),
        FILES: {file: file_digest(folder / file) for file in Shard.file_names(name)},
    }
    write_checked_json(folder / f"{name}.json", mark)


def block_is_done(folder: Path, name: str) -> bool:
    """Whether a block was encoded, and its files are as ``encode_block`` wrote them."""
    try:
        mark = read_checked_json(folder / f"{name}.json", required=True)
        return all(file_digest(folder / file) == mark[FILES][file] for file in Shard.file_names(name))
    except (OSError, KeyError, TypeError, ValueError, UserError):
        return False


# What this process encodes with. It gets them once, not with every block.
_encoder: tuple[Tokenizer, LengthFilter]


def _set_encoder(tokenizer: Tokenizer, length_filter: LengthFilter) -> None:
    global _encoder
    _encoder = tokenizer, length_filter


def _begin_encoder(model: bytes, tags: Tags, length_filter: LengthFilter) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    parent = multiprocessing.parent_process()

    def die_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
    _set_encoder(Tokenizer(model, tags), length_filter)
