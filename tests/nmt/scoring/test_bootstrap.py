"""cats.nmt.scoring.bootstrap: chrF from counts compared with sacreBLEU, and the resampling."""

from __future__ import annotations

import numpy as np
import pytest

from cats.nmt.scoring.bootstrap import chrf, chrf_counts, cluster_counts, resampled_scores, seed_weights

HYPOTHESES = ["der Hund schläft heute", "3 Tage", "x", "", "zwei  Katzen, drei Hunde"]
REFERENCES = ["der Hund schlief heute", "3 Tage", "abc", "leer", "zwei Katzen und drei Hunde"]


def test_chrf_equals_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    for count in range(1, len(HYPOTHESES) + 1):
        counts = sum(map(chrf_counts, HYPOTHESES[:count], REFERENCES[:count]))
        expected = sacrebleu.corpus_chrf(HYPOTHESES[:count], [REFERENCES[:count]]).score
        assert float(chrf(counts)) == pytest.approx(expected, abs=1e-9)


def test_nothing_in_common_is_zero():
    assert float(chrf(chrf_counts("", "abc"))) == 0.0
    assert float(chrf(chrf_counts("xyz", "abc"))) == 0.0


def test_clusters_add_up():
    index = {"a": 0, "b": 1}
    counts = cluster_counts(HYPOTHESES, REFERENCES, ["a", "b", "a", "b", "a"], index)
    assert np.array_equal(counts[0], sum(chrf_counts(HYPOTHESES[i], REFERENCES[i]) for i in (0, 2, 4)))
    assert np.array_equal(counts.sum(0), sum(map(chrf_counts, HYPOTHESES, REFERENCES)))


def test_resampling_is_paired_and_centred():
    random = np.random.default_rng(0)
    reference = random.integers(50, 100, (40, 6, 1)).repeat(3, axis=2)
    reference[..., 2] = reference[..., 0] * 6 // 10
    better = reference.copy()
    better[..., 2] = reference[..., 0] * 7 // 10
    runs = {"low": {1: {"x": reference}, 2: {"x": reference}}, "high": {1: {"x": better}, 2: {"x": better}}}
    result = resampled_scores(runs, resamples=200)
    assert float(chrf(reference.sum(0))) == pytest.approx(result["low"]["x"].mean(), abs=0.1)
    difference = result["high"]["x"] - result["low"]["x"]
    # Each cluster is better by the same share, so the paired difference hardly varies.
    assert difference.min() > 9.5
    assert difference.std() < 0.1
    again = resampled_scores(runs, resamples=200)
    assert np.array_equal(result["low"]["x"], again["low"]["x"])


def test_languages_share_the_draws_of_the_clusters_that_both_have():
    random = np.random.default_rng(2)
    counts = np.sort(random.integers(1, 100, (9, 6, 3)))[..., ::-1]
    rows = {"x": np.array([0, 2, 3, 5, 8]), "y": np.array([1, 2, 3, 4, 5, 6, 7])}
    short = {language: counts[own] for language, own in rows.items()}
    whole = {language: np.zeros_like(counts) for language in rows}  # a cluster that a language lacks has no n-grams
    for language, own in rows.items():
        whole[language][own] = counts[own]
    found = resampled_scores({"a": {1: short, 2: short}}, resamples=250, rows=rows)
    expected = resampled_scores({"a": {1: whole, 2: whole}}, resamples=250)
    assert all(np.array_equal(found["a"][language], expected["a"][language]) for language in rows)


def test_the_mean_over_seeds_varies_as_student_t():
    random = np.random.default_rng(1)
    values = {"a": random.normal(size=5), "b": random.normal(size=5)}
    weights = seed_weights([[1, 2, 3, 4, 5]] * 2, 200_000, random)
    assert np.allclose(weights[0].sum(1), 0) and np.array_equal(weights[0], weights[1])
    difference = weights[0] @ values["b"] - weights[1] @ values["a"]
    apart = values["b"] - values["a"]
    error = apart.std(ddof=1) / np.sqrt(5)
    # Quantiles of Student's t with 4 degrees of freedom, from a table. Their own error here is about 0.02.
    for share, quantile in ((0.025, -2.776), (0.1, -1.533), (0.5, 0.0), (0.9, 1.533), (0.975, 2.776)):
        assert np.quantile(difference, share) / error == pytest.approx(quantile, abs=0.06)


def test_a_method_with_one_seed_varies_by_its_lines_only():
    flat = np.ones((5, 6, 3), dtype=np.int64)
    worse = flat.copy()
    worse[..., 0] = worse[..., 1] = 2
    result = resampled_scores({"one": {1: {"x": flat}}, "two": {1: {"x": flat}, 2: {"x": worse}}}, resamples=100)
    assert {*result["one"]["x"]} == {100.0} and result["two"]["x"].std() > 10
