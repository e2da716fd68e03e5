"""MGDA: the conditions of optimality, TorchJD, and the normalisations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cats.weighting import MGDA
from cats.weighting.mgda import RIDGE, nonnegative, shortest
from tests.weighting.common import Net, gradients, gram_of, weights_of


def assert_shortest(rows, weights):
    """<g_n, ḡ> ≥ ‖ḡ‖² for all n: exactly then no other convex combination is shorter. So ḡ is a common descent."""
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1, rel=1e-12)
    combined = weights @ rows
    norms = np.linalg.norm(rows, axis=1)
    # ḡ is no longer than the shortest gradient. The ridge moves the solution by sqrt(1e-10) of it at most.
    assert (rows @ combined >= combined @ combined - 2e-5 * norms * norms.min()).all()
    assert np.linalg.norm(combined) <= norms.min() * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(gradients())
def test_no_convex_combination_is_shorter(rows):
    assert_shortest(rows, weights_of(MGDA(), rows))


@pytest.mark.parametrize("k", [3, 8, 40])
def test_independent_gradients_to_full_precision(k):
    rng = np.random.default_rng(k)
    rows = rng.normal(size=(k, 100)) + 0.1
    weights = weights_of(MGDA(), rows)
    combined = weights @ rows
    excess = rows @ combined / (combined @ combined) - 1
    assert np.abs(excess[weights > 0]).max() < 1e-7 and excess.min() > -1e-7


@settings(max_examples=40, deadline=None)
@given(gradients(tasks=(2, 2), spread=2))
def test_two_tasks_in_closed_form_and_by_the_active_set(rows):
    found = weights_of(MGDA(), rows)
    norms = np.linalg.norm(rows, axis=1)
    if norms.min() > 0:
        u = torch.tensor(norms.min() / norms)
        cosines = gram_of(rows / norms[:, None])
        z = nonnegative(cosines + torch.outer(u, u) + RIDGE * torch.eye(2), u)
        other = (z * u / (z * u).sum()).numpy()
        assert np.linalg.norm((found - other) @ rows) <= 2e-5 * norms.min()


@settings(max_examples=50, deadline=None)
@given(gradients(tasks=(1, 6), spread=0), st.sampled_from([1e-24, 1e24]))
def test_the_scale_of_the_losses_does_not_matter(rows, scale):
    for normalisation in "none", "l2", "loss", "loss+":
        one = weights_of(MGDA(normalisation), rows)
        other = weights_of(MGDA(normalisation), rows, np.full(len(rows), scale**0.5), scale)
        np.testing.assert_allclose(one @ rows, other @ rows, atol=1e-6)


def test_it_is_no_worse_than_torchjd():
    torchjd = pytest.importorskip("torchjd.aggregation")
    rng = np.random.default_rng(0)
    for k in [2, 2, 2, 3, 4, 5, 6]:
        rows = rng.normal(size=(k, 5)) + 0.3
        gram = gram_of(rows)
        ours, theirs = torch.tensor(weights_of(MGDA(), rows)), torchjd.MGDAWeighting(1e-6, 1000)(gram)
        assert ours @ gram @ ours <= theirs @ gram @ theirs + 1e-9
        if len(rows) == 2:  # one step of Frank-Wolfe is exact then
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_equal_gradients_have_equal_weights():
    for k in range(1, 6):
        rows = np.ones((k, 2))
        np.testing.assert_allclose(weights_of(MGDA(), rows), np.full(k, 1 / k), rtol=1e-5)
    np.testing.assert_allclose(weights_of(MGDA(), np.array([[1.0, 0], [0, 1], [0, 1]])), [0.5, 0.25, 0.25], rtol=1e-5)


@pytest.mark.parametrize("small", [1.0, 1e-16, 1e-30, 1e30])
def test_two_tasks_of_any_size_both_descend(small):
    """The weight of the larger gradient is that much smaller, and 1 minus the other weight would be 0."""
    rows = np.array([[small, 0.0], [-0.6, 0.8]])
    along = rows @ (weights_of(MGDA(), rows) @ rows)
    cosines = along / np.linalg.norm(rows, axis=1) / np.linalg.norm(weights_of(MGDA(), rows) @ rows)
    assert (cosines > -1e-9).all()


def test_a_task_without_a_gradient():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert weights_of(MGDA(), rows).tolist() == [0, 1, 0]  # ḡ = 0 is the shortest of all
    assert weights_of(MGDA(), 0 * rows).tolist() == [1 / 3] * 3
    assert weights_of(MGDA("l2"), rows)[1] == 0 and weights_of(MGDA("l2"), rows).sum() == pytest.approx(1)
    assert weights_of(MGDA("l2"), 0 * rows).tolist() == [0, 0, 0]
    assert shortest(torch.ones(1, 1).double()).tolist() == [1]


@pytest.mark.parametrize("normalisation", ["none", "l2", "loss", "loss+"])
def test_normalised_gradients_of_a_network(normalisation):
    net = Net()
    rows, losses = net.gradients(), np.array([net.loss(n).item() for n in range(3)])
    norms = np.linalg.norm(rows, axis=1)
    size = {"none": np.ones(3), "l2": norms, "loss": losses, "loss+": losses * norms}[normalisation]
    weights = weights_of(MGDA(normalisation), rows, losses)
    shares = weights * size / (weights * size).sum()
    assert_shortest(rows / size[:, None], shares)
    assert (rows @ (weights @ rows) > 0).all()  # so it decreases all losses


def test_wrong_arguments():
    with pytest.raises(ValueError, match="normalisation must be"):
        MGDA("L2")
    with pytest.raises(ValueError, match=r"'loss\+' needs positive losses"):
        weights_of(MGDA("loss+"), np.eye(2), [1.0, -1.0])
    with pytest.raises(ValueError, match="MGDA: a loss is nan or infinite"):
        weights_of(MGDA("loss"), np.eye(2), [1.0, np.inf])
