"""The batch maker: token ids of sentence pairs as padded tensors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Ragged(NamedTuple):
    """Rows of different lengths, stored one after the other.

    ids: (sum of lengths,) integers; lengths: (rows,) int64.
    """

    ids: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """The rows of a list of lists."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return cls(np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum())), lengths)


@dataclass(frozen=True)
class Batch:
    """Padded token ids of some sentence pairs: all tensors are int64 and on one device.

    source: (B, S), such as ``[tag, pieces.., eos]``.
    target_in: (B, T), the decoder's input ``[start, pieces..]``.
    target_out: (B, T), what the decoder is to predict, ``[pieces.., eos]``.
    source_cells, target_cells: the indices of the tokens, as opposed to padding, in the flattened source and
        target_out. They are computed on the host: finding them on a GPU would make the host wait for it.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor
    source_cells: Tensor
    target_cells: Tensor


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None) -> Tensor:
    """(B, longest) int64: the rows, padded on the right."""
    ragged = Ragged.of(rows)
    width = int(ragged.lengths.max())
    return _to(_table(ragged.ids, _cells(ragged.lengths, width), (len(rows), width), pad_id), device)


def collate(
    sources: Ragged | Sequence[Sequence[int]],
    targets: Ragged | Sequence[Sequence[int]],
    starts: Sequence[int] | np.ndarray,
    pad_id: int = 0,
    device: torch.device | str | None = None,
    *,
    multiple: int = 1,
) -> Batch:
    """The batch of some encoded pairs.

    Args:
        sources: the encoder's inputs, tags and ends included.
        targets: what the decoder is to predict, each ending in eos.
        starts: the first input of the decoder for every pair, see ``Tokenizer.start``.
        multiple: rows are padded to a multiple of this length, so that there are fewer shapes to compile for.
    """
    source = sources if isinstance(sources, Ragged) else Ragged.of(sources)
    target = targets if isinstance(targets, Ragged) else Ragged.of(targets)
    source_shape, target_shape = (
        (len(rows.lengths), -(-int(rows.lengths.max()) // multiple) * multiple) for rows in (source, target)
    )
    source_cells, target_cells = _cells(source.lengths, source_shape[1]), _cells(target.lengths, target_shape[1])
    # The decoder's input is the target shifted right, with the start in front.
    shifted = np.empty_like(target.ids)
    shifted[1:] = target.ids[:-1]
    shifted[target.lengths.cumsum() - target.lengths] = starts
    return Batch(
        _to(_table(source.ids, source_cells, source_shape, pad_id), device),
        _to(_table(shifted, target_cells, target_shape, pad_id), device),
        _to(_table(target.ids, target_cells, target_shape, pad_id), device),
        _to(source_cells, device),
        _to(target_cells, device),
    )


def _cells(lengths: np.ndarray, width: int) -> np.ndarray:
    """The flat indices of the tokens in a table of this width, where row i begins with lengths[i] tokens."""
    before = lengths.cumsum() - lengths  # tokens in the rows above
    return np.arange(lengths.sum()) + np.repeat(np.arange(len(lengths)) * width - before, lengths)


def _table(ids: np.ndarray, cells: np.ndarray, shape: tuple[int, int], pad_id: int) -> np.ndarray:
    """A table with the ids in the given cells and padding in all others."""
    table = np.full(shape, pad_id, dtype=np.int64)
    table.reshape(-1)[cells] = ids
    return table


def _to(array: np.ndarray, device: torch.device | str | None) -> Tensor:
    tensor = torch.from_numpy(array)
    if device is None or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
