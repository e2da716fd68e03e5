"""cats.nmt.scoring.compare.inference: on data of which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cats.nmt.scoring.bootstrap import CHAR_ORDER, resampled_scores, seed_weights
from cats.nmt.scoring.compare import inference
from cats.nmt.scoring.compare.results import Difference

CLUSTERS, SEEDS, TOTAL = 25, 5, 1000


def simulated(random: np.random.Generator, effect: float) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """chrF counts of methods a and b, which is `effect` points better on average over all possible seeds and lines.

    Seeds differ by 1 point (standard deviation), clusters by 3, of which the methods share most, and each translation
    of a cluster by 2.
    """
    shared = random.normal(0, 3, CLUSTERS)
    runs: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for method, mean in (("a", 50.0), ("b", 50.0 + effect)):
        own = shared + random.normal(0, 1, CLUSTERS)
        runs[method] = {}
        for seed in range(SEEDS):
            score = mean + random.normal() + own + random.normal(0, 2, CLUSTERS)
            counts = np.full((CLUSTERS, CHAR_ORDER, 3), TOTAL)
            counts[..., 2] = np.round(score * TOTAL / 100)[:, None]  # as many n-grams match as the score says
            runs[method][seed] = {"x": counts}
    return runs


def test_intervals_cover_the_truth_and_the_null_is_rejected_at_its_level() -> None:
    random, effect = np.random.default_rng(2), 1.5
    covered, rejected, found, trials = 0, 0, 0, 200
    for number in range(trials):
        for truth in (effect, 0.0):
            resampled = resampled_scores(simulated(random, truth), 300, number)
            difference = resampled["b"]["x"] - resampled["a"]["x"]
            observed = float(np.median(difference))
            low, high = inference.interval(difference)
            significant = inference.p_value(observed, difference) < 0.05
            covered += low <= truth <= high
            rejected += significant and truth == 0
            found += significant and truth != 0
    # The standard errors of these shares are about 0.01. With seeds drawn with replacement, intervals cover 0.91 here.
    assert 0.93 <= covered / (2 * trials) <= 0.98
    assert 0.01 <= rejected / trials <= 0.08
    assert found / trials >= 0.3  # an effect of about two standard errors


def test_holm_by_hand() -> None:
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, and no value is below the one before it.
    found = inference.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert inference.holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0} and inference.holm({}) == {}


def test_the_p_value_is_the_share_of_resamples_that_are_as_far_from_their_median() -> None:
    resampled = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # 2, 1, 0, 1, 2 from the median
    assert inference.p_value(2.0, resampled) == 3 / 6
    assert inference.p_value(-1.0, resampled) == 5 / 6
    assert inference.p_value(9.0, resampled) == 1 / 6


@pytest.mark.parametrize("seed", range(5))
def test_with_two_seeds_the_p_value_is_that_of_students_t(seed: int) -> None:
    """With one degree of freedom it has no mean, and the largest resample decides where the mean of all is."""
    resampled = 1.5 + 0.5 * np.random.default_rng(seed).standard_t(1, 2000)
    expected = 1 - 2 / math.pi * math.atan(3)  # P(|t| >= 3)
    assert inference.p_value(1.5, resampled) == pytest.approx(expected, abs=0.03)  # three standard errors


def test_differences_are_corrected_within_each_group() -> None:
    random = np.random.default_rng(3)
    means = {
        "base": {"lores": 10.0, "hires": 20.0},
        "a": {"lores": 12.0, "hires": 20.0},
        "b": {"lores": 11.0, "hires": 18.0},
    }
    samples = {m: {g: v + random.normal(0, 0.1, 999) for g, v in of.items()} for m, of in means.items()}
    found = inference.differences(means, samples, "base", Difference)
    assert list(found) == ["a", "b"] and found["b"]["hires"].chrf == -2.0
    assert found["a"]["lores"].p == found["b"]["lores"].p == 0.001 and found["a"]["hires"].p > 0.9
    assert found["a"]["lores"].p_holm == 0.002 and found["b"]["hires"].p_holm == 0.002
    low, high = found["a"]["lores"].interval
    assert 1.6 < low < 1.8 and 2.2 < high < 2.4  # 2 +- 1.96 * 0.14


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_intervals_of_the_worst_regret_cover_the_truth_although_it_is_a_maximum(apart: float) -> None:
    """Seeds differ by 1 (standard deviation). apart: how far the methods are, each better in some cells only."""
    random, cells = np.random.default_rng(4), [("ted", "lores"), ("ted", "hires"), ("wmt", "lores"), ("wmt", "hires")]
    truth = apart * np.array([[0, 0, 0, 0], [1, -1, 1, -1], [-1, 1, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    expected = (truth.max(0) - truth).max(1)
    methods, groups = ["a", "b", "c", "d"], {"ted": ["lores", "hires"], "wmt": ["lores", "hires"]}
    covered, trials = np.zeros(4), 100
    for _ in range(trials):
        scores = truth[..., None] + random.standard_normal((4, 4, 5))  # five seeds
        (weights,) = seed_weights([range(5)], 400, random)
        means: dict[str, dict[str, dict[str, float]]] = {name: {m: {} for m in methods} for name in groups}
        samples: dict[str, dict[str, dict[str, np.ndarray]]] = {name: {m: {} for m in methods} for name in groups}
        for i, method in enumerate(methods):
            for (name, group), seeds in zip(cells, scores[i], strict=True):
                means[name][method][group] = float(seeds.mean())
                samples[name][method][group] = seeds.mean() + weights @ seeds
        found = inference.regrets(means, samples, groups, methods, methods)
        ends = np.array([found[method].interval for method in methods])
        assert ends.min() >= 0  # each method is a rival of itself
        covered += (ends[:, 0] <= expected) & (expected <= ends[:, 1])
    # Here 0.82 to 0.99, with standard errors of 0.01 to 0.04. Percentile intervals: 0.06 to 0.08 if all methods are
    # equal, else 0.35 to 0.91.
    assert (covered / trials >= 0.75).all()


def test_regret_against_some_and_against_all() -> None:
    def of(lores: float, hires: float) -> dict[str, float]:
        return {"lores": lores, "hires": hires}

    means = {"ted": {"T=1": of(10, 30), "T=5": of(20, 25), "x": of(22, 28)}}
    flat = np.zeros(4)
    samples = {"ted": {m: {g: v + flat for g, v in groups.items()} for m, groups in means["ted"].items()}}
    groups, methods = {"ted": ["lores", "hires"]}, ["T=1", "T=5", "x"]
    temperatures = inference.regrets(means, samples, groups, methods, ["T=1", "T=5"])
    assert {m: (r.worst, r.where) for m, r in temperatures.items()} == {
        "T=1": (10, "ted lores"),
        "T=5": (5, "ted hires"),
        "x": (2, "ted hires"),
    }
    assert temperatures["x"].cells == {"ted lores": -2, "ted hires": 2} and temperatures["x"].interval == (2, 2)
    assert {m: r.worst for m, r in inference.regrets(means, samples, groups, methods, methods).items()} == {
        "T=1": 12,
        "T=5": 5,
        "x": 2,
    }
    assert {m: (r.above, r.above_interval) for m, r in temperatures.items()} == {
        "T=1": (8, (8, 8)),
        "T=5": (3, (3, 3)),
        "x": (0, (0, 0)),
    }
    assert inference.regrets(means, samples, groups, methods, []) == {}
    assert inference.regrets(means, samples, {"ted": []}, methods, methods) == {}  # no task is in a group
