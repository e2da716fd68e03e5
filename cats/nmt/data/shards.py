"""Encoded parallel text: the pieces of one task's pairs in two flat arrays, in memory or memory-mapped files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cats.nmt.data.batch import Ragged
from cats.nmt.files import atomic_file, open_regular


@dataclass(frozen=True)
class Shard:
    """The pairs of one task, as pieces without tags and ends.

    Side 2 i is the source of pair i, side 2 i + 1 its target. Side s is ``tokens[offsets[s] : offsets[s + 1]]``.
    tokens: uint16, or uint32 for vocabularies of more than 65,536 pieces; offsets: (2 pairs + 1,) int64.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) // 2

    def fits(self, vocab_size: int) -> bool:
        """Whether the offsets fit the tokens, and the tokens have the type for this vocabulary size."""
        return bool(self.offsets[-1] == len(self.tokens)) and self.tokens.dtype == token_dtype(vocab_size)

    def is_consistent(self, vocab_size: int) -> bool:
        """Whether every token is in the vocabulary, and the offsets grow. This reads all of them."""
        return bool(
            self.offsets[0] == 0
            and (np.diff(self.offsets) >= 0).all()
            and (not len(self.tokens) or self.tokens.max() < vocab_size)
        )

    def side(self, index: int) -> np.ndarray:
        """The pieces of one side."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def gather(self, sides: np.ndarray) -> Ragged:
        """The pieces of several sides."""
        starts = self.offsets[sides]
        lengths = self.offsets[sides + 1] - starts
        places = np.repeat(starts - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
        return Ragged(self.tokens[places], lengths)

    def subset(self, pairs: np.ndarray) -> Shard:
        """A copy of some pairs."""
        rows = self.gather(np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel())
        return Shard(rows.ids, np.concatenate([[0], rows.lengths.cumsum()]).astype(np.int64))

    def lengths(self) -> np.ndarray:
        """(pairs, 2) int32: pieces of source and target."""
        return np.diff(self.offsets).astype(np.int32).reshape(-1, 2)

    def at(self, step: int) -> Shard:
        """The pairs as they are in an update. Only the lines of ``cats.nmt.data.monolingual`` change."""
        return self

    def save(self, folder: Path, name: str) -> None:
        """Writes ``<name>.tokens.npy`` and ``<name>.offsets.npy``. The caller records that both are complete."""
        for file_name, array in zip(self.file_names(name), (self.tokens, self.offsets), strict=True):
            with atomic_file(folder / file_name) as file:
                np.save(file, array, allow_pickle=False)

    @staticmethod
    def file_names(name: str) -> tuple[str, str]:
        """The files of tokens and offsets."""
        return f"{name}.tokens.npy", f"{name}.offsets.npy"

    @classmethod
    def open(cls, folder: Path, name: str) -> Shard:
        """Memory-maps the files that ``save`` wrote.

        Raises:
            UserError: a file is no regular file.
            OSError, ValueError, EOFError: a file is missing, not an array of the right type, or truncated.
        """
        arrays = []
        for file_name in cls.file_names(name):
            open_regular(folder / file_name).close()
            arrays.append(np.lib.format.open_memmap(folder / file_name, mode="r"))
        tokens, offsets = arrays
        if tokens.ndim != 1 or offsets.ndim != 1 or offsets.dtype != np.int64 or len(offsets) % 2 == 0:
            raise ValueError("not the arrays of a shard")
        # Slicing a plain array is several times faster than slicing numpy's memmap, and reads the same pages.
        return cls(*(array.view(np.ndarray) for array in arrays))


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest type that holds every id of a vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def pack(sides: Iterable[list[int]], vocab_size: int) -> Shard:
    """The shard of these rows: the source of the first pair, its target, the source of the second pair, ..."""
    rows = list(sides)
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    tokens = np.empty(offsets[-1], dtype=token_dtype(vocab_size))
    for row, start in zip(rows, offsets, strict=False):
        tokens[start : start + len(row)] = row
    return Shard(tokens, offsets)
