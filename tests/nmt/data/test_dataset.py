"""From lines to batches: encoding pairs, leaving out long ones, and the dataset."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cats.nmt.data.batch import Batch, collate
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.data.encode import LengthFilter, encode_pairs
from cats.nmt.data.tokenizer import Tags, Tokenizer

LINES = ["the 12 cats", "a cat sat on the mat", "cats", "the mat", "a " * 40]
PAIRS = [(line, line[::-1].strip()) for line in LINES]


@pytest.fixture(
    scope="module",
    params=[Tags(), Tags("replace-eos"), Tags("none", target=True), Tags("prepend", True, "source")],
    ids=str,
)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train([side for pair in PAIRS for side in pair] * 3, ["az", "en", "ru"], 60, request.param)


def test_batches_are_those_of_the_encoded_lines(tokenizer: Tokenizer) -> None:
    shards = {task: encode_pairs(PAIRS, tokenizer, ("en", task), LengthFilter(1000))[0] for task in ("az", "ru")}
    tokens = TokenDataset(shards, {task: ("en", task) for task in shards}, tokenizer, torch.device("cpu"))
    sources = {task: tokenizer.encode_source(LINES, "en", task) for task in shards}
    targets = tokenizer.encode_target([target for _, target in PAIRS], "ru")
    assert tokens.rows("ru") == (sources["ru"], targets)
    lengths = np.array([(len(s), len(t)) for s, t in zip(sources["az"], targets, strict=True)])
    assert np.array_equal(tokens.lengths()["az"], lengths)
    chosen = {"ru": np.array([3, 0, 3]), "az": np.array([1])}
    batch = tokens.batch(chosen)
    rows = [(task, i) for task, indices in chosen.items() for i in indices]
    expected = collate(
        [sources[task][i] for task, i in rows],
        [targets[i] for _, i in rows],
        [tokenizer.start(task) for task, _ in rows],
        tokenizer.pad_id,
    )
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(batch, field.name), getattr(expected, field.name)), field.name
    assert len(batch.target_cells) == tokens.target_tokens(chosen) == int((batch.target_out != tokenizer.pad_id).sum())


def test_limits_count_tags_and_ends(tokenizer: Tokenizer) -> None:
    (source,) = tokenizer.encode_source([LINES[1]], "en", "ru")
    (target,) = tokenizer.encode_target([PAIRS[1][1]], "ru")
    longest = max(len(source), len(target))
    shard, left_out = encode_pairs(PAIRS[1:2], tokenizer, ("en", "ru"), LengthFilter(longest))
    assert len(shard) == 1 and not left_out
    shard, left_out = encode_pairs(PAIRS[1:2], tokenizer, ("en", "ru"), LengthFilter(longest - 1))
    assert len(shard) == 0 and left_out == {f"longer than {longest - 1} tokens": 1}


def test_the_ratio_is_of_pieces(tokenizer: Tokenizer) -> None:
    pairs = [("1 2 3 4 5 6", "1"), ("1 2", "1"), ("1", "1 2 3 4 5 6")]
    shard, left_out = encode_pairs(pairs, tokenizer, ("en", "ru"), LengthFilter(1000, 3.0))
    assert len(shard) == 1
    assert left_out == {"one side more than 3 times as long as the other": 2}
