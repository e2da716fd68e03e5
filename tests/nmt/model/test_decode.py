"""Translation with a small model that is trained to copy and to reverse."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cats.nmt.config.schema import Decode
from cats.nmt.data.batch import collate, pad
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model import decode
from cats.nmt.model.loss import line_nll
from cats.nmt.model.search import beam_search, sample
from cats.nmt.model.transformer import Transformer

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


def translations(model, tokenizer, lines, source, target, *, nbest=1, lines_before=0, limit=None, **settings: Any):
    """`settings` are those of the section decode."""
    more = {"nbest": nbest, "lines_before": lines_before, "limit": limit}
    return decode.translations(model, tokenizer, lines, source, target, Decode(**settings), **more)


def translate(*arguments, **options):
    return [found[0].text for found in translations(*arguments, **options)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([line for line in LINES if line.strip()], ["az", "ru"], 80)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Trained to copy (az) and to reverse (ru) the pieces of LINES, so that its outputs have words and an end."""
    torch.manual_seed(0)
    model = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.0)
    sources = tokenizer.encode_source(LINES, "en", "az") + tokenizer.encode_source(LINES, "en", "ru")
    targets = tokenizer.encode_target(LINES, "ru") + [
        [*row[-2::-1], row[-1]] for row in tokenizer.encode_target(LINES, "ru")
    ]
    batch = collate(sources, targets, [tokenizer.bos_id] * len(sources))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        logits = model(batch.source, batch.target_in)
        nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.target_out.flatten(), ignore_index=tokenizer.pad_id
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("sample", [False, True])
def test_outputs_that_are_not_finite_are_an_error(tokenizer, sample):
    broken = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.0)
    broken.decoder_norm.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="the outputs of the model are not finite: its training diverged"):
        translate(broken, tokenizer, LINES, "en", "az", sample=sample)


def test_a_translation_is_one_line(model, tokenizer, monkeypatch):
    decoded = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda *words: [text.replace(" ", "\r") for text in decoded(*words)])
    changed = translate(model, tokenizer, LINES[:1], "en", "az")
    monkeypatch.undo()
    assert changed == translate(model, tokenizer, LINES[:1], "en", "az") and " " in changed[0]


def test_a_very_long_line_is_cut_with_a_message(model, tokenizer, capsys):
    (short,) = translate(model, tokenizer, [" ".join(["cats"] * 9)], "en", "az", max_length=4, lines_before=6)
    first = capsys.readouterr().err
    assert "line 7 is too long: only the first 4 of" in first and "pieces are translated (decode.max_length)" in first
    # The whole line would take days.
    found = translate(model, tokenizer, ["cats", "cats " * 50_000], "en", "az", max_length=4)
    assert found[1] == short and "line 2 is too long" in capsys.readouterr().err


def test_translates_in_input_order(model, tokenizer):
    found = translate(model, tokenizer, LINES, "en", "az", beam=4)
    assert found[2] == found[5] == ""
    assert found[1] == found[7] == "a bat"
    assert [found[i] for i in (0, 4)] == ["the cat sat on the mat", "cats"]


def test_the_tag_is_the_language(model, tokenizer):
    (copy,), (backwards,) = (translate(model, tokenizer, ["cats"], "en", language) for language in ("az", "ru"))
    (ids,) = tokenizer.encode_target(["cats"], "ru")
    assert copy == "cats"
    assert backwards == tokenizer.decode([ids[-2::-1]])[0]


def test_beam_one_is_greedy_without_a_cache(model, tokenizer):
    untrained = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.0)
    for network in (model, untrained):
        found = translate(network, tokenizer, LINES, "en", "ru", beam=1)
        for line, text in zip(LINES, found, strict=True):
            if not line.strip():
                continue
            (source,) = tokenizer.encode_source([line], "en", "ru")
            output = []
            for _ in range(2 * len(source) + 9):
                with torch.no_grad():
                    logits = network(torch.tensor([source]), torch.tensor([[tokenizer.bos_id, *output]]))[0, -1]
                logits[[i for i in range(tokenizer.first_piece) if i != tokenizer.eos_id]] = -math.inf
                output.append(int(logits.argmax()))
                if output[-1] == tokenizer.eos_id:
                    break
            assert tokenizer.decode([output]) == [text]


@pytest.mark.parametrize("penalty", ["google", "fairseq"])
def test_nbest_of_real_text(model, tokenizer, penalty):
    found = translations(model, tokenizer, LINES, "en", "ru", beam=3, nbest=3, penalty=penalty)
    assert [best[0][0] for best in found] == translate(model, tokenizer, LINES, "en", "ru", beam=3, penalty=penalty)
    assert found[2] == [("", 0.0)] and [len(best) for best in found].count(3) == 6
    for best in found:
        assert [score for _, score in best] == sorted((score for _, score in best), reverse=True)
    with pytest.raises(UserError, match=r"a beam of 2 is too small for the 3 best; set decode\.beam \(--beam\) to 3"):
        translations(model, tokenizer, LINES, "en", "ru", beam=2, nbest=3)


def test_scores_are_those_of_the_full_forward(model, tokenizer):
    sources = tokenizer.encode_source(LINES[:2], "en", "ru")
    start, eos_id = tokenizer.start("ru"), tokenizer.eos_id
    special = {"start": start, "eos_id": eos_id, "forbidden": list(range(eos_id))}
    source, limits = pad(sources, tokenizer.pad_id), torch.tensor([30, 30])
    u = torch.tensor(np.random.default_rng(0).random((2, 30)))
    found = beam_search(model, source, limits, **special, beam=3, penalty="fairseq", length_penalty=0.5, nbest=2)
    drawn = sample(model, source, limits, u, 2.0, 0, 1.0, **special)
    for row, hypotheses, power in ((0, found[0], 0.5), (1, found[1], 0.5), (0, drawn[:1], 0.0), (1, drawn[1:], 0.0)):
        for ids, score in hypotheses:
            nll = line_nll(model, [sources[row]], [[*ids, eos_id]], start=start, batch_tokens=100)[0, 0]
            assert score == pytest.approx(-nll / (len(ids) + 1) ** power, rel=1e-4)  # float32


