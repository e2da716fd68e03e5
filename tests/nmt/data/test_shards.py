"""Encoded pairs in memory and in files."""

from __future__ import annotations

import numpy as np
import pytest

from cats.nmt.data.shards import Shard, pack


@pytest.mark.parametrize(("vocab_size", "kind"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_files_hold_the_same(tmp_path, vocab_size, kind):
    shard = pack([[1, vocab_size - 1], [], [5], [6, 7, 8]], vocab_size)
    assert shard.tokens.dtype == kind and len(shard) == 2
    assert shard.lengths().tolist() == [[2, 0], [1, 3]]
    shard.save(tmp_path, "az")
    mapped = Shard.open(tmp_path, "az")
    assert isinstance(mapped.tokens.base, np.memmap)
    for name in ("tokens", "offsets"):
        found, expected = getattr(mapped, name), getattr(shard, name)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert mapped.side(3).tolist() == [6, 7, 8]


def test_no_pairs(tmp_path):
    shard = pack([], 100)
    assert len(shard) == 0 and shard.lengths().shape == (0, 2)
    shard.save(tmp_path, "az")
    assert len(Shard.open(tmp_path, "az")) == 0
