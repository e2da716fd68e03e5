"""Language-specific routing: against the equations of the paper, and decoding against the forward pass."""

from __future__ import annotations

import pytest
import torch

from cats.nmt.data.batch import collate
from cats.nmt.model.clsr import Gate, Routing
from cats.nmt.model.search import beam_search
from cats.nmt.model.transformer import Transformer

TAGS = [4, 5, 6]
SOURCES = [[4, 10, 11, 12, 3], [6, 20, 3], [4, 30, 31, 3]]
TARGETS = [[13, 14, 3], [21, 22, 23, 24, 3], [33, 3]]
BATCH = collate(SOURCES, TARGETS, [2] * len(SOURCES))


def new_model(tags: list[int], dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(50, 32, 4, 64, 2, 2, dropout, language_tags=tags, language_budget=0.3).double().eval()


@pytest.fixture
def model() -> Transformer:
    return new_model(TAGS)


def set_gates(model: Transformer, logit: float) -> None:
    """Makes G the same number for all tokens."""
    for module in model.modules():
        if isinstance(module, Gate):
            torch.nn.init.zeros_(module.out.weight)
            torch.nn.init.constant_(module.out.bias, logit)


def logits(model: Transformer) -> torch.Tensor:
    return model.logits(BATCH.source, BATCH.target_in, BATCH.source_cells, BATCH.target_cells)


def test_with_gates_of_0_it_is_the_transformer_bit_for_bit(model: Transformer) -> None:
    set_gates(model, -1.0)
    plain = new_model([])
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    assert torch.equal(logits(model), logits(plain))


def test_with_gates_of_1_a_language_uses_its_own_matrices_only(model: Transformer) -> None:
    set_gates(model, 1.0)
    before = logits(model)
    # The matrices of a language that is not in the batch do nothing; W_shared does nothing either.
    with torch.no_grad():
        model.routing.encoder[1].normal_(), model.routing.decoder[1].normal_()
        for layer in (*model.encoder, *model.decoder):
            layer.attention.out.weight.normal_()
        assert torch.equal(logits(model), before)
        model.routing.decoder[2].normal_()
    after = logits(model)
    second = slice(3, 8)  # the tokens of the sentence with tag 6
    assert torch.equal(after[:3], before[:3]) and torch.equal(after[8:], before[8:])
    assert not torch.isclose(after[second, 1:], before[second, 1:]).any()  # the padding has the logit 0


@pytest.mark.parametrize("training", [True, False])
def test_a_mixture_is_that_of_the_equation(training: bool) -> None:
    torch.manual_seed(1)
    gate, routing = Gate(8).double().train(training), Routing(8, TAGS, 0.3).double()
    for w in routing.encoder:
        torch.nn.init.normal_(w)
    z, own, shared = torch.randn(3, 5, 8, dtype=torch.float64)
    languages = torch.tensor([2, 0, 0, 2, 0])
    found = routing.encoder_routes(languages).mixed(gate, z, own, shared)
    g = gate(z).sigmoid() if training else (gate(z) >= 0).double()
    for i, language in enumerate(languages.tolist()):
        expected = g[i] * (routing.encoder[language].T @ own[i]) + (1 - g[i]) * shared[i]
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-12)  # other orders of float64 sums


def test_gradients() -> None:
    torch.manual_seed(2)
    gate, routing = Gate(4).double(), Routing(4, TAGS, 0.1).double()
    for w in routing.encoder:
        torch.nn.init.normal_(w)
    inputs = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    used = [*gate.parameters(), routing.encoder[0], routing.encoder[2]]

    def outputs(*_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = routing.encoder_routes(torch.tensor([2, 0, 0, 2, 0])).mixed(gate, *inputs)
        return mixed, routing.budget_loss()

    assert torch.autograd.gradcheck(outputs, (*inputs, *used))
    outputs()[0].sum().backward()
    assert routing.encoder[1].grad is None and routing.decoder[0].grad is None  # no work for absent languages


def test_the_budget_counts_all_tokens_and_sublayers(model: Transformer) -> None:
    """12 source tokens in 2 sub-layers a layer, 10 target tokens in 3; all gates are sigmoid(0.4)."""
    model.train()
    set_gates(model, 0.4)
    logits(model)
    assert sum(len(gates) for gates in model.routing.gates) == 12 * 2 * 2 + 10 * 2 * 3
    torch.testing.assert_close(model.routing.budget_loss().item(), torch.tensor(0.4).sigmoid().item() - 0.3)
    model.eval()
    logits(model)
    assert model.routing.gates == []


def test_noise_is_drawn_in_training_only(model: Transformer) -> None:
    model.routing.noise = 5.0
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


@torch.no_grad()
def test_cached_steps_equal_the_full_forward_and_greedy_search_follows_it(model: Transformer) -> None:
    full = model(BATCH.source, BATCH.target_in)
    state = model.start(*model.encode(BATCH.source))
    for position in range(BATCH.target_in.shape[1]):
        step = model.step(BATCH.target_in[:, position], state)
        real = BATCH.target_in[:, position] != 0
        # float64; only the order of sums inside attention may differ
        torch.testing.assert_close(step[real], full[real, position], rtol=1e-12, atol=1e-12)
    found = beam_search(
        model, BATCH.source, torch.tensor([9] * 3), start=2, eos_id=3, forbidden=[0, 1, 2], beam=1, length_penalty=0.0
    )
    for i, hypotheses in enumerate(found):
        row = [2, *hypotheses[0].ids]
        scores = model(BATCH.source[i : i + 1], torch.tensor([row]))[0]
        scores[:, :3] = -torch.inf
        assert scores.argmax(-1).tolist()[: len(row) - 1] == hypotheses[0].ids


def test_a_source_without_a_tag_is_refused(model: Transformer) -> None:
    with pytest.raises(ValueError, match="CLSR needs the tag"):
        model(torch.tensor([[10, 11, 3]]), torch.tensor([[2, 13]]))
