"""The comparison with baselines: only equal computations are timed, and what is missing is reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.common.measure import Unavailable
from bench.trainer import baselines, comparison
from bench.trainer.cats_trainer import CHECK_UPDATES, LENGTH, CatsTrainer
from bench.trainer.comparison import OURS
from bench.trainer.records import Missing

from .common import TINY


def test_turns_rotate_and_the_first_round_warms_up() -> None:
    log: list[str] = []

    def turn(name: str) -> comparison.Turn:
        return lambda r: log.append(f"{name}{r}") or float(10 * r)  # type: ignore[func-returns-value]

    rates = comparison.interleave({name: turn(name) for name in "abc"}, 2, [])
    assert " ".join(log) == "a0 b0 c0 b1 c1 a1 c2 a2 b2"
    assert rates == {name: [10.0, 20.0] for name in "abc"}


def test_a_contender_that_fails_is_listed_and_the_others_go_on() -> None:
    def fails(r: int) -> float:
        if r == 1:
            raise Unavailable("out of memory")
        return 1.0

    missing: list[Missing] = []
    rates = comparison.interleave({OURS: lambda r: 2.0, "other": fails}, 3, missing)
    assert rates == {OURS: [2.0, 2.0, 2.0]}
    assert missing == [Missing("other", "out of memory")]


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down from round to round changes the rates, but not their ratios."""
    ours, other = comparison.compared({OURS: [8.0, 4.0, 2.0], "other": [4.0, 2.0, 1.0]})
    assert (ours.times.median, other.times.median) == (1, 2)
    assert (other.times.low, other.times.high) == (2, 2)
    assert other.per_second.median == 2 and other.per_second.samples == 3


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_plain_loop_is_the_same_computation(corpus: Path, tmp_path: Path) -> None:
    ours = CatsTrainer(TINY, corpus, tmp_path / "run")
    batches = ours.batches(CHECK_UPDATES + 1)
    weights = {name: value.clone() for name, value in ours.trainer.model.state_dict().items()}
    wanted = ours.check(batches[0])
    assert wanted[1] < wanted[0] - 0.005
    assert {m.p for m in ours.trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}

    job = ours.job(None)
    loop = baselines.Loop(job, batches, [], weights)
    comparison.check_nll(loop.check(CHECK_UPDATES)["nll"], wanted)
    assert {m.p for m in loop.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    found = loop.train(3, 1)
    assert found["tokens"] == int((batches[3][2] != 0).sum()) and found["seconds"] > 0

    for change, said in (
        ({"lr": 1.1 * job.lr}, "updates"),
        ({"smoothing": 0.5}, "updates"),
        ({"heads": 2}, "model"),
    ):
        other = baselines.Loop(replace(job, **change), batches, [], weights)
        with pytest.raises(Unavailable, match=f"not the same {said}: "):
            comparison.check_nll(other.check(CHECK_UPDATES)["nll"], wanted)


def test_translations_must_be_as_long_and_mostly_equal_to_ours() -> None:
    ours = [[i] * LENGTH for i in range(10)]
    found = [*ours[:9], [5] * LENGTH]
    assert comparison.check_lines(found, ours, 0.9) == 0.9
    with pytest.raises(Unavailable, match="90% of its translations are equal to ours"):
        comparison.check_lines(found, ours, 0.95)
    for wrong in ([*ours[:9], [9] * 3], ours[:9]):
        with pytest.raises(Unavailable, match="do not have 24 tokens"):
            comparison.check_lines(wrong, ours, 0.0)


def test_a_model_without_end() -> None:
    from cats.nmt.model.transformer import Transformer

    torch.manual_seed(1)
    model = Transformer(50, 16, 2, 16, 1, 1, 0.0).eval()
    comparison.endless(model, 3)
    source = torch.randint(4, 50, (5, 7))
    logits = model(source, torch.randint(4, 50, (5, 6))).detach()
    torch.testing.assert_close(logits[..., 3], torch.full((5, 6), -30.0), rtol=0, atol=1e-3)
    assert logits[..., 4:].amin() > -20


def test_ids_of_unknown_and_padding_change_places() -> None:
    assert baselines.swap(torch.tensor([[0, 1, 2], [3, 1, 40]])).tolist() == [[1, 0, 2], [3, 0, 40]]
