"""GradVac: the same as algorithm 1 on the gradients themselves, group by group, and targets are reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cats
from cats.weighting import GradVac, PCGrad
from cats.weighting.randomness import random_orders
from tests.weighting.common import Net, gradients, gram_of, weights_of


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def on_gradients(rows, orders, targets, beta):
    """Algorithm 1 of the paper: ḡ. Moves the targets (K, K)."""
    total = np.zeros_like(rows[0])
    for i, order in enumerate(orders):
        g = rows[i].copy()
        for j in order:
            r, t = cosine(g, rows[j]), targets[i, j]
            if r < t:
                up = np.linalg.norm(g) * (t * np.sqrt(1 - r**2) - r * np.sqrt(1 - t**2))
                g += up / (np.linalg.norm(rows[j]) * np.sqrt(1 - t**2)) * rows[j]
            targets[i, j] = (1 - beta) * t + beta * r
        total += g
    return total


def test_groups_are_the_algorithm_on_their_gradients_with_absent_tasks():
    rng = np.random.default_rng(0)
    weighting = GradVac(beta=0.4, seed=3)
    weighting.start(5)
    targets = np.zeros((2, 5, 5))
    for step, present in enumerate([[0, 1, 2, 3, 4], [1, 3, 4], [0, 1, 2, 3, 4], [2], [0, 1, 2, 3, 4]]):
        base = rng.normal(size=(2, 1, 6))
        groups = rng.normal(size=(2, len(present), 6)) + (1.5 if step < 2 else 0.3) * base
        grams = torch.tensor(groups @ groups.transpose(0, 2, 1))
        weights = weighting.weights_from_grams(grams, None, present).numpy()
        orders = random_orders(len(present), 3, step)
        for g, rows in enumerate(groups):
            here = targets[g][np.ix_(present, present)]
            np.testing.assert_allclose(weights[g] @ rows, on_gradients(rows, orders, here, 0.4), rtol=1e-9)
            targets[g][np.ix_(present, present)] = here
        np.testing.assert_allclose(weighting.state_dict()["targets"], targets, rtol=1e-9, atol=1e-14)


def test_gradients_of_a_network_layer_by_layer():
    net = Net()
    optimizer = cats.MultiTask(torch.optim.SGD(net.parameters(), lr=0.1), 3, GradVac(0.5, "layer"), model=net)
    targets = [np.zeros((3, 3)) for _ in range(2)]
    for step in range(4):
        rows, before = net.gradients(), torch.cat([p.detach().flatten() for p in net.parameters()])
        optimizer.zero_grad()
        optimizer.backward([net.loss(n) for n in range(3)])
        optimizer.step()
        orders = random_orders(3, 0, step)
        parts = rows[:, :24], rows[:, 24:]  # Linear(5, 4) and Linear(4, 2)
        combined = [on_gradients(part, orders, t, 0.5) for part, t in zip(parts, targets, strict=True)]
        moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
        np.testing.assert_allclose(moved, -0.1 * np.concatenate(combined), rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(gradients(tasks=(2, 2)), st.floats(-0.99, 0.99))
def test_two_gradients_reach_their_target_similarity(rows, target):
    norms = np.linalg.norm(rows, axis=1)
    if norms.min() == 0 or abs(cosine(*rows)) > 1 - 1e-9:  # parallel gradients stay parallel
        return
    c = GradVac()._vaccinated(gram_of(rows).numpy()[None], np.array([[1], [0]]), np.full((1, 2, 2), target))[0, 0]
    # The cosine of float64 gradients and sums.
    assert cosine(c @ rows, rows[1]) == pytest.approx(max(target, cosine(*rows)), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(gradients(), st.sampled_from([0.01, 0.5, 1.0]))
def test_weights_are_finite_and_do_not_depend_on_the_scale(rows, beta):
    """Also after many steps with equal gradients, whose target is 1, opposite ones come."""
    one, other = GradVac(beta), GradVac(beta)
    one.start(len(rows))
    other.start(len(rows))
    grams = gram_of(rows)[None]
    same = gram_of(np.abs(rows).sum(1)[:, None])[None]  # all cosines are 1
    for given_grams in [same] * 5 + [grams] * 2:
        weights = one.weights_from_grams(given_grams, None, range(len(rows)))
        assert weights.isfinite().all()
        # A multiple of g_j may be up to 22.4 ‖g‖ / ‖g_j‖, for each of the others in turn.
        assert np.linalg.norm(weights.numpy() @ rows) <= len(rows) * 25.0 ** len(rows) * np.abs(rows).sum()
        assert one.state_dict()["targets"].abs().max() <= 1 + 1e-12
        scaled = other.weights_from_grams(2.0**80 * given_grams, None, range(len(rows)))
        assert torch.equal(weights, scaled)


@settings(max_examples=50, deadline=None)
@given(gradients(spread=0))
def test_without_moving_targets_it_is_pcgrad(rows):
    ours, theirs = weights_of(GradVac(beta=0), rows) @ rows, weights_of(PCGrad(), rows) @ rows
    # If a gradient was cancelled but for rounding errors, GradVac leaves these alone.
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(rows).sum())


def test_two_tasks_as_torchjd():
    torchjd = pytest.importorskip("torchjd.aggregation")
    rng = np.random.default_rng(1)
    ours, theirs = GradVac(beta=0.5), torchjd.GradVacWeighting(beta=0.5, eps=0.0)
    ours.start(2)
    for _ in range(20):
        gram = gram_of(rng.normal(size=(2, 4)) + 0.5)
        torch.testing.assert_close(ours.weights_from_grams(gram[None], None, [0, 1])[0], theirs(gram))


def test_a_state_of_other_tasks_or_groups():
    one, two = GradVac(), GradVac()
    one.start(2)
    two.start(3)
    one.weights_from_grams(torch.ones(4, 2, 2).double(), None, [0, 1])
    with pytest.raises(ValueError, match="'targets' must be"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="is of groups=None, not of groups='layer'"):
        GradVac(groups="layer").load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="1 groups of parameters more"):
        one.weights_from_grams(torch.ones(3, 2, 2).double(), None, [0, 1])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="beta must be"):
        GradVac(beta=1.5)
    with pytest.raises(TypeError, match="beta must be a number"):
        GradVac(beta="0.5")
    with pytest.raises(TypeError, match="seed must be an integer"):
        GradVac(seed=None)
