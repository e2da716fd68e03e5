"""Token ids of parallel text, packed into two flat arrays: in memory, or in files that are mapped into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cats.nmt.data.batch import Batch
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.files import atomic_file

Ids = np.ndarray  # (n,) uint16 or uint32


@dataclass(frozen=True)
class Limits:
    """Which pairs are trained on. max_length: in tokens, tags and ends included, a side; max_ratio: of the longer side
    to the shorter in pieces, 0 for any."""

    max_length: int
    max_ratio: float = 0.0

    def against(self, source: int, target: int, tags: int) -> str:
        """Why a pair of so many pieces is left out, or ""; tags: tokens that come to the source."""
        if source + tags > self.max_length or target + 1 > self.max_length:
            return f"longer than {self.max_length} tokens"
        if self.max_ratio and max(source, target) > self.max_ratio * min(source, target):
            return f"one side more than {self.max_ratio:g} times as long as the other"
        return ""


@dataclass(frozen=True)
class Shard:
    """The pairs of one task, pieces only: tags and ends are put around them when a batch is made.

    Side s, the source of pair s/2 if s is even, else its target, is ``tokens[offsets[s] : offsets[s + 1]]``.
    tokens: uint16, or uint32 for vocabularies beyond 65,536; offsets: (2 n + 1,) int64.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) // 2

    def fits(self, vocab_size: int) -> bool:
        """Whether tokens and offsets can be of one another, and of such a vocabulary."""
        return bool(self.offsets[-1] == len(self.tokens)) and self.tokens.dtype == id_type(vocab_size)

    def side(self, index: int) -> Ids:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def gather(self, sides: np.ndarray) -> tuple[Ids, np.ndarray]:
        """The ids of several sides, one after the other, and their lengths."""
        starts = self.offsets[sides]
        lengths = self.offsets[sides + 1] - starts
        return self.tokens[
            np.repeat(starts - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
        ], lengths

    def lengths(self) -> np.ndarray:
        """(n, 2) int32: pieces of source and target."""
        return np.diff(self.offsets).astype(np.int32).reshape(-1, 2)

    def save(self, folder: Path, name: str) -> None:
        """``<name>.tokens.npy`` and ``<name>.offsets.npy``; whether both are whole is for the caller to note down."""
        for part, array in (("tokens", self.tokens), ("offsets", self.offsets)):
            with atomic_file(folder / f"{name}.{part}.npy") as file:
                np.save(file, array, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, name: str) -> Shard:
        """Maps what ``save`` wrote.

        Raises:
            OSError, ValueError, EOFError: a file is missing, no array, or cut short.
        """
        arrays = [
            np.load(folder / f"{name}.{part}.npy", mmap_mode="r", allow_pickle=False) for part in ("tokens", "offsets")
        ]
        # Slices of a plain array are made several times as fast as those of numpy's memmap, and read the same pages.
        return cls(*(array.view(np.ndarray) for array in arrays))


def id_type(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def pack(sides: Iterable[list[int]], vocab_size: int) -> Shard:
    """sides: source and target of every pair in turn."""
    rows = list(sides)
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    tokens = np.empty(offsets[-1], dtype=id_type(vocab_size))
    for row, start in zip(rows, offsets, strict=False):
        tokens[start : start + len(row)] = row
    return Shard(tokens, offsets)


def encode(
    pairs: list[tuple[str, str]], tokenizer: Tokenizer, direction: tuple[str, str], limits: Limits
) -> tuple[Shard, Counter[str]]:
    """The pairs of one task as tokens, and how many were left out for which reason; direction: source and target."""
    source, target = direction
    before, after = tokenizer.frame(source, target)
    left_out: Counter[str] = Counter()
    kept: list[list[int]] = []
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    for pair in zip(tokenizer.encode(sources, source), tokenizer.encode(targets, target), strict=True):
        if reason := limits.against(len(pair[0]), len(pair[1]), len(before) + len(after)):
            left_out[reason] += 1
        else:
            kept += pair
    return pack(kept, tokenizer.vocab_size), left_out


def _cells(lengths: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every id where row i holds ``lengths[i]`` of them, from column ``start`` on."""
    columns = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    return np.repeat(np.arange(len(lengths)), lengths), columns + start


def _numbers(lengths: np.ndarray, width: int) -> np.ndarray:
    """The numbers of the cells that are full where row i of a table so wide holds ``lengths[i]`` of them."""
    rows, columns = _cells(lengths, 0)
    return rows * width + columns


class Tokens:
    """The encoded pairs of every task, from which batches are made.

    Args:
        shards: {task: Shard}. directions: {task: (source language, target language)}, which choose the tags.
        multiple: rows are padded to a length that is one of it, so that there are fewer shapes to compile for.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        directions: Mapping[str, tuple[str, str]],
        tokenizer: Tokenizer,
        device: torch.device,
        *,
        multiple: int = 1,
    ) -> None:
        self.shards, self.device, self.multiple = dict(shards), device, multiple
        self.pad_id, self.eos_id = tokenizer.pad_id, tokenizer.eos_id
        self.frames = {task: tokenizer.frame(*directions[task]) for task in shards}
        self.starts = {task: tokenizer.start(directions[task][1]) for task in shards}

    def lengths(self) -> dict[str, np.ndarray]:
        """{task: (n, 2) int32}: source and target tokens, tags and ends included."""
        frames = {task: [len(before) + len(after), 1] for task, (before, after) in self.frames.items()}
        return {task: shard.lengths() + np.array(frames[task], dtype=np.int32) for task, shard in self.shards.items()}

    def target_tokens(self, chosen: Mapping[str, np.ndarray]) -> int:
        """Tokens that the decoder is to produce for the chosen pairs, ends included."""
        total = 0
        for task, rows in chosen.items():
            offsets = self.shards[task].offsets
            total += int((offsets[2 * rows + 2] - offsets[2 * rows + 1]).sum()) + len(rows)
        return total

    def rows(self, task: str) -> tuple[list[list[int]], list[list[int]]]:
        """All encoded sources and targets of a task, as the model takes them."""
        shard, (before, after) = self.shards[task], self.frames[task]
        sources = [[*before, *shard.side(2 * i).tolist(), *after] for i in range(len(shard))]
        return sources, [[*shard.side(2 * i + 1).tolist(), self.eos_id] for i in range(len(shard))]

    def batch(self, chosen: Mapping[str, np.ndarray]) -> Batch:
        """The padded batch of the chosen pairs, task after task."""
        sources, source_lengths = self._sides(chosen, 0)
        targets, target_lengths = self._sides(chosen, 1)
        counts = [len(rows) for rows in chosen.values()]
        before, after = (
            np.repeat(np.array([self.frames[task][place] for task in chosen], dtype=np.int64), counts, axis=0)
            for place in (0, 1)
        )
        starts = np.repeat([self.starts[task] for task in chosen], counts)
        row = np.arange(len(starts))
        source = np.full(
            (len(row), self._width(before.shape[1] + after.shape[1] + source_lengths.max())),
            self.pad_id,
            dtype=np.int64,
        )
        source[:, : before.shape[1]] = before
        source[_cells(source_lengths, before.shape[1])] = sources
        ends = before.shape[1] + source_lengths
        for i in range(after.shape[1]):
            source[row, ends + i] = after[:, i]
        target_in = np.full((len(row), self._width(target_lengths.max() + 1)), self.pad_id, dtype=np.int64)
        target_out = target_in.copy()
        target_in[:, 0] = starts
        target_in[_cells(target_lengths, 1)] = targets
        target_out[_cells(target_lengths, 0)] = targets
        target_out[row, target_lengths] = self.eos_id
        return Batch(
            self._move(source),
            self._move(target_in),
            self._move(target_out),
            int(target_lengths.sum()) + len(row),
            self._move(_numbers(ends + after.shape[1], source.shape[1])),
            self._move(_numbers(target_lengths + 1, target_in.shape[1])),
        )

    def _sides(self, chosen: Mapping[str, np.ndarray], side: int) -> tuple[Ids, np.ndarray]:
        """The ids of all chosen sources (0) or targets (1), one after the other, and their lengths."""
        parts = [self.shards[task].gather(2 * rows + side) for task, rows in chosen.items()]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([lengths for _, lengths in parts])

    def _width(self, length: int) -> int:
        return -(-length // self.multiple) * self.multiple

    def _move(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)
