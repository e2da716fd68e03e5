"""The encoded pairs of all tasks, from which batches are made."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from cats.nmt.data.batch import Batch, Ragged, collate
from cats.nmt.data.shards import Shard
from cats.nmt.data.tokenizer import Tokenizer


class TokenDataset:
    """The encoded pairs of every task. Tags, starts and ends are put around the pieces when a batch is made.

    Args:
        shards: {task: its encoded pairs}.
        directions: {task: (source language, target language)}, which choose the tags.
        device: where batches go.
        multiple: rows are padded to a multiple of this length, so that there are fewer shapes to compile for.
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

    def subset(self, chosen: Mapping[str, tuple[str, np.ndarray]]) -> TokenDataset:
        """A data set of some pairs: {name of the task in it: (task here, indices of its pairs)}."""
        other = copy.copy(self)
        other.shards = {name: self.shards[task].subset(pairs) for name, (task, pairs) in chosen.items()}
        other.frames = {name: self.frames[task] for name, (task, _) in chosen.items()}
        other.starts = {name: self.starts[task] for name, (task, _) in chosen.items()}
        return other

    def lengths(self) -> dict[str, np.ndarray]:
        """{task: (pairs, 2) int32}: source and target tokens, tags and ends included."""
        frames = {task: [len(before) + len(after), 1] for task, (before, after) in self.frames.items()}
        return {task: shard.lengths() + np.array(frames[task], dtype=np.int32) for task, shard in self.shards.items()}

    def target_tokens(self, indices: Mapping[str, np.ndarray]) -> int:
        """The number of tokens that the decoder predicts for the pairs of these indices, ends included."""
        total = 0
        for task, chosen in indices.items():
            offsets = self.shards[task].offsets
            total += int((offsets[2 * chosen + 2] - offsets[2 * chosen + 1]).sum()) + len(chosen)
        return total

    def source_tokens(self, task: str, chosen: np.ndarray) -> int:
        """The number of tokens that the encoder reads for some pairs of a task, tags and ends included."""
        offsets, (before, after) = self.shards[task].offsets, self.frames[task]
        tokens = (offsets[2 * chosen + 1] - offsets[2 * chosen]).sum()
        return int(tokens) + len(chosen) * (len(before) + len(after))

    def rows(self, task: str) -> tuple[list[list[int]], list[list[int]]]:
        """All encoded sources and targets of a task, as ``collate`` takes them."""
        shard, (before, after) = self.shards[task], self.frames[task]
        sources = [[*before, *shard.side(2 * i).tolist(), *after] for i in range(len(shard))]
        return sources, [[*shard.side(2 * i + 1).tolist(), self.eos_id] for i in range(len(shard))]

    def batch(self, indices: Mapping[str, np.ndarray], step: int = 0) -> Batch:
        """The padded batch of {task: indices of its pairs}, one task after the other, as they are in this update."""
        counts = [len(chosen) for chosen in indices.values()]
        before, after = (
            np.repeat(np.array([self.frames[task][place] for task in indices], dtype=np.int64), counts, axis=0)
            for place in (0, 1)
        )
        nothing, ends = np.empty((sum(counts), 0), dtype=np.int64), np.full((sum(counts), 1), self.eos_id)
        return collate(
            _framed(self._sides(indices, 0, step), before, after),
            _framed(self._sides(indices, 1, step), nothing, ends),
            np.repeat([self.starts[task] for task in indices], counts),
            self.pad_id,
            self.device,
            multiple=self.multiple,
        )

    def _sides(self, indices: Mapping[str, np.ndarray], side: int, step: int) -> Ragged:
        """The pieces of the sources (side 0) or targets (side 1) of these pairs."""
        parts = [self.shards[task].at(step).gather(2 * chosen + side) for task, chosen in indices.items()]
        return Ragged(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _framed(rows: Ragged, before: np.ndarray, after: np.ndarray) -> Ragged:
    """The rows with some ids before and after each; before: (rows, tokens), after: (rows, tokens)."""
    lengths = rows.lengths + before.shape[1] + after.shape[1]
    ends = lengths.cumsum()
    ids = np.empty(lengths.sum(), dtype=np.int64)
    inside = np.ones(len(ids), dtype=bool)
    for firsts, frame in ((ends - lengths, before), (ends - after.shape[1], after)):
        for i, column in enumerate(frame.T):
            ids[firsts + i] = column
            inside[firsts + i] = False
    ids[inside] = rows.ids
    return Ragged(ids, lengths)
