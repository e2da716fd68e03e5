"""The Transformer: cache against no cache, padding, causality, tying."""

from __future__ import annotations

import pytest
import torch

from cats.nmt.model import Transformer, collate, sinusoids


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(50, 32, 4, 64, 2, 2, dropout=0.1).double().eval()


SOURCES = [[4, 10, 11, 12, 3], [5, 20, 3], [4, 30, 31, 3]]
TARGETS = [[13, 14, 3], [21, 22, 23, 24, 3], [33, 3]]


def test_collate_shifts_and_counts():
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    assert batch.source.tolist() == [[4, 10, 11, 12, 3], [5, 20, 3, 0, 0], [4, 30, 31, 3, 0]]
    assert batch.target_in.tolist() == [[2, 13, 14, 0, 0], [2, 21, 22, 23, 24], [2, 33, 0, 0, 0]]
    assert batch.target_out.tolist() == [[13, 14, 3, 0, 0], [21, 22, 23, 24, 3], [33, 3, 0, 0, 0]]
    assert batch.tokens == 10


def test_padding_does_not_change_a_row(model):
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    together = model(batch.source, batch.target_in)
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        one = collate([source], [target], [2])
        alone = model(one.source, one.target_in)[0]
        # fp64; only the summation order inside attention may differ
        torch.testing.assert_close(together[row, : len(target)], alone, rtol=1e-12, atol=1e-12)


def test_a_later_target_token_never_reaches_an_earlier_position(model):
    source = torch.tensor([[4, 10, 3]])
    first = model(source, torch.tensor([[2, 13, 14, 15]]))
    second = model(source, torch.tensor([[2, 13, 14, 40]]))
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.equal(first[:, 3], second[:, 3])


def test_cached_steps_equal_the_full_forward_also_after_reordering(model):
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    full = model(batch.source, batch.target_in)
    state = model.start(*model.encode(batch.source))
    index = torch.tensor([2, 0, 1, 1])
    rows = torch.arange(3)
    for position in range(batch.target_in.shape[1]):
        if position == 2:
            state, rows = state.select(index), index
        logits = model.step(batch.target_in[rows, position], state)
        real = batch.target_in[rows, position] != 0  # the full forward leaves padding out
        torch.testing.assert_close(logits[real], full[rows, position][real], rtol=1e-12, atol=1e-12)


def test_output_projection_is_the_embedding(model):
    names = [name for name, _ in model.named_parameters()]
    assert sum("embedding" in name for name in names) == 1
    hidden = torch.randn(3, 32, dtype=torch.float64)
    assert torch.equal(model.project(hidden), hidden @ model.embedding.weight.T)


def test_dropout_only_in_training(model):
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    assert torch.equal(model(batch.source, batch.target_in), model(batch.source, batch.target_in))
    model.train()
    assert not torch.equal(model(batch.source, batch.target_in), model(batch.source, batch.target_in))


def test_positions_continue_where_the_cache_ends():
    assert torch.equal(sinusoids(6, 8)[4:], sinusoids(2, 8, start=4))
    assert torch.equal(sinusoids(1, 8)[0], torch.tensor([0.0, 1.0] * 4))