def test_samples_depend_on_the_seed_and_the_line_number(model, tokenizer):
    def drawn(lines, **options):
        found = translations(model, tokenizer, lines, "en", "az", **{"sample": True, "temperature": 3.0, **options})
        return [[text for text, _ in some] for some in found]

    together = drawn(LINES, nbest=2)
    assert together[1] != together[7] and together[0][0] != together[0][1]  # the same line again is drawn again
    assert drawn(LINES, nbest=2, batch_tokens=1) == together
    assert [drawn([line], nbest=2, lines_before=i)[0] for i, line in enumerate(LINES)] == together
    assert drawn(LINES, nbest=2, seed=2) != together
    assert drawn(LINES) == [some[:1] for some in together]
    assert drawn(LINES, top_k=1) == [[text] for text in translate(model, tokenizer, LINES, "en", "az", beam=1)]


def test_long_lines_outgrow_the_cache_they_began_with(tokenizer):
    network = Transformer(tokenizer.vocab_size, 16, 2, 16, 1, 1, 0.0).eval()
    source = torch.tensor([[tokenizer.tag("az"), *[20] * 50, tokenizer.eos_id]] * 2)
    state, ids = network.start(*network.encode(source)), torch.randint(10, tokenizer.vocab_size, (2, 70))
    with torch.no_grad():
        steps = torch.stack([network.step(ids[:, i], state) for i in range(70)], dim=1)
        torch.testing.assert_close(steps, network(source, ids), rtol=1e-4, atol=1e-5)
    assert state.past[0].shape[0] == 128  # doubled from 16


@pytest.mark.parametrize("beam", [1, 3])
def test_batches_do_not_matter(model, tokenizer, beam):
    together = translate(model, tokenizer, LINES, "en", "ru", beam=beam)
    assert translate(model, tokenizer, LINES[::-1], "en", "ru", beam=beam) == together[::-1]
    assert translate(model, tokenizer, LINES, "en", "ru", beam=beam, batch_tokens=1) == together
    assert translate(model, tokenizer, LINES, "en", "ru", beam=beam, batch_tokens=40) == together
    assert [translate(model, tokenizer, [line], "en", "ru", beam=beam)[0] for line in LINES] == together


def test_batches_keep_to_their_tokens(model, tokenizer, monkeypatch):
    shapes = []
    encode = Transformer.encode
    monkeypatch.setattr(Transformer, "encode", lambda self, x: shapes.append(tuple(x.shape)) or encode(self, x))
    translate(model, tokenizer, LINES, "en", "az", batch_tokens=40)
    assert sum(rows for rows, _ in shapes) == 6  # the blank lines are not computed
    assert len(shapes) > 1
    assert all(rows == 1 or rows * width <= 40 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_and_dropout_is_off(tokenizer, training):
    torch.manual_seed(1)
    network = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.5).train(training)
    first = translate(network, tokenizer, LINES, "en", "az")
    assert network.training is training
    assert translate(network, tokenizer, LINES, "en", "az") == first
    assert all(module.training is training for module in network.modules())
    with pytest.raises(UserError):
        translate(network, tokenizer, LINES, "en", "xx")
    assert network.training is training


def test_the_mode_is_restored_after_an_error(tokenizer, monkeypatch):
    network = Transformer(tokenizer.vocab_size, 32, 4, 64, 1, 1, 0.5)
    monkeypatch.setattr(network, "encode", lambda source: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        translate(network, tokenizer, LINES, "en", "az")
    assert network.training


def test_nothing_to_translate(model, tokenizer):
    assert translate(model, tokenizer, [], "en", "az") == []
    assert translate(model, tokenizer, ["", " \t"], "en", "az") == ["", ""]


def test_the_length_limit_fits_nearly_all_training_pairs():
    pairs = np.tile([10, 20], (2000, 1))
    assert decode.LengthLimit.of_pairs(pairs) == (3.0, 10.0)
    pairs[:1, 1] = 500  # one of 2,000: an outlier
    assert decode.LengthLimit.of_pairs(pairs).extra == 10
    pairs[:10, 1] = 100
    limit = decode.LengthLimit.of_pairs(pairs)
    assert [type(number) for number in limit] == [float, float]  # torch.load with weights_only=True takes no others
    assert limit.ratio == round(1.5 * pairs[:, 1].mean() / 10, 3) and limit.extra == math.ceil(100 - 10 * limit.ratio)
    assert limit.tokens(10) >= 100 and decode.LengthLimit().tokens(7) == 24


@pytest.mark.parametrize("options", [{"beam": 1}, {"beam": 3}, {"sample": True, "temperature": 9.0}])
def test_no_translation_is_longer_than_the_limit(model, tokenizer, options, monkeypatch):
    # What is counted are the pieces of the model: those of their text may be more or fewer.
    seen: list[int] = []
    original = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda rows: seen.extend(map(len, rows)) or original(rows))

    def longest(**more):  # of eight, because one that is drawn at random may be short
        seen.clear()
        translate(model, tokenizer, LINES[3:4] * 8, "en", "ru", **options, **more)
        return max(seen)

    assert longest() > 10
    assert longest(limit=decode.LengthLimit(0.0, 6.0)) <= 5  # the sixth token is the end
    assert longest(limit=decode.LengthLimit(0.0, 6.0), max_ratio=3.0) == longest()  # the setting is preferred
