"""An ensemble against a direct computation: the mean of the members' probabilities, without a cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cats.nmt.model.ensemble import Ensemble
from cats.nmt.model.loss import line_nll
from cats.nmt.model.search import beam_search, sample
from cats.nmt.model.transformer import Transformer

VOCABULARY, PAD, BOS, EOS = 13, 0, 2, 3
SOURCE = torch.tensor([[5, 6, 7, 3], [9, 3, 0, 0], [12, 11, 3, 0]])
LIMITS = torch.tensor([9, 6, 8])


@pytest.fixture(scope="module")
def models() -> list[Transformer]:
    """Two models of different sizes, with distributions far from uniform."""
    torch.manual_seed(1)
    sizes = (16, 2, 16, 1, 2), (24, 4, 32, 2, 1)
    found = [Transformer(VOCABULARY, *size, 0.0, embeddings="separate").eval() for size in sizes]
    with torch.no_grad():
        for model in found:
            model.output.weight.mul_(3)
    return found


class Direct:
    """A model for the searches that computes every prefix anew; its state has the sources and prefixes of the rows."""

    def __init__(self, models: list[Transformer]) -> None:
        self.models = models

    def encode(self, source: torch.Tensor) -> tuple[torch.Tensor, None]:
        return source, None

    def start(self, source: torch.Tensor, _mask: None) -> Rows:
        return Rows(source, source.new_zeros(len(source), 0))

    def step(self, tokens: torch.Tensor, state: Rows) -> torch.Tensor:
        state.prefixes = torch.cat([state.prefixes, tokens[:, None]], dim=1)
        logits = [model(state.sources, state.prefixes)[:, -1].double() for model in self.models]
        return torch.stack([each.softmax(-1) for each in logits]).mean(0).log()


class Rows:
    def __init__(self, sources: torch.Tensor, prefixes: torch.Tensor) -> None:
        self.sources, self.prefixes = sources, prefixes

    def select(self, index: torch.Tensor, _places: Any, _sentences: Any = None) -> Rows:
        return Rows(self.sources[index], self.prefixes[index])


SPECIAL: dict[str, Any] = {"start": BOS, "eos_id": EOS, "forbidden": [0, 1, 2]}


@pytest.mark.parametrize("beam", [1, 3])
def test_search_with_the_mean_of_the_probabilities(models: list[Transformer], beam: int) -> None:
    options = {**SPECIAL, "beam": beam, "length_penalty": 1.0, "nbest": beam}
    found = beam_search(Ensemble(models), SOURCE, LIMITS, **options)
    direct: Any = Direct(models)
    for row, expected in zip(found, beam_search(direct, SOURCE, LIMITS, **options), strict=True):
        assert [ids for ids, _ in row] == [ids for ids, _ in expected]
        assert [score for _, score in row] == pytest.approx([score for _, score in expected], abs=1e-5)  # fp32
    alone = beam_search(models[0], SOURCE, LIMITS, **options)
    assert [row[0].ids for row in alone] != [row[0].ids for row in found]  # the second model matters


def test_sampling_with_the_mean_of_the_probabilities(models: list[Transformer]) -> None:
    u = torch.rand(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direct: Any = Direct(models)
    found, expected = (sample(model, SOURCE, LIMITS, u, 0.9, 5, 0.9, **SPECIAL) for model in (Ensemble(models), direct))
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)  # fp32


def test_copies_of_a_model_translate_as_it_does(models: list[Transformer]) -> None:
    options = {**SPECIAL, "beam": 3, "length_penalty": 0.0}
    found = beam_search(Ensemble([models[0]] * 3), SOURCE, LIMITS, **options)
    assert [row[0].ids for row in found] == [row[0].ids for row in beam_search(models[0], SOURCE, LIMITS, **options)]


def test_a_token_that_one_member_excludes_has_the_probability_of_the_others(models: list[Transformer]) -> None:
    ensemble = Ensemble(models)
    state = ensemble.start(*ensemble.encode(SOURCE))
    with torch.no_grad():
        models[0].step = lambda *_: torch.full((3, VOCABULARY), -math.inf).index_fill_(1, torch.tensor(4), 0.0)  # type: ignore[method-assign]
        try:
            found = ensemble.step(torch.full((3,), BOS), state).exp()
        finally:
            del models[0].step
        other = models[1].step(torch.full((3,), BOS), models[1].start(*models[1].encode(SOURCE))).softmax(-1)
    torch.testing.assert_close(found[:, 5:], other[:, 5:] / 2)


def test_likelihoods_have_the_mean_of_the_probabilities(models: list[Transformer]) -> None:
    sources, targets = [[5, 6, 7, EOS], [9, EOS]], [[4, 8, EOS], [11, 10, 7, EOS]]
    found = line_nll(Ensemble(models), sources, targets, start=BOS, batch_tokens=100)
    for row, source, target in zip(found, sources, targets, strict=True):
        inputs = torch.tensor([source]), torch.tensor([[BOS, *target[:-1]]])
        with torch.no_grad():
            mean = torch.stack([model(*inputs)[0].double().softmax(-1) for model in models]).mean(0)
        expected = -mean[range(len(target)), target].log().sum()
        assert row.tolist() == [pytest.approx(float(expected), rel=1e-5), len(target)]  # fp32
