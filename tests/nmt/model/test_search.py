"""Beam search and sampling on models whose probabilities are known, against hand-made and exhaustive results."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from cats.nmt.model.search import beam_search, sample

PAD, BOS, EOS, A, B = range(5)


class Table(nn.Module):
    """A model whose next-token probabilities are looked up by (first source token, what was generated so far)."""

    def __init__(self, probability, vocabulary=5):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.probability = probability  # (key, prefix) -> {token: probability}
        self.vocabulary = vocabulary
        self.rows = []  # hypotheses computed by every step

    def encode(self, source):
        return source, source != PAD

    def start(self, memory, mask):
        return State([(int(key), ()) for key in memory[:, 0]])

    def step(self, tokens, state):
        self.rows.append(len(tokens))
        assert len(tokens) == len(state.rows)
        state.rows = [(key, (*prefix, int(t))) for (key, prefix), t in zip(state.rows, tokens, strict=True)]
        logits = torch.full((len(tokens), self.vocabulary), -math.inf)
        for i, (key, prefix) in enumerate(state.rows):
            assert prefix[0] == BOS
            for token, p in self.probability(key, prefix[1:]).items():
                logits[i, token] = math.log(p)
        return logits


class State:
    def __init__(self, rows):
        self.rows = rows

    def select(self, index, places, sentences=None):
        rows = [self.rows[i] for i in index.tolist()]
        # The rows of a sentence are adjacent, one for each of its places.
        of_row = places.mask.nonzero()[:, 0].tolist()
        assert len({(key, i) for i, (key, _) in zip(of_row, rows, strict=True)}) == len(places.mask)
        return State(rows)


def search_all(model, keys=(7,), limit=10, beam=2, length_penalty=0.0, forbidden=(PAD, BOS), **options):
    limits = torch.full((len(keys),), limit) if isinstance(limit, int) else torch.tensor(limit)
    return beam_search(
        model,
        torch.tensor(keys)[:, None],
        limits,
        start=BOS,
        eos_id=EOS,
        forbidden=list(forbidden),
        beam=beam,
        length_penalty=length_penalty,
        **options,
    )


def search(*arguments, **options):
    """The ids of the best hypotheses."""
    return [hypotheses[0][0] for hypotheses in search_all(*arguments, **options)]


def tree(table):
    """Probabilities from {prefix as text: {token: probability}}. A prefix that is not given ends."""
    names = {"a": A, "b": B, "$": EOS}

    def probability(_key, prefix):
        found = table.get("".join("ab"[token - A] for token in prefix), {"$": 1.0})
        return {names[name]: p for name, p in found.items()}

    return probability


# Greedy takes "a" and ends with 0.6 * 0.4 = 0.24. "b" leads to "bb$" with 0.4 * 0.9 = 0.36.
GARDEN_PATH = tree({"": {"a": 0.6, "b": 0.4}, "a": {"$": 0.4, "a": 0.3, "b": 0.3}, "b": {"b": 0.9, "$": 0.1}})


def test_beam_finds_what_greedy_misses():
    assert search(Table(GARDEN_PATH), beam=1) == [[A]]
    assert search(Table(GARDEN_PATH), beam=2) == [[B, B]]


# "a$" has 0.5, "bb$" 0.4: the penalty decides between lengths 2 and 3.
# log .5 / (7/6)^x = log .4 / (8/6)^x at x = log(log .4 / log .5) / log(8/7) = 2.0902
SHORT_OR_LONG = tree({"": {"a": 0.5, "b": 0.5}, "b": {"b": 0.8, "a": 0.2}})


@pytest.mark.parametrize(
    "length_penalty, best", [(0.0, [A]), (1.0, [A]), (2.0, [A]), (2.2, [B, B]), (5.0, [B, B]), (-1.0, [A])]
)
def test_length_penalty(length_penalty, best):
    assert search(Table(SHORT_OR_LONG), beam=3, length_penalty=length_penalty) == [best]


# By hand: "a$" has log .5 = -.6931, "bb$" log .4 = -.9163. At p = 1: -.6931 / (7/6) = -.5941 > -.9163 / (8/6) = -.6872,
# but -.6931 / 2 = -.3466 < -.9163 / 3 = -.3054.
@pytest.mark.parametrize(
    "penalty, best, second",
    [("google", ([A], -0.5941), ([B, B], -0.6872)), ("fairseq", ([B, B], -0.3054), ([A], -0.3466))],
)
def test_both_penalties_and_the_two_best(penalty, best, second):
    (found,) = search_all(Table(SHORT_OR_LONG), beam=3, length_penalty=1.0, penalty=penalty, nbest=2)
    assert [ids for ids, _ in found] == [best[0], second[0]]
    assert [score for _, score in found] == pytest.approx([best[1], second[1]], abs=1e-4)


def test_there_may_be_fewer_than_nbest():
    assert [ids for ids, _ in search_all(Table(tree({})), beam=4, nbest=4)[0]] == [[]]  # only "$" is possible


def test_search_goes_on_while_a_longer_hypothesis_can_win():
    # "$" ends at once with 0.6 and has the best score for many steps. At penalty 1 the chain of ten "b" (0.39) wins:
    # log 0.39 / (16 / 6) = -0.353 over log 0.6 / 1 = -0.511.
    chain = {"": {"$": 0.6, "b": 0.4}} | {"b" * n: {"b": 0.99, "$": 0.01} for n in range(1, 10)}
    assert search(Table(tree(chain)), limit=20, beam=2, length_penalty=1.0) == [[B] * 10]
    assert search(Table(tree(chain)), limit=20, beam=2, length_penalty=0.0) == [[]]


def test_search_stops_when_nothing_can_win():
    chain = {"": {"$": 0.6, "b": 0.4}} | {"b" * n: {"b": 0.99, "$": 0.01} for n in range(1, 50)}
    model = Table(tree(chain))
    search(model, limit=40, beam=2, length_penalty=0.0)
    assert model.rows == [1]  # 0.4 is below 0.6 already
    model = Table(tree(chain))
    search(model, limit=12, beam=2, length_penalty=0.1)  # log .4 / (17/6)^.1 = -.826 < -.511, also below
    assert model.rows == [1]


def test_an_ended_hypothesis_keeps_its_place():
    # "$" ends first and takes one of the two places. Greedy search with the other place finds "aa", never "ba".
    table = tree({"": {"$": 0.4, "a": 0.35, "b": 0.25}, "a": {"a": 0.6, "b": 0.4}})
    model = Table(table)
    assert search(model, beam=2, length_penalty=9.0) == [[A, A]]
    assert model.rows == [1, 1, 1]


def test_hypotheses_end_at_the_limit():
    endless = Table(lambda key, prefix: {A: 0.7, B: 0.3})
    for beam in (1, 2, 5):
        assert search(endless, limit=4, beam=beam) == [[A, A, A]]
    # If eos is possible but rare, the hypothesis at the limit is compared with those that ended before.
    seldom = Table(lambda key, prefix: {A: 0.9, EOS: 0.1})
    assert search(seldom, limit=4, beam=1) == [[A, A, A]]
    assert search(seldom, limit=4, beam=2, length_penalty=0.0) == [[]]  # 0.1 > 0.9^3 * 0.1


def test_limits_are_each_rows_own():
    endless = Table(lambda key, prefix: {A: 0.7, B: 0.3})
    assert search(endless, keys=(7, 8, 9), limit=[1, 5, 3], beam=3) == [[], [A] * 4, [A] * 2]


def test_forbidden_tokens_are_not_chosen():
    model = Table(lambda key, prefix: {PAD: 0.5, BOS: 0.3, A: 0.1, EOS: 0.1 if prefix else 1e-9})
    assert search(model, beam=2, limit=6)[0][:1] == [A]
    assert not {PAD, BOS} & set(search(model, beam=4, limit=6)[0])


def test_beam_wider_than_the_vocabulary():
    assert search(Table(GARDEN_PATH), beam=50) == [[B, B]]


def random_model(seed, vocabulary=5):
    """Random probabilities for every (key, prefix)."""

    def probability(key, prefix):
        generator = torch.Generator().manual_seed(hash((seed, key, prefix)) % 2**31)
        p = torch.softmax(2 * torch.randn(vocabulary, generator=generator, dtype=torch.float64), 0)
        return dict(enumerate(p.tolist()))

    return Table(probability, vocabulary)


def exhaustive(model, key, limit, length_penalty, words=(A, B)):
    """The best of all hypotheses of at most `limit` tokens, eos included."""

    def score(hypothesis):
        steps = enumerate((*hypothesis, EOS))
        total = sum(math.log(model.probability(key, hypothesis[:i])[token]) for i, token in steps)
        return total / ((5 + len(hypothesis) + 1) / 6) ** length_penalty

    every = itertools.chain.from_iterable(itertools.product(words, repeat=n) for n in range(limit))
    return list(max(every, key=score))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_beam_for_everything_is_exhaustive_search(seed, length_penalty):
    model = random_model(seed)
    keys = (5, 6, 7)
    expected = [exhaustive(model, key, 5, length_penalty) for key in keys]
    assert search(model, keys, limit=5, beam=2**5, length_penalty=length_penalty) == expected


def reference_beam(model, key, limit, beam, length_penalty, penalty="google"):
    """The search of the docstring, one hypothesis at a time and without early stopping. All that ended, best first."""
    live, ended = [((), 0.0)], []
    for length in range(1, limit + 1):
        allowed = [EOS] if length == limit else [EOS, A, B]
        grown = [
            ((*prefix, token), total + math.log(model.probability(key, prefix)[token]))
            for prefix, total in live
            for token in allowed
        ]
        grown = sorted(grown, key=lambda item: -item[1])[: beam - len(ended)]
        ended += [item for item in grown if item[0][-1] == EOS]
        live = [item for item in grown if item[0][-1] != EOS]
    divisor = {"google": lambda n: (5 + n) / 6, "fairseq": lambda n: n}[penalty]
    scored = [(list(ids[:-1]), total / divisor(len(ids)) ** length_penalty) for ids, total in ended]
    return sorted(scored, key=lambda item: -item[1])


@pytest.mark.parametrize("penalty", ["google", "fairseq"])
@pytest.mark.parametrize("beam", [1, 2, 3, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0, -1.0])
def test_equals_beam_search_one_hypothesis_at_a_time(beam, length_penalty, penalty):
    model = random_model(11)
    keys = tuple(range(5, 45))
    limits = [1 + key % 9 for key in keys]
    for nbest in {1, beam}:
        found = search_all(
            model, keys, limit=limits, beam=beam, length_penalty=length_penalty, penalty=penalty, nbest=nbest
        )
        for key, limit, hypotheses in zip(keys, limits, found, strict=True):
            expected = reference_beam(model, key, limit, beam, length_penalty, penalty)[:nbest]
            assert [ids for ids, _ in hypotheses] == [ids for ids, _ in expected]
            assert [x for _, x in hypotheses] == pytest.approx([x for _, x in expected], rel=1e-5)  # float32 sums


def test_dead_hypotheses_cost_nothing():
    model = Table(GARDEN_PATH)
    search(model, keys=(7, 8), beam=2, length_penalty=0.0)
    assert model.rows[0] == 2  # at first one hypothesis per sentence, not two
    assert max(model.rows) == 4


# ---- sampling


def drawn(model, count, limit=10, temperature=1.0, top_k=0, top_p=1.0):
    u = torch.tensor(np.random.default_rng(0).random((count, limit)))
    limits, source = torch.full((count,), limit), torch.full((count, 1), 7)
    return sample(model, source, limits, u, temperature, top_k, top_p, start=BOS, eos_id=EOS, forbidden=[PAD, BOS])


@pytest.mark.parametrize(
    "options, share",
    [
        ({}, {"a": 0.6 * 0.4, "aa": 0.6 * 0.3, "ab": 0.6 * 0.3, "bb": 0.4 * 0.9, "b": 0.4 * 0.1}),
        # Squared and divided by their sum: a .36/.52, then .16/.34, .09/.34, .09/.34; b .16/.52, then .81/.82, .01/.82.
        ({"temperature": 0.5}, {"a": 0.3258, "aa": 0.1833, "ab": 0.1833, "bb": 0.3039, "b": 0.0038}),
        ({"top_k": 1}, {"a": 1.0}),
        ({"top_k": 2}, {"b": 0.04, "bb": 0.36}),  # "$" and one of the equal "a" and "b" after "a"
        ({"top_p": 0.5}, {"a": 0.4 / 0.7}),  # "a" alone; then "$" and one of "a" and "b"
        ({"top_p": 0.61}, {"bb": 0.4, "b": 0.0}),
    ],
)
def test_draws_follow_the_probabilities(options, share):
    found = drawn(Table(GARDEN_PATH), 4000, **options)
    texts = ["".join("ab"[i - A] for i in ids) for ids, _ in found]
    for text, p in share.items():
        # Four standard deviations of a share of 4000 draws.
        assert texts.count(text) / 4000 == pytest.approx(p, abs=4 * math.sqrt(max(p * (1 - p), 1e-3) / 4000))
    log_p = {"a": 0.24, "aa": 0.18, "ab": 0.18, "bb": 0.36, "b": 0.04}
    assert all(total == pytest.approx(math.log(log_p[text])) for text, (_, total) in zip(texts, found, strict=True))


def test_samples_end_at_the_limit_and_avoid_forbidden_tokens():
    assert drawn(Table(lambda key, prefix: {A: 1.0}), 3, limit=4) == [([A] * 3, -math.inf)] * 3
    model = Table(lambda key, prefix: {PAD: 0.5, BOS: 0.3, A: 0.1, EOS: 0.1})
    assert {i for ids, _ in drawn(model, 200) for i in ids} == {A}
