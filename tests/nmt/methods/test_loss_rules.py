"""The rules that look at losses only: adaptive, mirror and doremi."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cats.nmt.errors import UserError
from cats.nmt.methods.adaptive import Adaptive
from cats.nmt.methods.doremi import DoReMi
from cats.nmt.methods.mirror import Mirror
from tests.nmt.methods.common import Runs, decide, known, updates

NOTHING = np.empty((0, 3, 2))


def test_adaptive_draws_what_is_below_its_baseline() -> None:
    p = np.array([0.5, 0.3, 0.2])
    rule = Adaptive(baselines=[1.0, 1.0, 1.0], power=2.0, epsilon=0.5)
    assert (rule.start(known(p)) == p).all()
    found = decide(rule, p, NOTHING, validation=np.array([1.0, 1.7, 0.3]))
    weights = [1 / 1.5, 1 / (math.exp(-0.7) ** 2 + 0.5), 1 / 1.5]  # better than the baseline counts as level with it
    expected = np.array([a * b for a, b in zip(p, weights, strict=True)])
    np.testing.assert_allclose(found, expected / expected.sum())


def test_adaptive_at_its_baselines_is_the_configured_mixture() -> None:
    p = np.array([0.5, 0.3, 0.2])
    rule = Adaptive(reference="run")
    rule.start(known(p, runs=Runs(validation=[1.5, 2.0, 0.1])))
    np.testing.assert_allclose(decide(rule, p, NOTHING, validation=np.array([1.5, 1.9, 0.1])), p)
    hopeless = decide(rule, p, NOTHING, validation=np.array([1.5, 1.9, 1e4]))
    np.testing.assert_allclose(hopeless[2] / hopeless[0], 0.2 / 0.5 * 1.1 / 0.1)  # the weight is at most 1/ε


def test_adaptive_needs_one_kind_of_baselines() -> None:
    for options in ({}, {"reference": "run", "baselines": [1.0]}):
        with pytest.raises(ValueError, match="give the validation NLL of a baseline for every task: reference=RUN"):
            Adaptive(**options)
    with pytest.raises(ValueError, match="baselines must be at least 0"):
        Adaptive(baselines=[1.0, -1.0])
    with pytest.raises(UserError, match=r"baselines has 2 numbers, the corpus 3 tasks \(t0, t1, t2\)"):
        Adaptive(baselines=[1.0, 2.0]).start(known([0.5, 0.3, 0.2]))


def reference_mirror(sizes: list[int], windows: list[np.ndarray], rate: float, temperature: float) -> list[list[float]]:
    """The rule in plain Python."""
    a, nats, tokens = [0.0] * len(sizes), [0.0] * len(sizes), [0.0] * len(sizes)
    q = [size / sum(sizes) for size in sizes]
    giant, result = sizes.index(max(sizes)), []
    for window in windows:
        for n in range(len(sizes)):
            nats[n] = 0.9 * nats[n] + sum(row[n][0] for row in window)
            tokens[n] = 0.9 * tokens[n] + sum(row[n][1] for row in window)
        losses = [x / y for x, y in zip(nats, tokens, strict=True)]
        mean = sum(x * y for x, y in zip(q, losses, strict=True))
        a = [x + rate * (loss - mean) for x, loss in zip(a, losses, strict=True)]
        most = [(1 - 1 / temperature) * math.log(sizes[giant] / size) for size in sizes]
        a = [min(max(x - a[giant], 0.0), top) for x, top in zip(a, most, strict=True)]
        q = [size * math.exp(x) for size, x in zip(sizes, a, strict=True)]
        q = [x / sum(q) for x in q]
        result.append(q)
    return result


def test_mirror_is_the_rule_and_stays_between_the_temperatures() -> None:
    sizes, random = [1000, 100, 10], np.random.default_rng(1)
    rule = Mirror(rate=0.2, temperature=3, period=5, first=0)
    now = rule.start(known([0.4, 0.3, 0.3], sizes))
    np.testing.assert_allclose(now, np.array(sizes) / 1110)
    windows = [
        updates(*[[(1, 50), (3 + random.random(), 5), (2 + random.random(), 1)] for _ in range(5)]) for _ in range(30)
    ]
    for window, expected in zip(windows, reference_mirror(sizes, windows, 0.2, 3), strict=True):
        now = decide(rule, now, window)
        np.testing.assert_allclose(now, expected, rtol=1e-9)
    cube = np.array(sizes) ** (1 / 3)
    np.testing.assert_allclose(now, cube / cube.sum())  # at the upper bounds: T = 3
    for _ in range(60):  # the giant is the worst now: back to T = 1
        now = decide(rule, now, updates(*[[(4, 50), (0.1, 5), (0.1, 1)]] * 5))
    np.testing.assert_allclose(now, np.array(sizes) / 1110)


def test_mirror_waits_and_takes_tasks_without_a_token() -> None:
    rule = Mirror(period=5, first=10, temperature=math.inf)
    now = rule.start(known([0.5, 0.25, 0.25], [100, 50, 50]))
    window = updates(*[[(1, 50), (3, 5), (0, 0)]] * 5)
    assert decide(rule, now, window) is None
    found = decide(rule, now, window)
    mean = (0.5 * 1 + 0.25 * 3) / 0.75
    a = np.array([0.05 * (1 - mean), 0.05 * (3 - mean), 0.0])
    expected = np.array([100, 50, 50]) * np.exp(np.clip(a - a[0], 0, np.log([1, 2, 2])))
    np.testing.assert_allclose(found, expected / expected.sum())
    for name, value in (("rate", 0.0), ("temperature", 0.5), ("period", 0), ("first", -1), ("decay", 2.0)):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Mirror(**{name: value})


def test_the_proxy_of_doremi() -> None:
    rule = DoReMi(reference="run", rate=0.5, smoothing=0.01)
    now = rule.start(known([0.8, 0.1, 0.1], runs=Runs(training=[1.0, 2.0, 1.0])))
    np.testing.assert_allclose(now, [1 / 3] * 3)
    found = decide(rule, now, updates([(3, 10), (1, 10), (0, 0)], [(1, 10), (1, 10), (0, 0)]))
    raised = np.array([math.exp(0.5 * (2 - 1)), 1.0, 1.0])  # below the reference: 0, not seen: 0
    np.testing.assert_allclose(found, 0.99 * raised / raised.sum() + 0.01 / 3)


def test_the_final_run_of_doremi_has_constant_ratios() -> None:
    rule = DoReMi(ratios_from="run")
    now = rule.start(known([0.8, 0.2], runs=Runs(mean=[0.3, 0.7])))
    assert now.tolist() == [0.3, 0.7] and decide(rule, now, updates([(3, 10), (1, 10)])) is None
    for options in ({}, {"reference": "a", "ratios_from": "b"}):
        with pytest.raises(ValueError, match=r"it takes three runs: a reference, .* a proxy, .* and the final one"):
            DoReMi(**options)
    with pytest.raises(ValueError, match=r"^rate must be"):
        DoReMi(reference="a", rate=-1)
