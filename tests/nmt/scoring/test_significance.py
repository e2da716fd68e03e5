"""cats.nmt.scoring.significance: compared with sacreBLEU and with enumeration; runs that cannot be compared."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.errors import UserError
from cats.nmt.scoring import significance
from cats.nmt.scoring.bootstrap import bleu, bleu_counts, chrf
from cats.nmt.scoring.hypotheses import digests
from cats.nmt.scoring.scores import read_scores, write_scores
from cats.nmt.scoring.significance import Counts, compare, paired_tests
from tests.nmt.scoring.samples import random_lines, worse, write_scored_run


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_bleu_of_counts_is_sacrebleus(count: int) -> None:
    from sacrebleu.metrics import BLEU

    references = ["a b c d", "", "one two", "x, y.", *random_lines(36, 1)][:count]
    for hypotheses in (worse(references, 0.3, 2), [f"{line} more" for line in references], ["zulu yes"] * count):
        expected = BLEU().corpus_score(hypotheses, [references]).score
        found = bleu(bleu_counts(hypotheses, references, "13a").sum(0))
        assert float(found) == pytest.approx(expected, abs=1e-9)


def test_p_values_are_near_sacrebleus() -> None:
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    references = random_lines(150, 3)
    first, second = worse(references, 0.30, 4), worse(references, 0.26, 5)
    counts = Counts(bleu_counts(first, references, "13a"), bleu_counts(second, references, "13a"), bleu)
    found = paired_tests({"x": counts}, {"x": np.arange(150)}, seed=1)
    _, expected = PairedTest([("a", first), ("b", second)], {"BLEU": BLEU()}, [references], "ar", n_samples=2000)()
    assert (found.first, found.second) == pytest.approx([r.score for r in expected["BLEU"]])
    # The p-values are shares of 2,000 and 10,000 random trials. Their standard deviation is at most about 0.01.
    assert found.p_randomisation == pytest.approx(expected["BLEU"][1].p_value, abs=0.04)
    assert found.p_bootstrap == pytest.approx(found.p_randomisation, abs=0.1)  # another test of the same difference
    assert 0.01 < found.p_randomisation < 0.99
    low, high = found.interval
    assert low < found.difference < high


def test_randomisation_compared_with_all_swaps() -> None:
    """Eight lines can be swapped in 256 ways, so the p-value of a mean over lines can be computed exactly."""

    def mean(counts: np.ndarray) -> np.ndarray:
        return counts[..., 0] / counts[..., 1]

    gains = np.array([3, -1, 4, 1, -5, 9, 2, 6])
    ones = np.ones(8)
    counts = Counts(np.stack([np.zeros(8), ones], 1), np.stack([gains, ones], 1), mean)
    found = paired_tests({"x": counts}, {"x": np.arange(8)}, seed=1)
    every = np.array([abs(np.dot(signs, gains)) for signs in itertools.product((1, -1), repeat=8)])
    exact = (every >= gains.sum()).mean()
    assert found.p_randomisation == pytest.approx(exact, abs=4 * np.sqrt(exact / significance.TRIALS))
    # The standard deviation of the resampled differences is that of a mean of eight draws.
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * gains.std() / np.sqrt(8), rel=0.1)
    assert found.difference == gains.mean()


def test_the_same_sentences_in_two_languages_are_no_more_evidence() -> None:
    references = random_lines(60, 6)
    counts = Counts(
        bleu_counts(worse(references, 0.3, 7), references, "13a"),
        bleu_counts(worse(references, 0.25, 8), references, "13a"),
        bleu,
    )
    alone = paired_tests({"x": counts}, {"x": np.arange(60)}, seed=1)
    twice = paired_tests({"x": counts, "y": counts}, {"x": np.arange(60), "y": np.arange(60)}, seed=1)
    assert twice == alone
    apart = paired_tests({"x": counts, "y": counts}, {"x": np.arange(60), "y": np.arange(60, 120)}, seed=1)
    width = [found.interval[1] - found.interval[0] for found in (alone, apart)]
    assert width[1] == pytest.approx(width[0] / np.sqrt(2), rel=0.15)


@pytest.mark.parametrize("turned", [False, True])
def test_the_sentence_that_tasks_share_is_source_or_reference(turned: bool) -> None:
    def lines(own: list[str], english: list[str]) -> significance.Lines:
        return significance.Lines(*((own, english) if turned else (english, own)), own, own)

    numbers = significance._sentences(
        {"az": lines(["a", "b", "c"], ["x", "y", "x"]), "be": lines(["d", "e"], ["y", "z"])}
    )
    assert numbers["az"][0] == numbers["az"][2] != numbers["az"][1] == numbers["be"][0] != numbers["be"][1]


def test_an_older_file_of_scores_and_a_missing_tokenizer(tmp_path: Path) -> None:
    runs = [write_scored_run(tmp_path / name, {"ja": ["a"]}, ["a"]) for name in ("one", "two")]
    path = runs[0] / "scores.json"
    scores = json.loads(path.read_text())
    scores["signatures"]["bleu"]["ja"] = "nrefs:1|tok:nobodys|smooth:exp"
    path.write_text(json.dumps(scores))
    with pytest.raises(UserError, match="computed with the tokenizer nobodys, which cannot be used here"):
        compare(*runs)
    scores["signatures"]["bleu"] = {}  # has no signature for the task
    path.write_text(json.dumps(scores))
    with pytest.raises(
        UserError, match=r"one/scores\.json is damaged or of an older version; make it again with: cats ev"
    ):
        compare(*runs)
    del scores["signatures"]
    path.write_text(json.dumps(scores))
    with pytest.raises(
        UserError, match=r"one/scores\.json is damaged or of an older version; make it again with: cats evaluate"
    ):
        compare(*runs)


def test_runs(tmp_path: Path) -> None:
    references = random_lines(80, 9)
    good, bad = worse(references, 0.1, 10), worse(references, 0.5, 11)
    a = write_scored_run(tmp_path / "a", {"az": bad, "be": good}, references)
    b = write_scored_run(tmp_path / "b", {"az": good, "be": good}, references)
    rows = {(row.name, row.metric): row.result for row in compare(a, b)}
    assert set(rows) == {(name, metric) for name in ("az", "be", "All") for metric in ("BLEU", "chrF")}
    for metric in ("BLEU", "chrF"):
        clear, equal, average = (rows[name, metric] for name in ("az", "be", "All"))
        assert clear.difference > 10 and clear.p_bootstrap < 0.002 and clear.p_randomisation < 0.0002
        assert equal.difference == 0 and equal.p_bootstrap == equal.p_randomisation == 1
        assert average.difference == pytest.approx(clear.difference / 2) and average.p_bootstrap < 0.002
    assert [row.result for row in compare(a, b)] == list(rows.values())  # seeded
    back = {(row.name, row.metric): row.result for row in compare(b, a)}
    assert back["az", "BLEU"].difference == -rows["az", "BLEU"].difference


def test_a_run_of_an_older_version_that_wrote_carriage_returns(tmp_path: Path) -> None:
    references = random_lines(20, 3)
    new, old = (write_scored_run(tmp_path / name, {"az": references}, references) for name in ("new", "old"))
    path = old / "hyp" / "test.az.ref"
    path.write_bytes(path.read_bytes().replace(b" ", b"\r"))
    assert [row.result.difference for row in compare(new, old)] == [0.0] * 4


def test_a_bilingual_run_beside_a_multilingual_one(tmp_path: Path) -> None:
    references = random_lines(40, 9)
    good, bad = worse(references, 0.1, 10), worse(references, 0.5, 11)
    a = write_scored_run(tmp_path / "a", {"az": bad, "be": good}, references)
    b = write_scored_run(tmp_path / "b", {"az": good}, references)
    rows = compare(a, b)
    assert [(row.name, row.metric) for row in rows] == [(n, m) for m in ("BLEU", "chrF") for n in ("az", "All")]
    assert rows[0].result.difference == rows[1].result.difference > 10
    assert significance.unshared(a, b) == ["be"]


def test_runs_that_are_not_trained_are_named(tmp_path: Path) -> None:
    references = random_lines(20, 9)
    a = write_scored_run(tmp_path / "a", {"az": references, "be": [" "] * 20}, references)
    b = write_scored_run(tmp_path / "b", {"az": references, "be": references}, references)
    assert significance.untrained(a, b) == ["A is not trained: all its translations of be are empty."]
    scores = json.loads((b / "scores.json").read_text())
    scores["lookup"]["groups"] = {"all": {"chrf": 50.5}, "lores": {"chrf": None}}
    (b / "scores.json").write_text(json.dumps(scores))
    below = "is not trained: its chrF is below that of the nearest-neighbour baseline in every group."
    assert significance.untrained(b, b) == [f"A {below}", f"B {below}"]


def other_references(a: Path, b: Path) -> None:
    (b / "hyp" / "test.az.ref").write_text("other\n" * 5)


def fewer_tasks(a: Path, b: Path) -> None:
    for run, name in (a, "az"), (b, "be"):
        scores = json.loads((run / "scores.json").read_text())
        del scores["languages"][name]
        scores["groups"]["all"]["languages"].remove(name)
        (run / "scores.json").write_text(json.dumps(scores))


def changed(a: Path, b: Path) -> None:
    write_scores(b / "scores.json", replace(read_scores(b), files=digests(b, "test", "best")))
    (b / "hyp" / "test.be.txt").write_text("other\n" * 5)


def no_text(a: Path, b: Path) -> None:
    (b / "hyp" / "test.az.txt").write_bytes(b"\xff\n" * 5)


def cut_short(a: Path, b: Path) -> None:
    (b / "hyp" / "test.az.txt").write_text("one\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_references, "the references of az in {a} and {b} differ: they cannot be compared"),
        (fewer_tasks, "{a} and {b} have no task in common: they cannot be compared"),
        (cut_short, "{b}/hyp: the files of az have different line counts; make them again with: cats evaluate {b}"),
        (
            lambda a, b: (b / "hyp" / "test.be.src").unlink(),
            "{b}/hyp/test.be.src is missing; make it with: cats evaluate {b}",
        ),
        (changed, "{b}/hyp/test.be.txt has changed since it was scored; make it again with: cats evaluate {b}"),
        (no_text, "{b}/hyp/test.az.txt: not UTF-8 (byte 1), so it is not what cats wrote"),
        (lambda a, b: (a / "scores.json").unlink(), "{a} holds no scores.json; make it with: cats evaluate {a}"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, change: Callable[[Path, Path], Any], message: str) -> None:
    references = random_lines(5, 12)
    a, b = (write_scored_run(tmp_path / name, {"az": references, "be": references}, references) for name in "ab")
    change(a, b)
    with pytest.raises(UserError) as info:
        compare(a, b)
    assert str(info.value) == message.format(a=a, b=b)


def test_chrf_is_the_other_metric() -> None:
    counts = significance._chrf_counts(significance.Lines(["s"], ["abcdef"], ["abcdef"], ["xyz"]), "")
    assert (float(chrf(counts.first.sum(0))), float(chrf(counts.second.sum(0)))) == (100.0, 0.0)
