"""The batch maker: padding, the shift of the decoder's input, and which cells hold tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cats.nmt.data.batch import Ragged, collate, pad

SOURCES, TARGETS = [[4, 10, 11, 3], [5, 3]], [[12, 3], [13, 14, 15, 3]]


@pytest.mark.parametrize("rows", [list, Ragged.of])
def test_a_batch_by_hand(rows):
    batch = collate(rows(SOURCES), rows(TARGETS), [2, 6])
    assert batch.source.tolist() == [[4, 10, 11, 3], [5, 3, 0, 0]]
    assert batch.target_in.tolist() == [[2, 12, 0, 0], [6, 13, 14, 15]]
    assert batch.target_out.tolist() == [[12, 3, 0, 0], [13, 14, 15, 3]]
    assert batch.source_cells.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.target_cells.tolist() == [0, 1, 4, 5, 6, 7]


def test_lengths_are_padded_to_a_multiple():
    batch = collate(SOURCES, TARGETS, np.array([2, 6]), pad_id=9, multiple=3)
    assert batch.source.tolist() == [[4, 10, 11, 3, 9, 9], [5, 3, 9, 9, 9, 9]]
    assert batch.target_in.tolist() == [[2, 12, 9, 9, 9, 9], [6, 13, 14, 15, 9, 9]]
    assert batch.target_out.tolist() == [[12, 3, 9, 9, 9, 9], [13, 14, 15, 3, 9, 9]]
    assert batch.target_cells.tolist() == [0, 1, 6, 7, 8, 9]


def test_pad():
    padded = pad([[7], [], [8, 9]], 1)
    assert padded.dtype == torch.int64 and padded.tolist() == [[7, 1], [1, 1], [8, 9]]
