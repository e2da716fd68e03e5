"""Rows of token ids as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Padded token ids of some sentence pairs.

    source: (B, S) int64, such as ``[tag, pieces.., eos]``; target_in: (B, T) int64, ``[start, pieces..]``;
    target_out: (B, T) int64, ``[pieces.., eos]``; tokens: number of real (not padding) cells of target_out.
    source_cells, target_cells: numbers of the real cells, counted row after row, int64, where the maker knows them:
    finding them in tensors on a GPU is something that the host would wait for.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor
    tokens: int
    source_cells: Tensor | None = None
    target_cells: Tensor | None = None


def pad(rows: list[list[int]], pad_id: int, device: torch.device | str | None = None) -> Tensor:
    """(B, longest) int64 from B lists of ids."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], dtype=torch.int64, device=device)


def collate(
    sources: list[list[int]],
    targets: list[list[int]],
    starts: Sequence[int],
    pad_id: int = 0,
    device: torch.device | str | None = None,
) -> Batch:
    """The batch of encoded pairs. ``targets`` end in eos; shifted right behind ``starts`` they are the decoder's input.

    starts: for every pair, what the decoder begins with (``Tokenizer.start``).
    """
    return Batch(
        pad(sources, pad_id, device),
        pad([[start, *row[:-1]] for start, row in zip(starts, targets, strict=True)], pad_id, device),
        pad(targets, pad_id, device),
        sum(map(len, targets)),
    )
