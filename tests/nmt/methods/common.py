"""What the tests of the sampling rules share."""

from __future__ import annotations

import copy

import numpy as np

from cats.nmt.methods.sampling_rule import Known, SamplingRule, Seen


class Runs:
    """Finished runs with made-up numbers."""

    def __init__(self, training: object = (), validation: object = (), mean: object = ()) -> None:
        self.numbers = {"training": training, "validation": validation, "mean": mean}

    def training_nll(self, run: str) -> np.ndarray:
        return np.array(self.numbers["training"], dtype=float)

    def validation_nll(self, runs: object) -> np.ndarray:
        return np.array(self.numbers["validation"], dtype=float)

    def mean_probabilities(self, run: str) -> np.ndarray:
        return np.array(self.numbers["mean"], dtype=float)


def known(probabilities: object, sizes: object = None, runs: object = None) -> Known:
    p = np.array(probabilities, dtype=float)
    tasks = [f"t{n}" for n in range(len(p))]
    return Known(tasks, 1000 * p if sizes is None else np.array(sizes, dtype=float), p, runs or Runs())


def updates(*rows: object) -> np.ndarray:
    """Losses of updates; a row has (nats per token, tokens) for each task."""
    pairs = np.array(rows, dtype=float)
    return np.stack([pairs[..., 0] * pairs[..., 1], pairs[..., 1]], -1)


def decide(rule: SamplingRule, now: np.ndarray, losses: np.ndarray, **more: object) -> np.ndarray | None:
    """One decision. It must be the same after the state is saved and loaded, and must not change its arguments."""
    before = now.copy(), losses.copy()
    other = copy.deepcopy(rule)
    for name in rule.state:
        setattr(other, name, None)
    other.load_state_dict(rule.state_dict())
    found, again = (r.decide(Seen(now, losses, **more)) for r in (rule, other))
    assert (found is None) == (again is None)
    np.testing.assert_array_equal(before[0], now)
    np.testing.assert_array_equal(before[1], losses)
    if found is not None:
        np.testing.assert_array_equal(found, again)
        assert (found >= 0).all() and abs(found.sum() - 1) < 1e-9
    return found
