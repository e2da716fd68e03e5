"""Probabilities, budgets, rounds and exact replay of the batch sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cats.nmt.data.sampler import Mixture, Sampler, split_batch, temperature_probabilities, unimax

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
def test_temperature_probabilities_are_the_published_ones(temperature, expected):
    assert list(temperature_probabilities(TED, temperature).values()) == pytest.approx(expected, abs=7e-4)


def test_probabilities_of_huge_sizes_and_tiny_temperatures_stay_finite():
    assert temperature_probabilities({"a": 10**12, "b": 1}, 0.01) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("temperature", [1.0, 5.0, math.inf])
def test_sentences_come_in_proportion_to_the_probabilities(temperature):
    sizes = {"a": 40, "b": 200, "c": 1000}
    sampler = Sampler(lengths(sizes), mixture=Mixture(temperature), batch_tokens=400, seed=3)
    counts = dict.fromkeys(sizes, 0)
    for step in range(600):
        for task, rows in sampler.batch(step).items():
            counts[task] += len(rows)
    total = sum(counts.values())
    for task, share in temperature_probabilities(sizes, temperature).items():
        # Credits make the counts exact to one sentence per bucket. The rest of the tolerance is for the random choice
        # of buckets, which changes all tasks together.
        assert counts[task] == pytest.approx(share * total, abs=2 * sampler.buckets + 0.01 * total)


@pytest.mark.parametrize(
    ("temperature", "published"),
    [
        (1.0, [0.006, 0.008, 0.013, 0.081, 0.136, 0.239, 0.243, 0.274]),
        (5.0, [0.076, 0.080, 0.089, 0.128, 0.142, 0.160, 0.160, 0.164]),
        (100.0, [1 / 8] * 8),
    ],
)
def test_draws_against_the_published_probabilities(temperature, published):
    """Chi-square with 7 degrees of freedom is above 24.3 once in a thousand. (Credits make the draws less random.)"""
    sizes = {task: size // 10 for task, size in TED.items()}
    sampler = Sampler(lengths(sizes), mixture=Mixture(temperature), batch_tokens=400, seed=5)
    counts = dict.fromkeys(sizes, 0)
    for step in range(300):
        for task, rows in sampler.batch(step).items():
            counts[task] += len(rows)
    found = np.array(list(counts.values()))
    expected = found.sum() * np.array(published) / sum(published)
    assert found.sum() > 5000 and ((found - expected) ** 2 / expected).sum() < 24.3


def test_budget_is_met_on_average():
    pairs = lengths({"a": 300, "b": 300})
    sampler = Sampler(pairs, mixture=Mixture(1.0), batch_tokens=500, seed=0)
    tokens = [sum(int(pairs[t][rows, 1].sum()) for t, rows in sampler.batch(step).items()) for step in range(400)]
    assert np.mean(tokens) == pytest.approx(500, rel=0.03)  # 400 updates of about 30 sentences


def test_every_sentence_once_per_round():
    sizes = {"a": 37, "b": 101}
    sampler = Sampler(lengths(sizes), mixture=Mixture(1.0), batch_tokens=200, seed=5)
    seen = {task: np.zeros(size, dtype=int) for task, size in sizes.items()}
    for step in range(300):
        for task, rows in sampler.batch(step).items():
            np.add.at(seen[task], rows, 1)
    for (task, bucket), members in sampler.members.items():
        counts = seen[task][members]
        assert counts.max() - counts.min() <= 1, (task, bucket)


def test_a_batch_is_a_function_of_seed_and_step():
    pairs = lengths({"a": 50, "b": 500})
    options = {"mixture": Mixture(1.0), "batch_tokens": 300, "seed": 7}
    first = Sampler(pairs, **options)
    history = [first.batch(step) for step in range(40)]
    resumed = Sampler(pairs, **options)
    for step in (25, 26, 39, 3):  # skip ahead, the next one, skip ahead, go back
        again = resumed.batch(step)
        assert again.keys() == history[step].keys()
        assert all(np.array_equal(again[task], rows) for task, rows in history[step].items())
    other = Sampler(pairs, **{**options, "seed": 8})
    assert any(not np.array_equal(other.batch(s).get("b"), history[s].get("b")) for s in range(5))


def test_rare_tasks_are_left_out_and_come_back():
    sampler = Sampler(lengths({"rare": 8, "giant": 8000}), mixture=Mixture(1.0), batch_tokens=200, seed=0)
    present = ["rare" in sampler.batch(step) for step in range(500)]
    assert 0 < sum(present) < 100


def test_one_sentence_per_task_and_a_budget_below_one_sentence():
    pairs = {"a": np.array([[4, 9]]), "b": np.array([[5, 7]])}
    sampler = Sampler(pairs, mixture=Mixture(1.0), batch_tokens=1, seed=0)
    for step in range(10):
        batch = sampler.batch(step)
        assert batch and all((rows == 0).all() for rows in batch.values())


def test_buckets_keep_rows_of_similar_length_together():
    pairs = lengths({"a": 800, "b": 800})
    sampler = Sampler(pairs, mixture=Mixture(1.0), batch_tokens=400, seed=0)
    waste = []
    for step in range(50):
        both = np.concatenate([pairs[t][rows].sum(1) for t, rows in sampler.batch(step).items()])
        waste.append(1 - both.mean() / both.max())
    assert np.mean(waste) < 0.1  # one bucket for all lengths (6 to 58 for both sides) wastes 0.45


def counted(sampler: Sampler, steps: int) -> dict[str, int]:
    counts = dict.fromkeys(sampler.tasks, 0)
    for step in range(steps):
        for task, rows in sampler.batch(step).items():
            counts[task] += len(rows)
    return counts


def test_explicit_ratios():
    sampler = Sampler(lengths({"a": 50, "b": 500}), mixture=Mixture(1.0, ratios=(3, 1)), batch_tokens=300, seed=0)
    counts = counted(sampler, 200)
    assert counts["a"] / counts["b"] == pytest.approx(3, rel=0.05)  # rounding in each of 12 buckets
    # They are in the order of the names, whatever the order of the tasks is.
    assert Mixture(1.0, ratios=(3, 1)).probabilities(0.0, {"b": 500, "a": 50}, {}, 300) == [0.25, 0.75]


def test_unimax_is_uniform_up_to_the_cap():
    tokens = {"giant": 1e6, "rare": 100.0, "middle": 5000.0}
    # A third is 3,000 tokens. rare may have only 4 x 100; the other two share the rest equally.
    assert unimax(tokens, 9000, 4) == pytest.approx({"giant": 4300 / 9000, "rare": 400 / 9000, "middle": 4300 / 9000})
    assert unimax(tokens, 9000, 1e9) == pytest.approx(dict.fromkeys(tokens, 1 / 3))
    # if every task reaches its cap, the shares are those of the caps
    assert unimax(tokens, 1e9, 1) == pytest.approx({task: n / 1005100 for task, n in tokens.items()})


def test_unimax_shares_are_of_tokens():
    pairs = {"short": np.full((1000, 2), 5), "long": np.full((1000, 2), 20)}
    sampler = Sampler(pairs, mixture=Mixture(1.0, unimax_epochs=50, steps=10), batch_tokens=400, seed=0)
    counts = counted(sampler, 10)
    assert 5 * counts["short"] == pytest.approx(20 * counts["long"], rel=0.05)


@pytest.mark.parametrize(("epochs", "uniform"), [(16, True), (8, False)])
@pytest.mark.parametrize("padded", [False, True])
def test_unimax_repeats_a_small_task_as_often_as_it_may(padded, epochs, uniform):
    """Padding is no text: with a padded budget, there are fewer target tokens for the same cap."""
    random = np.random.default_rng(0)
    pairs = {
        name: np.stack([random.integers(3, 30, n), random.integers(3, longest, n)], 1)
        for name, n, longest in (("small", 30, 30), ("middle", 900, 50), ("large", 3000, 15))
    }
    mixture = Mixture(1.0, unimax_epochs=epochs, steps=100)
    sampler = Sampler(pairs, mixture=mixture, batch_tokens=300 if padded else 200, seed=0, padded=padded)
    tokens = dict.fromkeys(pairs, 0)
    for step in range(100):
        for task, rows in sampler.batch(step).items():
            tokens[task] += int(pairs[task][rows, 1].sum())
    passes = tokens["small"] / pairs["small"][:, 1].sum()
    shares = {task: number / sum(tokens.values()) for task, number in tokens.items()}
    assert shares == pytest.approx(sampler.token_shares(0), rel=0.1)
    assert shares["middle"] == pytest.approx(shares["large"], rel=0.1)
    if uniform:
        assert shares["small"] == pytest.approx(1 / 3, rel=0.1) and passes < 16
    else:
        assert passes == pytest.approx(epochs, rel=0.1)


def test_a_temperature_that_changes():
    sizes = {"a": 100, "b": 10_000}
    mixture = Mixture(1.0, temperature_end=math.inf, steps=101)
    sampler = Sampler(lengths(sizes), mixture=mixture, batch_tokens=3000, seed=0)
    found = {}
    for step in range(101):
        sampler.batch(step)
        found[step] = mixture.probabilities(sampler.phase, sizes, sampler.mean_lengths, 3000)[0]
    assert found[0] == pytest.approx(100 / 10_100)
    assert found[50] == pytest.approx(temperature_probabilities(sizes, 2.0)["a"])
    assert found[100] == pytest.approx(0.5)
    again = Sampler(lengths(sizes), mixture=mixture, batch_tokens=3000, seed=0)
    assert all(np.array_equal(rows, sampler.batch(60)[task]) for task, rows in again.batch(60).items())


def test_pre_training_has_the_first_updates_to_itself():
    pairs = lengths({"a": 50, "b": 500, "c": 500})
    mixture = Mixture(1.0, pretrain=("b", "c"), pretrain_steps=20, steps=60)
    sampler = Sampler(pairs, mixture=mixture, batch_tokens=300, seed=0)
    tasks = [set(sampler.batch(step)) for step in range(60)]
    assert all("a" not in found for found in tasks[:20]) and any("a" in found for found in tasks[20:])
    tokens = [sum(int(pairs[t][rows, 1].sum()) for t, rows in sampler.batch(step).items()) for step in range(20)]
    assert np.mean(tokens) == pytest.approx(300, rel=0.1)


def test_some_tasks_an_update():
    sizes = {f"t{i}": 200 * (i + 1) for i in range(10)}
    pairs = lengths(sizes)
    sampler = Sampler(pairs, mixture=Mixture(2.0), batch_tokens=600, seed=1, tasks_per_update=3)
    tokens = []
    for step in range(1000):
        batch = sampler.batch(step)
        assert len(batch) <= 3
        tokens.append(sum(int(pairs[t][rows, 1].sum()) for t, rows in batch.items()))
    assert np.mean(tokens) == pytest.approx(600, rel=0.03)
    counts = counted(sampler, 1000)
    total = sum(counts.values())
    for task, share in temperature_probabilities(
        sizes, 2.0
    ).items():  # 300 draws of a task of share 0.1: 6 % standard deviation
        assert counts[task] / total == pytest.approx(share, rel=0.25)


def test_a_giant_is_in_every_update_of_some_tasks():
    sampler = Sampler(
        lengths({"giant": 9000, "a": 60, "b": 60, "c": 60}),
        mixture=Mixture(1.0),
        batch_tokens=2000,
        seed=0,
        tasks_per_update=2,
    )
    assert all("giant" in sampler.batch(step) for step in range(50))
    assert sampler.inclusion == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


def test_a_padded_budget_counts_the_longest_side():
    pairs = lengths({"a": 2000, "b": 2000})
    sampler = Sampler(pairs, mixture=Mixture(1.0), batch_tokens=600, seed=0, padded=True)
    seen = {task: np.zeros(2000, dtype=int) for task in pairs}
    cells = []
    for step in range(400):
        batch = sampler.batch(step)
        cells.append(sum(map(len, batch.values())) * max(int(pairs[t][rows].max()) for t, rows in batch.items()))
        for task, rows in batch.items():
            np.add.at(seen[task], rows, 1)
    assert np.mean(cells) <= 610 and max(cells) <= 600 + 2 * 30  # a sentence more for each of the two tasks
    counts = np.array([seen[t][m].mean() for (t, _), m in sampler.members.items()])
    assert counts.std() / counts.mean() < 0.25  # 400 draws among 16 buckets: 0.2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_parts_of_a_batch_are_alike_in_size(count):
    chosen = {"a": np.arange(5), "b": np.array([9]), "c": np.arange(20, 27), "d": np.array([3])}
    parts = split_batch(chosen, count)
    sizes = [sum(map(len, part.values())) for part in parts]
    assert len(parts) == count and max(sizes) - min(sizes) <= 1
    for task, rows in chosen.items():
        assert sorted(np.concatenate([part[task] for part in parts if task in part])) == sorted(rows)


def test_ranks_share_an_update():
    pairs = lengths({"a": 50, "b": 500})
    options = {"mixture": Mixture(1.0), "batch_tokens": 300, "seed": 7}
    whole = Sampler(pairs, **options)
    samplers = [Sampler(pairs, **options) for _ in range(3)]
    for step in range(20):
        batch = whole.batch(step)
        parts = [split_batch(sampler.batch(step), 3)[rank] for rank, sampler in enumerate(samplers)]
        for task, rows in batch.items():
            mine = [part.get(task, np.empty(0, dtype=int)) for part in parts]
            assert sorted(np.concatenate(mine)) == sorted(rows)
            assert max(map(len, mine)) - min(map(len, mine)) <= 1


def test_uneven_buckets_are_those_that_published_runs_had():
    sampler = Sampler(lengths({"a": 150, "b": 500}), mixture=Mixture(1.0), batch_tokens=400, seed=0)
    assert [len(sampler.members["a", bucket]) for bucket in range(16)] == [10] * 6 + [9] * 10


def test_one_tiny_task_does_not_take_the_buckets_from_the_others():
    pairs = {**lengths({"a": 500}), "tiny": np.array([[4, 4], [20, 20], [9, 9]])}
    sampler = Sampler(pairs, mixture=Mixture(math.inf), batch_tokens=400, seed=0)
    assert sampler.buckets == 16
    seen = counted(sampler, 200)
    assert seen["tiny"] / seen["a"] == pytest.approx(1, rel=0.1)
    rows = np.concatenate([sampler.batch(step).get("tiny", np.empty(0, dtype=int)) for step in range(200)])
    counts = np.bincount(rows)
    assert counts.min() > 0.5 * counts.max()


def test_resuming_far_ahead_is_quick_in_steps_not_in_sentences():
    sampler = Sampler(lengths({"a": 50, "b": 500}), mixture=Mixture(1.0), batch_tokens=300, seed=7)
    sampler.batch(2000)
    assert len(sampler.orders) <= 2  # nothing was shuffled for the updates that were skipped
