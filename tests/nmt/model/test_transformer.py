"""The Transformer: cache, padding, causality, tying, norms, dropout, recomputed layers, compiled layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cats.nmt.data.batch import collate
from cats.nmt.model.norms import ScaleNorm, make_norm
from cats.nmt.model.transformer import Packing, Transformer, sinusoids

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "layernorm-plain": {"norm": "layernorm-plain", "embedding_norm": True},
    "rmsnorm": {"norm": "rmsnorm", "embeddings": "separate"},
    "scalenorm": {
        "norm": "scalenorm",
        "embeddings": "decoder-tied",
        "embedding_norm": True,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
    },
}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    return Transformer(50, 32, 4, 64, 2, 2, dropout=0.1, **VARIANTS[request.param]).double().eval()


SOURCES = [[4, 10, 11, 12, 3], [5, 20, 3], [4, 30, 31, 3]]
TARGETS = [[13, 14, 3], [21, 22, 23, 24, 3], [33, 3]]


def test_collate_shifts_and_counts():
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    assert batch.source.tolist() == [[4, 10, 11, 12, 3], [5, 20, 3, 0, 0], [4, 30, 31, 3, 0]]
    assert batch.target_in.tolist() == [[2, 13, 14, 0, 0], [2, 21, 22, 23, 24], [2, 33, 0, 0, 0]]
    assert batch.target_out.tolist() == [[13, 14, 3, 0, 0], [21, 22, 23, 24, 3], [33, 3, 0, 0, 0]]
    assert len(batch.target_cells) == 10


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


@torch.no_grad()
def test_cached_steps_equal_the_full_forward_also_after_reordering(model):
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    full = model(batch.source, batch.target_in)
    state = model.start(*model.encode(batch.source))
    rows = torch.arange(3)
    # A hypothesis is repeated, then two are reordered, then a sentence and a hypothesis are dropped: an empty place.
    changes = {
        1: ([0, 1, 1, 2], [[True, False], [True, True], [False, True]], None),
        2: ([0, 2, 1, 3], [[True, False], [True, True], [False, True]], None),
        3: ([1, 3], [[False, True], [True, False]], [1, 2]),
    }
    for position in range(batch.target_in.shape[1]):
        if position in changes:
            index, places, sentences = changes[position]
            kept = None if sentences is None else torch.tensor(sentences)
            state = state.select(torch.tensor(index), Packing(torch.tensor(places)), kept)
            rows = rows[index]
        logits = model.step(batch.target_in[rows, position], state)
        real = batch.target_in[rows, position] != 0  # the full forward pass skips the padding
        torch.testing.assert_close(logits[real], full[rows, position][real], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("embeddings", "tables"), [("tied", 1), ("decoder-tied", 2), ("separate", 3)])
def test_which_matrices_are_tied(embeddings, tables):
    """The gradient of the output reaches the embedding of a token that is not in the batch only if they are tied."""
    model = Transformer(50, 32, 4, 64, 1, 1, dropout=0.0, embeddings=embeddings)
    assert [tuple(p.shape) for p in model.parameters()].count((50, 32)) == tables
    assert model.source_embedding is None or not model.source_embedding.weight[0].any()
    batch = collate([[4, 10, 3]], [[13, 3]], [2])  # without id 40: only the output has a gradient for its row
    model(batch.source, batch.target_in).logsumexp(-1).sum().backward()
    assert bool(model.embedding.weight.grad[40].any()) == (embeddings != "separate")
    if embeddings != "tied":
        assert model.source_embedding.weight.grad.any(1).nonzero().flatten().tolist() == [3, 4, 10]


def test_dropout_only_in_training(model):
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    assert torch.equal(model(batch.source, batch.target_in), model(batch.source, batch.target_in))
    model.train()
    assert not torch.equal(model(batch.source, batch.target_in), model(batch.source, batch.target_in))


@pytest.mark.parametrize("place", ["attention_dropout", "activation_dropout"])
def test_every_kind_of_dropout_acts_in_training_alone(place):
    torch.manual_seed(0)
    model = Transformer(50, 32, 4, 64, 1, 1, dropout=0.0, **{place: 0.5})
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    first, second = (model(batch.source, batch.target_in) for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model(batch.source, batch.target_in) for _ in range(2))
    assert torch.equal(first, second)


def test_norms_are_their_formulas():
    torch.manual_seed(0)
    x = 3 * torch.randn(5, 16, dtype=torch.float64) + 1
    length = x.norm(dim=1, keepdim=True)
    centred = x - x.mean(1, keepdim=True)
    expected = {
        "layernorm": centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt(),
        "layernorm-plain": centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt(),
        "rmsnorm": x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt(),
        "scalenorm": 4 * x / length,
    }
    sizes = {"layernorm": 32, "layernorm-plain": 0, "rmsnorm": 16, "scalenorm": 1}
    for kind, wanted in expected.items():
        norm = make_norm(kind, 16).double()
        torch.testing.assert_close(norm(x), wanted, rtol=1e-12, atol=1e-12)
        assert sum(p.numel() for p in norm.parameters()) == sizes[kind]
    assert torch.equal(ScaleNorm(16)(torch.zeros(2, 16)), torch.zeros(2, 16))


def gradients(model: Transformer) -> list[torch.Tensor]:
    """The gradients of a loss on the batch above, in training mode, with the dropout of seed 7."""
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    torch.manual_seed(7)
    logits = model.train().project(model.hidden(batch.source, batch.target_in))
    loss = F.cross_entropy(logits, batch.target_out[batch.target_out != 0])
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_recomputed_layers_have_the_same_gradients(model, monkeypatch):
    expected = gradients(model)
    calls = []
    model.encoder[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.checkpoint_activations = True
    for ours, theirs in zip(gradients(model), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert len(calls) == 2  # it was recomputed
    with torch.no_grad():
        model.encode(torch.tensor([[4, 3]]))
    assert len(calls) == 3  # and not without a backward pass


def test_recomputed_layers_keep_less():
    batch = collate(SOURCES, TARGETS, [2] * len(SOURCES))
    kept = []
    for recompute in (False, True):
        model = Transformer(50, 32, 4, 64, 4, 4, dropout=0.1, checkpoint_activations=recompute).train()
        own = {p.data_ptr() for p in model.parameters()}
        seen: dict[int, torch.Tensor] = {}  # tensors are kept alive, so that addresses are not reused

        def note(tensor: torch.Tensor, own: set[int] = own, seen: dict[int, torch.Tensor] = seen) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                seen[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.hidden(batch.source, batch.target_in)
        kept.append(sum(tensor.nbytes for tensor in seen.values()))
    assert kept[1] < kept[0] / 4


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "batches"), [("aot_eager", 30), ("inductor", 4)])
def test_compiled_layers_equal_the_others_and_are_compiled_few_times(backend, batches):
    """Batches of many shapes need few graphs: new ones only for sizes of 1 and for sizes that are equal by chance."""
    torch.manual_seed(0)
    model = Transformer(50, 32, 4, 64, 2, 2, dropout=0.0)
    compiled = Transformer(50, 32, 4, 64, 2, 2, dropout=0.0)
    compiled.load_state_dict(model.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled.compile_layers(backend)
    generator = torch.Generator().manual_seed(0)
    for _ in range(batches):
        rows, longest = (int(torch.randint(low, 9, (), generator=generator)) for low in (1, 2))
        sizes = torch.randint(1, longest + 1, (2, rows), generator=generator).tolist()
        sources, targets = ([[5] * (size - 1) + [3] for size in side] for side in sizes)
        batch = collate(sources, targets, [2] * rows)
        grads = []
        for one in (model, compiled):
            loss = one.project(one.hidden(batch.source, batch.target_in)).logsumexp(-1).sum()
            grads.append(torch.autograd.grad(loss, list(one.parameters()), allow_unused=True))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 12


def test_positions_continue_where_the_cache_ends():
    assert torch.equal(sinusoids(6, 8)[4:], sinusoids(2, 8, start=4))
    assert torch.equal(sinusoids(1, 8)[0], torch.tensor([0.0, 1.0] * 4))
