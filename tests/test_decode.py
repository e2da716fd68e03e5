import itertools
import math

import pytest
import torch
from torch import nn

from cats.nmt.decode import beam_search, translate
from cats.nmt.errors import UserError
from cats.nmt.model import Transformer, collate
from cats.nmt.tokenizer import Tokenizer

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

    def select(self, index):
        return State([self.rows[i] for i in index.tolist()])


def search(model, keys=(7,), limit=10, beam=2, length_penalty=0.0, forbidden=(PAD, BOS)):
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
    )


def tree(table):
    """Probabilities from {prefix as text: {token: probability}}; what is not there ends."""
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


def test_search_goes_on_while_a_longer_hypothesis_can_win():
    # "$" ends at once with 0.6 and leads for long; at penalty 1 the chain of ten "b" (0.39) wins with
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
    # "$" ends first; of the beam of 2 one place is left, and greedy from there on finds "aa", never "ba".
    table = tree({"": {"$": 0.4, "a": 0.35, "b": 0.25}, "a": {"a": 0.6, "b": 0.4}})
    model = Table(table)
    assert search(model, beam=2, length_penalty=9.0) == [[A, A]]
    assert model.rows == [1, 1, 1]


def test_what_never_ends_is_ended_at_the_limit():
    endless = Table(lambda key, prefix: {A: 0.7, B: 0.3})
    for beam in (1, 2, 5):
        assert search(endless, limit=4, beam=beam) == [[A, A, A]]
    # With eos possible everywhere, but seldom, what is open at the limit is compared with what ended before.
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
    """Different probabilities for every (key, prefix), the same for the same."""

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


def reference_beam(model, key, limit, beam, length_penalty):
    """The search as the docstring tells it, one hypothesis at a time, without any early stop."""
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
    best = max(ended, key=lambda item: item[1] / ((5 + len(item[0])) / 6) ** length_penalty)
    return list(best[0][:-1])


@pytest.mark.parametrize("beam", [1, 2, 3, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0, -1.0])
def test_equals_beam_search_one_hypothesis_at_a_time(beam, length_penalty):
    model = random_model(11)
    keys = tuple(range(5, 45))
    limits = [1 + key % 9 for key in keys]
    expected = [
        reference_beam(model, key, limit, beam, length_penalty) for key, limit in zip(keys, limits, strict=True)
    ]
    assert search(model, keys, limit=limits, beam=beam, length_penalty=length_penalty) == expected


def test_dead_hypotheses_cost_nothing():
    model = Table(GARDEN_PATH)
    search(model, keys=(7, 8), beam=2, length_penalty=0.0)
    assert model.rows[0] == 2  # one hypothesis a sentence to begin with, not two
    assert max(model.rows) == 4


# The real model and tokenizer.

LINES = [
    "the cat sat on the mat",
    "a bat",
    "",
    "the 12 cats of 2024 sat on 3 mats and on a bat and on a cat, on the mat of the bat",
    "cats",
    "   ",
    "the mat, the cat and the bat",
    "a bat",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([line for line in LINES if line.strip()], ["az", "ru"], 80)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Trained to copy (az) and to reverse (ru) the pieces of LINES, so that its outputs have words and an end."""
    torch.manual_seed(0)
    model = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.0)
    sources = tokenizer.encode_source(LINES, "az") + tokenizer.encode_source(LINES, "ru")
    targets = tokenizer.encode_target(LINES, "ru") + [
        [*row[-2::-1], row[-1]] for row in tokenizer.encode_target(LINES, "ru")
    ]
    batch = collate(sources, targets, [tokenizer.bos_id] * len(sources))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        logits = model(batch.source, batch.target_in)
        nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_out.flatten(), ignore_index=PAD).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_translates_in_input_order(model, tokenizer):
    found = translate(model, tokenizer, LINES, "az", beam=4)
    assert found[2] == found[5] == ""
    assert found[1] == found[7] == "a bat"
    assert [found[i] for i in (0, 4)] == ["the cat sat on the mat", "cats"]


def test_the_tag_is_the_language(model, tokenizer):
    (copy,), (backwards,) = (translate(model, tokenizer, ["cats"], language) for language in ("az", "ru"))
    (ids,) = tokenizer.encode_target(["cats"], "ru")
    assert copy == "cats"
    assert backwards == tokenizer.decode([ids[-2::-1]])[0]


def test_beam_one_is_greedy_without_a_cache(model, tokenizer):
    untrained = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.0)
    for network in (model, untrained):
        found = translate(network, tokenizer, LINES, "ru", beam=1)
        for line, text in zip(LINES, found, strict=True):
            if not line.strip():
                continue
            (source,) = tokenizer.encode_source([line], "ru")
            output = []
            for _ in range(2 * len(source) + 9):
                with torch.no_grad():
                    logits = network(torch.tensor([source]), torch.tensor([[tokenizer.bos_id, *output]]))[0, -1]
                logits[[i for i in range(tokenizer.first_piece) if i != tokenizer.eos_id]] = -math.inf
                output.append(int(logits.argmax()))
                if output[-1] == tokenizer.eos_id:
                    break
            assert tokenizer.decode([output]) == [text]


@pytest.mark.parametrize("beam", [1, 3])
def test_batches_do_not_matter(model, tokenizer, beam):
    together = translate(model, tokenizer, LINES, "ru", beam=beam)
    assert translate(model, tokenizer, LINES[::-1], "ru", beam=beam) == together[::-1]
    assert translate(model, tokenizer, LINES, "ru", beam=beam, batch_tokens=1) == together
    assert translate(model, tokenizer, LINES, "ru", beam=beam, batch_tokens=40) == together
    assert [translate(model, tokenizer, [line], "ru", beam=beam)[0] for line in LINES] == together


def test_batches_keep_to_their_tokens(model, tokenizer, monkeypatch):
    shapes = []
    encode = Transformer.encode
    monkeypatch.setattr(Transformer, "encode", lambda self, x: shapes.append(tuple(x.shape)) or encode(self, x))
    translate(model, tokenizer, LINES, "az", batch_tokens=40)
    assert sum(rows for rows, _ in shapes) == 6  # the blank lines are not computed
    assert len(shapes) > 1
    assert all(rows == 1 or rows * width <= 40 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_and_dropout_is_off(tokenizer, training):
    torch.manual_seed(1)
    network = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.5).train(training)
    first = translate(network, tokenizer, LINES, "az")
    assert network.training is training
    assert translate(network, tokenizer, LINES, "az") == first
    assert all(module.training is training for module in network.modules())
    with pytest.raises(UserError):
        translate(network, tokenizer, LINES, "xx")
    assert network.training is training


def test_the_mode_is_restored_after_an_error(tokenizer, monkeypatch):
    network = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.5)
    monkeypatch.setattr(network, "encode", lambda source: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        translate(network, tokenizer, LINES, "az")
    assert network.training


def test_nothing_to_translate(model, tokenizer):
    assert translate(model, tokenizer, [], "az") == []
    assert translate(model, tokenizer, ["", " \t"], "az") == ["", ""]
