"""The best response over the chi-square ball, and the method that samples with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cats.nmt.methods.chi_square_ibr import ChiSquareIBR, best_response
from tests.nmt.methods.common import Runs, decide, known, updates


def divergence(q: np.ndarray, p: np.ndarray) -> float:
    return float(0.5 * (p * (q / p - 1) ** 2).sum())


groups = st.integers(2, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-500, 500).map(lambda x: x / 100), min_size=n, max_size=n),
        st.lists(st.floats(0.01, 1), min_size=n, max_size=n),
        st.floats(1e-3, 3),
        st.integers(0, 10**6),
    )
)


@settings(max_examples=60, deadline=None)
@given(groups)
def test_no_point_of_the_ball_is_worse_for_the_model(case: tuple[list[float], list[float], float, int]) -> None:
    losses, p, rho = np.array(case[0]), np.array(case[1]) / sum(case[1]), case[2]
    q = best_response(losses, p, rho)
    assert q.min() >= 0 and q.sum() == pytest.approx(1)
    assert divergence(q, p) <= rho * (1 + 1e-6)
    np.testing.assert_allclose(best_response(losses + 7.0, p, rho), q, atol=1e-7)  # only differences matter
    random = np.random.default_rng(case[3])
    for _ in range(50):  # any other point of the ball, on its border if that is inside the simplex
        other = random.dirichlet(np.ones(len(p)))
        other = p + (other - p) * min(1.0, (rho / max(divergence(other, p), 1e-30)) ** 0.5)
        assert other @ losses <= q @ losses + 1e-7


def test_two_groups_by_hand() -> None:
    """For p = (½, ½): q = (½ + d, ½ − d) has the divergence 2 d², so d = √(ρ/2)."""
    q = best_response(np.array([1.0, 3.0]), np.array([0.5, 0.5]), 0.02)
    np.testing.assert_allclose(q, [0.4, 0.6], atol=1e-9)
    assert best_response(np.array([1.0, 3.0]), np.array([0.5, 0.5]), 5.0)[1] == 1.0  # the ball has the whole simplex
    np.testing.assert_array_equal(best_response(np.array([2.0, 2.0]), np.array([0.9, 0.1]), 0.1), [0.9, 0.1])
    floored = best_response(np.array([1.0, 3.0]), np.array([0.5, 0.5]), 5.0, floor=0.2)
    np.testing.assert_allclose(floored, [0.1 / 1.1, 1 / 1.1], atol=1e-9)  # (max(0, .2 · ½), 1), divided by its sum


def test_the_method_moves_to_the_worst_group() -> None:
    rule, p = ChiSquareIBR(rho=0.1, ema=0.5, floor=0.0), np.array([0.7, 0.2, 0.1])
    assert (rule.start(known(p)) == p).all()
    assert decide(rule, p, updates([(2, 10), (3, 5), (0, 0)])) is None  # the third task has no loss yet
    q = decide(rule, p, updates([(1, 10), (3, 5), (4, 2)], [(1, 10), (0, 0), (4, 2)]))
    average = np.array([0.5 * (0.5 * 2 + 0.5 * 1) + 0.5 * 1, 3.0, 4.0])
    np.testing.assert_allclose(q, best_response(average, p, 0.1))
    assert q[2] > p[2] and q[0] < p[0]


def test_no_task_below_the_smallest_share_with_clamp() -> None:
    rule, p = ChiSquareIBR(rho=3.0, clamp=True, floor=0.0), np.array([0.7, 0.2, 0.1])
    rule.start(known(p))
    q = decide(rule, p, updates([(1, 10), (3, 5), (4, 2)]))
    raw = np.maximum(best_response(np.array([1.0, 3, 4]), p, 3.0), 0.1)
    np.testing.assert_allclose(q, raw / raw.sum())


def test_baselines_of_a_reference_run() -> None:
    """A task that is as bad as in the reference run is not a bad one."""
    p, rule = np.array([0.5, 0.5]), ChiSquareIBR(rho=0.02, reference="run")
    rule.start(known(p, runs=Runs(training=[0.5, 3.0])))
    np.testing.assert_allclose(decide(rule, p, updates([(1, 4), (3, 4)])), [0.6, 0.4], atol=1e-9)


@pytest.mark.parametrize("options", [{"rho": 0.0}, {"period": 0}, {"ema": 1.5}, {"floor": 1.0}])
def test_wrong_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        ChiSquareIBR(**options)
