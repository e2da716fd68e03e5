"""GradNorm, and the optimizers of all methods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.tasks.methods import METHODS, GradNorm
from bench.tasks.problems import problems


def test_gradnorm_by_hand() -> None:
    weighting = GradNorm(power=1.5, lr=0.025)
    weighting.start(2)
    dots = torch.zeros(2)
    # First step: w = 1 and norms 2 and 1, so the target is 1.5 for both. The slopes in w are 2 and −1, those in p are
    # 1.5 and −1.5. The first step of Adam has the size of the learning rate, whatever the slope is.
    weighting.update(torch.tensor([4.0, 4.0]), dots, torch.tensor([4.0, 1.0]), [0, 1])
    larger, smaller = 2 / (1 + math.exp(-0.05)), 2 / (1 + math.exp(0.05))
    torch.testing.assert_close(weighting.weights(), torch.tensor([smaller, larger], dtype=torch.float64))


def test_gradnorm_descends_on_its_loss() -> None:
    """Two steps, against autograd on the formula."""
    weighting = GradNorm(power=1.5, lr=0.025)
    weighting.start(3)
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([p], lr=0.025)
    steps = [([1.0, 2.0, 3.0], [4.0, 1.0, 9.0]), ([0.5, 1.9, 0.3], [1.0, 3.0, 2.0])]

    def double(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    for losses, sqnorms in steps:
        weighting.update(double(losses), double([0, 0, 0]), double(sqnorms), [0, 1, 2])
        weighted = 3 * torch.softmax(p, 0) * double(sqnorms).sqrt()
        rates = double(losses) / double(steps[0][0])
        target = (weighted.mean() * (rates / rates.mean()) ** 1.5).detach()
        adam.zero_grad()
        (weighted - target).abs().sum().backward()
        adam.step()
    torch.testing.assert_close(weighting.weights(), 3 * torch.softmax(p.detach(), 0))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_with_equal_weights(method: str) -> None:
    problem = problems()["trunk with heads"]
    trial = problem.trial(0)
    optimizer = METHODS[method](torch.optim.AdamW(trial.model.parameters()), problem.tasks, trial)
    assert len(set(optimizer.alpha.values())) == 1
    before = [p.detach().clone() for p in trial.model.parameters()]
    optimizer.backward(trial.losses())
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(trial.model.parameters(), before, strict=True))
