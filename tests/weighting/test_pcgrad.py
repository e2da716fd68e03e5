"""PCGrad: the same as algorithm 1 on the gradients themselves, and no conflict is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from cats.weighting import PCGrad
from cats.weighting.randomness import random_orders
from tests.weighting.common import Net, gradients, gram_of, weights_of


def on_gradients(rows, orders):
    """Algorithm 1 of the paper: ḡ."""
    total = np.zeros_like(rows[0])
    for i, order in enumerate(orders):
        g = rows[i].copy()
        for j in order:
            dot = g @ rows[j]
            if dot < 0:
                g -= dot / (rows[j] @ rows[j]) * rows[j]
        total += g
    return total


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_algorithm_on_gradients(seed):
    rows = np.random.default_rng(seed).normal(size=(5, 7))
    weighting = PCGrad(seed)
    weighting.start(5)
    for step in range(3):
        weights = weighting.weights_from_gram(gram_of(rows), None).numpy()
        np.testing.assert_allclose(weights @ rows, on_gradients(rows, random_orders(5, seed, step)), rtol=1e-10)


def test_gradients_of_a_network():
    rows = Net().gradients()
    rows[2] -= 2 * rows[0]  # a conflict
    np.testing.assert_allclose(
        weights_of(PCGrad(), rows) @ rows, on_gradients(rows, random_orders(3, 0, 0)), rtol=1e-10
    )


@settings(max_examples=60, deadline=None)
@given(gradients(tasks=(2, 2)))
def test_two_tasks_have_no_conflict_left(rows):
    combined = weights_of(PCGrad(), rows) @ rows
    norms = np.linalg.norm(rows, axis=1)
    assert (rows @ combined >= -1e-12 * norms * (norms.sum())).all()


@settings(max_examples=40, deadline=None)
@given(gradients())
def test_weights_are_finite_and_do_not_depend_on_the_scale(rows):
    weights = weights_of(PCGrad(), rows)
    assert np.isfinite(weights).all() and (weights >= 1).all()
    for power in -80, 80:  # powers of two, so that nothing is rounded
        assert weights_of(PCGrad(), rows, scale=2.0**power).tolist() == weights.tolist()


def test_two_tasks_as_torchjd():
    torchjd = pytest.importorskip("torchjd.aggregation")
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows = rng.normal(size=(2, 3))
        torch.testing.assert_close(torch.tensor(weights_of(PCGrad(), rows)), torchjd.PCGradWeighting()(gram_of(rows)))


def test_orders_depend_on_the_seed_and_the_step():
    assert random_orders(6, 0, 0) == random_orders(6, 0, 0)
    assert random_orders(6, 0, 0) != random_orders(6, 0, 1) and random_orders(6, 0, 0) != random_orders(6, 1, 0)
    assert [sorted([i, *order]) for i, order in enumerate(random_orders(6, 3, 4))] == [list(range(6))] * 6
    firsts = [random_orders(3, 0, step)[0][0] for step in range(400)]
    assert 150 < firsts.count(1) < 250  # half of 400, five standard deviations of 10
    with pytest.raises(TypeError, match=r"PCGrad: seed must be an integer, got 1\.5"):
        PCGrad(1.5)
