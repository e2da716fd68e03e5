"""EXP3.S and the bandit on learning progress."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cats.nmt.methods.bandit import Bandit, exp3s, scaled
from tests.nmt.methods.common import decide, known, updates

arms = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(-30, 30), min_size=n, max_size=n)] * 2, st.floats(1e-3, 1))
)


@settings(max_examples=60, deadline=None)
@given(arms)
def test_exp3s_is_the_formula_and_loses_no_arm(case: tuple[list[float], list[float], float]) -> None:
    weights, gains, shared = np.array(case[0]), np.array(case[1]), case[2]
    found = exp3s(weights, gains, shared)
    powers = [math.exp(w + g) for w, g in zip(weights, gains, strict=True)]
    rest = [math.fsum(powers[:n] + powers[n + 1 :]) / (len(powers) - 1) for n in range(len(powers))]
    expected = np.log([(1 - shared) * own + shared * other for own, other in zip(powers, rest, strict=True)])
    np.testing.assert_allclose(found, expected - expected.max(), atol=1e-9, rtol=1e-9)
    np.testing.assert_allclose(exp3s(weights + 100, gains, shared), found, atol=1e-9)
    order = np.argsort(weights)
    np.testing.assert_allclose(exp3s(weights[order], gains[order], shared), found[order], atol=1e-9)
    assert found.min() >= math.log(shared / (2 * len(weights))) - 60 - 60  # finite, whatever the gains


def test_rewards_are_scaled_by_their_quantiles() -> None:
    history = np.arange(11.0).reshape(1, 11)  # the quantiles are 2 and 8
    np.testing.assert_allclose(scaled(np.array([-50.0, 2, 5, 6.5, 8, 99, np.nan]), history), [-1, -1, 0, 0.5, 1, 1, 0])
    assert (scaled(np.array([3.0, 3.0]), np.full((2, 2), 3.0)) == 0).all()


def test_two_decisions_by_hand() -> None:
    p = np.array([0.75, 0.25])
    rule = Bandit(rate=0.3, exploration=0.1)
    rule.start(known(p))
    assert decide(rule, p, updates([(4, 75), (5, 25)])) is None  # there is no progress yet
    found = decide(rule, p, updates([(3, 75), (3, 25)]))
    # Progress per share of the tokens: 1/.75 and 2/.25. The quantiles lie between them: rewards −1 and 1.
    first, second = math.exp(-0.3), math.exp(0.3)
    first, second = (first + second) / 2, (second + first) / 2  # a = 1/2: with two tasks, both are the mean
    q = np.array([0.75 * first, 0.25 * second])
    np.testing.assert_allclose(found, 0.9 * q / q.sum() + 0.05)
    found = decide(rule, p, updates([(2, 75), (1, 25)]))  # 1/.75 and 2/.25 again
    first, second = first * math.exp(-0.3), second * math.exp(0.3)
    first, second = 2 / 3 * first + 1 / 3 * second, 2 / 3 * second + 1 / 3 * first  # a = 1/3
    q = np.array([0.75 * first, 0.25 * second])
    np.testing.assert_allclose(found, 0.9 * q / q.sum() + 0.05)


def test_the_first_decision_already_prefers_the_task_that_learns() -> None:
    rule, p = Bandit(), np.ones(4) / 4
    rule.start(known(p))
    assert decide(rule, p, updates([(4, 25)] * 4)) is None
    found = decide(rule, p, updates([(4, 25), (4, 25), (4, 25), (3, 25)]))
    assert found.argmax() == 3 and found[3] > 0.25


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{"rate": 1000.0}, {"bonus": 5.0}])
def test_large_gains_and_updates_that_were_skipped(options: dict[str, float]) -> None:
    rule, now = Bandit(**options), np.array([0.6, 0.4, 0.0])
    rule.start(known(now))
    for step in range(12):
        losses = updates([(4 - 0.1 * step, 60), (5 - 0.2 * step, 40), (3, 20)])
        assert decide(rule, now, 0 * losses) is None  # no loss was finite
        found = decide(rule, now, losses)
        now = now if found is None else found
    assert now.min() > 0


def test_it_finds_the_task_that_still_learns() -> None:
    """The first task is learned, the last is noise that nobody learns; the one between makes progress."""
    random = np.random.default_rng(1)
    rule, p = Bandit(rate=0.5), np.ones(3) / 3
    now = rule.start(known(p))
    for step in range(40):
        losses = np.array([0.5, 8 - 0.2 * step, 6.0]) + 0.02 * random.standard_normal(3)
        found = decide(rule, now, updates([(loss, 100 * q) for loss, q in zip(losses, now, strict=True)]))
        now = now if found is None else found
    assert now[1] > 0.7 and now.min() > 0.05 / 3 - 1e-12
    for step in range(60):  # then it is learned, too, and the last begins to learn
        losses = np.array([0.5, 0.2, 6 - 0.1 * step]) + 0.02 * random.standard_normal(3)
        now = decide(rule, now, updates([(loss, 100 * q) for loss, q in zip(losses, now, strict=True)]))
    assert now.argmax() == 2


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"period": 0}, {"exploration": 0.0}, {"bonus": -1.0}])
def test_wrong_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        Bandit(**options)
