"""The optimizers of all methods."""

from __future__ import annotations

import pytest
import torch

from bench.tasks.methods import COMPARED, METHODS
from bench.tasks.problems import problems

RANDOM = "RLW"


def test_the_compared_methods_exist() -> None:
    assert set(COMPARED) < set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_with_equal_weights_and_moves_the_model(method: str) -> None:
    problem = problems()["trunk with heads"]
    trial = problem.trial(0)
    optimizer = METHODS[method](torch.optim.AdamW(trial.model.parameters()), problem.tasks, trial)
    assert (len(set(optimizer.alpha.values())) == 1) == (method != RANDOM)
    before = [p.detach().clone() for p in trial.model.parameters()]
    optimizer.backward(trial.losses())
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(trial.model.parameters(), before, strict=True))
