"""The rules of the three distributionally robust weightings, against independent computations in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cats.weighting import ChiSquareDRO, CVaRDRO, GroupDRO
from cats.weighting.chi_square_dro import projected

CLOSE = {"rtol": 1e-10, "atol": 1e-13}  # a few float64 operations on numbers near 1; only their order differs
DRO = [GroupDRO, CVaRDRO, ChiSquareDRO]
SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def double(values):
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def update(weighting, losses, present):
    nothing = torch.full((len(present),), torch.nan, dtype=torch.float64)
    weighting.update(double(losses), nothing, nothing, present)


def test_cvar_does_not_depend_on_the_order_of_tasks_that_are_as_bad():
    weighting = CVaRDRO(floor=0)  # tail=0.5
    weighting.start(4)
    update(weighting, [1.0], [3])  # the others count as the mean of those that were seen
    np.testing.assert_allclose(weighting.weights(), [0.25] * 4, **CLOSE)
    update(weighting, [2.0, 1.0, 1.0], [0, 1, 2])  # the first is worst; the others share the rest of the tail
    np.testing.assert_allclose(weighting.weights(), [0.5] + [1 / 6] * 3, **CLOSE)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e20])
def test_chi_square_dro_takes_a_long_step_in_its_direction(size):
    weighting = ChiSquareDRO(step_size=1.0)
    weighting.start(4)
    update(weighting, size * np.array([1.0, 2.0, 3.0, 4.0]), [0, 1, 2, 3])
    # The edge of the ball in the direction of the losses. Steps of 1e3 are not endless, hence the tolerance.
    np.testing.assert_allclose(weighting.weights(), [0.1, 0.2, 0.3, 0.4], atol=1e-4)


def test_group_dro_is_exponentiated_gradient():
    rng = np.random.default_rng(0)
    b = np.array([0.5, 0.0, 0.1, 0.2])
    weighting = GroupDRO(step_size=0.3, shares=SHARES * 7, baselines=b)
    weighting.start(4)
    q = SHARES.copy()
    for t in range(20):
        here = np.array([0, 1, 2, 3] if t % 3 else [1, 3])
        losses = rng.uniform(0.5, 3, size=len(here))
        np.testing.assert_allclose(weighting.weights(), q, **CLOSE)
        update(weighting, losses, here.tolist())
        grown = q[here] * np.exp(0.3 * (losses - b[here]))
        q[here] = q[here].sum() * grown / grown.sum()  # the tasks of the batch keep what they have together
    assert q.max() > 0.6


def test_a_task_that_group_dro_gave_up_comes_back():
    weighting = GroupDRO(step_size=1.0)
    weighting.start(2)
    update(weighting, [1e6, 0.0], [0, 1])
    assert 0 < weighting.weights()[1] < 1e-100
    update(weighting, [0.0, 800.0], [0, 1])
    assert weighting.weights()[1] > 0.99


def cvar(excess, p, tail):
    """The mean of the worst share ``tail`` by its dual form: min over η of η + Σ p (x − η)₊ / α."""
    return min(eta + (p * np.maximum(excess - eta, 0)).sum() / tail for eta in excess)


def test_cvar_dro_solves_its_problem():
    rng = np.random.default_rng(1)
    for tail in (0.1, 0.5, 0.77, 1.0):
        b = rng.uniform(0, 1, size=4)
        weighting = CVaRDRO(tail=tail, rate=0.2, floor=0.0, shares=SHARES, baselines=b)
        weighting.start(4)
        np.testing.assert_allclose(weighting.weights(), SHARES, **CLOSE)  # no loss was seen
        mean = None
        for _ in range(10):
            losses = rng.uniform(0.5, 3, size=4)
            mean = losses if mean is None else 0.8 * mean + 0.2 * losses
            update(weighting, losses, [0, 1, 2, 3])
            q = weighting.weights().numpy()
            assert (q >= 0).all() and (q <= SHARES / tail * (1 + 1e-12)).all()
            np.testing.assert_allclose(q.sum(), 1, **CLOSE)
            np.testing.assert_allclose(q @ (mean - b), cvar(mean - b, SHARES, tail), **CLOSE)


def test_cvar_dro_floor_and_tasks_that_were_never_seen():
    weighting = CVaRDRO(tail=0.5, rate=1.0, floor=0.25, shares=SHARES)
    weighting.start(4)
    update(weighting, [1.0, 2.0, 6.0], [0, 1, 3])
    # Task 2 counts as the mean, 3. The tail takes tasks 3 and 2, and 0.2 of task 1's 0.3.
    q = np.maximum([0.0, 0.4, 0.4, 0.2], 0.25 * SHARES)
    np.testing.assert_allclose(weighting.weights(), q / q.sum(), **CLOSE)
    update(weighting, [9.0], [2])
    assert weighting.weights().argmax() == 2


@st.composite
def projections(draw):
    tasks = draw(st.integers(1, 6))
    numbers = st.lists(st.floats(0.01, 1), min_size=tasks, max_size=tasks)
    p = np.array(draw(numbers))
    move = np.array(draw(st.lists(st.floats(-1, 1), min_size=tasks, max_size=tasks)))
    return p / p.sum(), p / p.sum() + move * draw(st.sampled_from([0.01, 1.0, 100.0])), draw(st.floats(1e-3, 3))


@settings(max_examples=150, deadline=None)
@given(problem=projections(), seed=st.integers(0, 2**30))
def test_projection_onto_the_chi_square_ball(problem, seed):
    """q is the nearest point of a convex set C exactly if <point − q, x − q> ≤ 0 for all x of C."""
    p, point, rho = problem

    def divergence(x):
        return 0.5 * ((x - p) ** 2 / p).sum()

    q = projected(double(point), double(p), rho).numpy()
    assert (q >= 0).all() and q.sum() == pytest.approx(1) and divergence(q) <= rho * (1 + 1e-9) + 1e-12
    rng = np.random.default_rng(seed)
    for _ in range(50):
        x = rng.dirichlet(np.full(len(p), 0.3))
        if rng.random() < 0.5:  # near q
            x = q + rng.uniform(0, 0.1) * (x - q)
        x = p + min(1.0, np.sqrt(rho / max(divergence(x), 1e-300))) * (x - p)
        assert (point - q) @ (x - q) <= 1e-9 * np.abs(point - q).max() + 1e-12


def test_projection_with_tasks_that_have_no_share_and_without_a_ball():
    p = double([0.5, 0.5, 0.0])
    far = double([1e3, -1e3, 5.0])
    q = projected(far, p, 0.1)
    want = 0.5 + np.sqrt(0.05)  # ½ · 2 · (q − ½)² / ½ = 0.1
    np.testing.assert_allclose(q, [want, 1 - want, 0], rtol=1e-9)
    assert torch.equal(projected(far, p, 0.0), p)
    np.testing.assert_allclose(projected(far, p, 1e6), [1, 0, 0], atol=1e-9)


def test_chi_square_dro_ascends_and_projects():
    rng = np.random.default_rng(2)
    b = np.array([0.5, 0.0, 0.1, 0.2])
    weighting = ChiSquareDRO(rho=0.2, step_size=0.05, period=1, shares=SHARES, baselines=b)
    weighting.start(4)
    q = SHARES.copy()
    for t in range(30):
        here = np.array([0, 1, 2, 3] if t % 3 else [1, 3])
        losses = rng.uniform(0.5, 3, size=len(here)) + (here == 3)
        np.testing.assert_allclose(weighting.weights(), q, rtol=1e-9, atol=1e-12)  # the search ends at 1e-14
        update(weighting, losses, here.tolist())
        slope = np.zeros(4)
        slope[here] = losses - b[here] - (losses - b[here]) @ q[here] / q[here].sum()
        q = projected(double(q + 0.05 * slope), double(SHARES), 0.2).numpy()
    assert 0.5 * ((q - SHARES) ** 2 / SHARES).sum() == pytest.approx(0.2) and q[3] > 0.15
    # With all tasks, the mean makes no difference: the projection does not see a constant.
    moved = weighting.weights().numpy() + 0.05 * (np.array([1.0, 2.0, 3.0, 4.0]) - b)
    update(weighting, [1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3])
    np.testing.assert_allclose(weighting.weights(), projected(double(moved), double(SHARES), 0.2), rtol=1e-8)


@pytest.mark.parametrize("kind", DRO)
@settings(max_examples=30, deadline=None)
@given(losses=st.lists(st.floats(0, 5), min_size=4, max_size=4), order=st.permutations(range(4)))
def test_worse_tasks_get_more_and_the_order_of_the_tasks_does_not_matter(kind, losses, order):
    one, two = kind(), kind()
    for weighting in (one, two):
        weighting.start(4)
    for _ in range(3):
        update(one, losses, [0, 1, 2, 3])
        update(two, [losses[n] for n in order], [0, 1, 2, 3])
    w = one.weights()
    if len(set(losses)) == 4:  # among equal losses, CVaRDRO prefers the first task
        torch.testing.assert_close(two.weights(), w[list(order)], rtol=1e-9, atol=1e-12)
        assert (w[np.argsort(losses)].diff() >= -1e-12).all()


@pytest.mark.parametrize("kind", DRO)
def test_wrong_arguments(kind):
    name = kind.__name__
    for shares, message in (
        ([1.0, 2.0], "needs one number for each of the 3 tasks"),
        ([1.0, -1.0, 1.0], "needs finite numbers of at least 0, not all of them 0"),
        ([0.0, 0.0, 0.0], "needs finite numbers of at least 0, not all of them 0"),
        ([1.0, 1.0, float("inf")], "needs finite numbers"),
        ("abc", "needs one number for each of the 3 tasks"),
        ([10**400, 1.0, 1.0], "needs one number for each of the 3 tasks"),
    ):
        with pytest.raises(ValueError, match=f"{name}: shares {message}"):
            kind(shares=shares).start(3)
    with pytest.raises(ValueError, match=f"{name}: baselines needs finite numbers"):
        kind(baselines=[0.0, float("nan"), 0.0]).start(3)
    with pytest.raises(ValueError, match=r"CVaRDRO: tail must be a finite number from 1e-06 to 1, got 1\.5"):
        CVaRDRO(tail=1.5)
    with pytest.raises(ValueError, match="GroupDRO: step_size must be a finite number of at least 0, got 1000"):
        GroupDRO(step_size=10**400)
    with pytest.raises(ValueError, match="ChiSquareDRO: period must be an integer of at least 1"):
        ChiSquareDRO(period=0)
