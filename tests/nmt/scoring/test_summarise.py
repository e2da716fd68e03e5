"""cats.nmt.scoring.summarise: strata, groups and averages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.quality import Quality
from cats.nmt.scoring.scores import METRICS, Cell, Likelihood, RunFacts, TaskCell, to_json
from cats.nmt.scoring.summarise import Output, averages, summarise

RUN = RunFacts("toy", "test", "best", "cats", 1.0, 1, 10, None, None)


def corpus_of(sizes: dict[str, int], tests: dict[str, Split]) -> Corpus:
    tasks = [
        Task(name, "en", name, Split(["a"] * size, ["a"] * size), Split([], []), tests[name])
        for name, size in sizes.items()
    ]
    return Corpus("toy", tasks)


def table_of(ours: dict[str, Output], theirs: dict[str, Output], corpus: Corpus) -> dict[str, Any]:
    """The scores as scores.json has them."""
    return to_json(summarise(ours, theirs, corpus, corpus.groups, zero_shot={}, run=RUN))


def test_headline_scores_are_of_the_headline_stratum_and_nll_of_all_lines() -> None:
    meta = [("new-pair", "1"), ("seen-skeleton", "2"), ("seen-skeleton", "2")]
    test = Split(["s"] * 3, ["one two three four", "five six seven eight", "nine ten eleven twelve"], meta)
    none = Split([], [], [])
    corpus = corpus_of({"xa": 10, "xb": 100, "xc": 10}, {"xa": test, "xb": test, "xc": none})
    right, wrong = test.target, ["zzz"] * 3
    nll = np.array([[2.0, 4.0], [9.0, 3.0], [1.0, 1.0]])
    ours = {
        "xa": Output("xa", test, [right[0], wrong[1], right[2]], nll),
        "xb": Output("xb", test, right, nll * [2, 1]),
        "xc": Output("xc", none, [], np.zeros((0, 2))),
    }
    theirs = {
        "xa": Output("xa", test, wrong),
        "xb": Output("xb", test, right),
        "xc": Output("xc", none, []),
    }
    table = table_of(ours, theirs, corpus)
    assert table["headline"] == "new-pair" and sorted(table["strata"]) == ["new-pair", "seen-skeleton"]
    xa = table["languages"]["xa"]
    assert (round(xa["bleu"]), round(xa["chrf"]), xa["lines"], xa["pairs"]) == (100, 100, 1, 10)
    assert xa["nll"] == 12 / 8
    assert table["strata"]["new-pair"]["languages"]["xa"]["nll"] == 2 / 4
    assert table["strata"]["seen-skeleton"]["languages"]["xa"]["nll"] == 10 / 4
    assert table["strata"]["seen-skeleton"]["languages"]["xa"]["lines"] == 2
    assert 30 < table["strata"]["seen-skeleton"]["languages"]["xa"]["chrf"] < 80
    none_of_it = dict.fromkeys((*METRICS[:5], "nll", "perplexity"))
    assert table["languages"]["xc"] == {**none_of_it, "lines": 0, "pairs": 10}
    assert xa["perplexity"] == pytest.approx(math.exp(1.5))
    only = table_of(ours, {"xb": theirs["xb"], "xc": theirs["xc"]}, corpus)
    assert only["lookup"]["languages"]["xa"]["chrf"] is None and only["lookup"]["languages"]["xa"]["lines"] == 1
    assert only["beats_lookup"] == {"all": None, "lores": None, "hires": False}
    # xc has no test lines, so it is not part of the averages.
    assert table["groups"]["all"]["nll"] == pytest.approx((12 / 8 + 24 / 8) / 2)
    assert table["groups"]["lores"]["languages"] == ["xa", "xc"] and table["groups"]["lores"]["nll"] == 12 / 8
    assert table["lookup"]["groups"]["lores"]["chrf"] < 1 and "nll" not in table["lookup"]["groups"]["lores"]
    assert table["beats_lookup"] == {"all": True, "lores": True, "hires": False}  # equal is not better


def test_without_strata_all_lines_count() -> None:
    test = Split(["s", "s"], ["one two three four", "five six seven eight"], [("m", "1"), ("m", "2")])
    corpus = corpus_of({"xa": 10}, {"xa": test})
    ours = {"xa": Output("xa", test, ["one two three four", "zzz"], np.array([[1.0, 1.0], [math.inf, 1.0]]))}
    table = table_of(ours, {"xa": Output("xa", test, ["zzz", "zzz"])}, corpus)
    assert table["headline"] is None and table["strata"] == {}
    assert table["languages"]["xa"]["lines"] == 2 and table["languages"]["xa"]["chrf"] < 80
    assert table["languages"]["xa"]["nll"] is None  # not finite, and JSON has no infinity
    assert table["groups"]["all"]["nll"] is None
    # No language is below the mean.
    assert table["groups"]["lores"]["chrf"] is None and table["beats_lookup"]["lores"] is None


def test_the_perplexity_of_a_group_is_that_of_its_mean_nll() -> None:
    cells = {name: TaskCell(likelihood=Likelihood(nll), lines=1) for name, nll in (("az", 1.0), ("ru", 3.0))}
    average = averages(cells, {"all": ["az", "ru"]})["all"]
    assert average == Cell(Quality(), Likelihood(2.0)) and average.get("perplexity") == math.exp(2.0)


def test_an_average_does_not_hide_a_language_that_diverged() -> None:
    cells = {
        "a": TaskCell(Quality(bleu=1.0, chrf=2.0), Likelihood(None), lines=1),
        "b": TaskCell(Quality(bleu=3.0, chrf=4.0), Likelihood(5.0), lines=1),
    }
    expected = Cell(Quality(bleu=2.0, chrf=3.0), Likelihood(None))
    assert averages(cells, {"all": ["a", "b"]}) == {"all": expected}
