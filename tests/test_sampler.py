"""Shares, budgets, rounds and exact replay of the batch sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cats.nmt.sampler import Sampler, shares

# TED-8 related, pairs; the sampling probabilities at T = 1 and T = 5 were published with the data set's recipes.
TED = {"bel": 4510, "aze": 5940, "glg": 10000, "slk": 61500, "ces": 103000, "tur": 182000, "por": 185000, "rus": 208000}


def lengths(sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {task: random.integers(3, 30, (size, 2)) for task, size in sizes.items()}


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [0.006, 0.008, 0.013, 0.081, 0.136, 0.239, 0.243, 0.274]),
        (5.0, [0.076, 0.080, 0.089, 0.128, 0.142, 0.160, 0.160, 0.164]),
        (math.inf, [0.125] * 8),
    ],
)
def test_shares_are_the_published_ones(temperature, expected):
    assert list(shares(TED, temperature).values()) == pytest.approx(expected, abs=7e-4)


def test_shares_of_huge_sizes_and_tiny_temperatures_stay_finite():
    assert shares({"a": 10**12, "b": 1}, 0.01) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("temperature", [1.0, 5.0, math.inf])
def test_sentences_come_in_proportion_to_the_shares(temperature):
    sizes = {"a": 40, "b": 200, "c": 1000}
    sampler = Sampler(lengths(sizes), temperature=temperature, batch_tokens=400, seed=3)
    counts = dict.fromkeys(sizes, 0)
    for step in range(600):
        for task, rows in sampler.batch(step).items():
            counts[task] += len(rows)
    total = sum(counts.values())
    for task, share in sampler.shares.items():
        # credits make counts exact but for one sentence per bucket; the rest is the random choice of buckets, which
        # moves all tasks together
        assert counts[task] == pytest.approx(share * total, abs=2 * sampler.buckets + 0.01 * total)


def test_budget_is_met_on_average():
    pairs = lengths({"a": 300, "b": 300})
    sampler = Sampler(pairs, temperature=1.0, batch_tokens=500, seed=0)
    tokens = [sum(int(pairs[t][rows, 1].sum()) for t, rows in sampler.batch(step).items()) for step in range(400)]
    assert np.mean(tokens) == pytest.approx(500, rel=0.03)  # 400 updates of about 30 sentences


def test_every_sentence_once_per_round():
    sizes = {"a": 37, "b": 101}
    sampler = Sampler(lengths(sizes), temperature=1.0, batch_tokens=200, seed=5)
    seen = {task: np.zeros(size, dtype=int) for task, size in sizes.items()}
    for step in range(300):
        for task, rows in sampler.batch(step).items():
            np.add.at(seen[task], rows, 1)
    for (task, bucket), members in sampler.members.items():
        counts = seen[task][members]
        assert counts.max() - counts.min() <= 1, (task, bucket)


def test_a_batch_is_a_function_of_seed_and_step():
    pairs = lengths({"a": 50, "b": 500})
    options = {"temperature": 1.0, "batch_tokens": 300, "seed": 7}
    first = Sampler(pairs, **options)
    history = [first.batch(step) for step in range(40)]
    resumed = Sampler(pairs, **options)
    for step in (25, 26, 39, 3):  # jumping ahead, on, ahead, and back
        again = resumed.batch(step)
        assert again.keys() == history[step].keys()
        assert all(np.array_equal(again[task], rows) for task, rows in history[step].items())
    other = Sampler(pairs, **{**options, "seed": 8})
    assert any(not np.array_equal(other.batch(s).get("b"), history[s].get("b")) for s in range(5))


def test_rare_tasks_are_left_out_and_come_back():
    sampler = Sampler(lengths({"rare": 8, "giant": 8000}), temperature=1.0, batch_tokens=200, seed=0)
    present = ["rare" in sampler.batch(step) for step in range(500)]
    assert 0 < sum(present) < 100


def test_one_sentence_per_task_and_a_budget_below_one_sentence():
    pairs = {"a": np.array([[4, 9]]), "b": np.array([[5, 7]])}
    sampler = Sampler(pairs, temperature=1.0, batch_tokens=1, seed=0)
    for step in range(10):
        batch = sampler.batch(step)
        assert batch and all((rows == 0).all() for rows in batch.values())


def test_buckets_keep_rows_of_similar_length_together():
    pairs = lengths({"a": 800, "b": 800})
    sampler = Sampler(pairs, temperature=1.0, batch_tokens=400, seed=0)
    waste = []
    for step in range(50):
        both = np.concatenate([pairs[t][rows].sum(1) for t, rows in sampler.batch(step).items()])
        waste.append(1 - both.mean() / both.max())
    assert np.mean(waste) < 0.1  # one bucket for all lengths (6 to 58 for both sides) wastes 0.45
