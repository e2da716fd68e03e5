"""MultiDDS and MultiDDS-S: rewards from gradients, against float64, and the steps of the policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from cats.nmt.methods.multidds import MultiDDS, MultiDDSS
from tests.nmt.methods.common import decide, known

NOTHING = np.empty((0, 3, 2))


class Quadratic:
    """Three tasks L_n(θ) = ½ (θ − c_n)ᵀ A_n (θ − c_n), and other centres on the validation data."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.theta = torch.randn(6, generator=random)
        self.matrices = [(m := torch.randn(6, 6, generator=random)) @ m.T for _ in range(3)]
        self.centres = torch.randn(2, 3, 6, generator=random)

    def gradient(self, split: int, n: int) -> torch.Tensor:
        return self.matrices[n] @ (self.theta - self.centres[split, n])

    def training(self, task: int) -> list[torch.Tensor]:
        return list(self.gradient(0, task).split([4, 2]))

    def validation(self, task: int) -> list[torch.Tensor]:
        return list(self.gradient(1, task).split([4, 2]))

    def validation_sum(self) -> list[torch.Tensor]:
        return list(sum(self.gradient(1, n) for n in range(3)).split([4, 2]))

    @contextmanager
    def moved(self, direction: list[torch.Tensor], distance: float) -> Iterator[None]:
        before, self.theta = self.theta, self.theta + distance * torch.cat(direction)
        yield
        self.theta = before

    def agreed(self, numbers: np.ndarray) -> np.ndarray:
        return numbers


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("seed", range(3))
def test_rewards_against_float64(seed: int) -> None:
    problem = Quadratic(seed)
    matrices = [m.double().numpy() for m in problem.matrices]
    theta, centres = problem.theta.double().numpy(), problem.centres.double().numpy()
    train = [m @ (theta - c) for m, c in zip(matrices, centres[0], strict=True)]
    dev = [m @ (theta - c) for m, c in zip(matrices, centres[1], strict=True)]
    expected = [np.mean([cosine(d, t) for d in dev]) for t in train]
    # 1e-5: the gradients are float32
    np.testing.assert_allclose(MultiDDSS().rewards(problem, 3), expected, atol=1e-5)

    ahead = []
    for t in train:
        moved = theta - 0.1 * t
        ahead.append(cosine(t, sum(m @ (moved - c) for m, c in zip(matrices, centres[1], strict=True))))
    np.testing.assert_allclose(MultiDDS(step=0.1).rewards(problem, 3), ahead, atol=1e-5)


def test_psi_moves_as_with_torchs_adam() -> None:
    p, problem = np.array([0.6, 0.3, 0.1]), Quadratic(1)
    rule = MultiDDSS(rate=0.01, moves=30)
    rule.start(known(p))
    psi = torch.tensor(np.log(p), requires_grad=True)
    adam = torch.optim.Adam([psi], lr=0.01)
    for _ in range(2):
        found = decide(rule, p, NOTHING, gradients=problem)
        rewards = torch.tensor(rule.rewards(problem, 3))
        for _ in range(30):
            adam.zero_grad()
            (-(rewards * torch.log_softmax(psi, 0)).sum()).backward()
            adam.step()
        np.testing.assert_allclose(found, torch.softmax(psi, 0).detach().numpy(), atol=1e-9)


def test_a_task_whose_gradient_helps_is_drawn_more_often() -> None:
    problem = Quadratic(2)
    problem.matrices = [torch.eye(6)] * 3
    problem.theta = torch.zeros(6)
    problem.centres[1] = torch.ones(6)  # the development sets want all numbers to grow
    problem.centres[0] = torch.stack([torch.ones(6), -torch.ones(6), torch.tensor([1.0, -1] * 3)])
    for rule in (MultiDDSS(), MultiDDS()):
        p = rule.start(known(np.ones(3) / 3))
        for _ in range(10):
            p = decide(rule, p, NOTHING, gradients=problem)
        assert p[0] > 0.8


def test_gradients_that_are_zero_or_not_finite() -> None:
    problem = Quadratic(3)
    problem.matrices[0] = torch.zeros(6, 6)
    for rule in (MultiDDSS(), MultiDDS()):
        rewards = rule.rewards(problem, 3)
        assert rewards[0] == 0 and np.isfinite(rewards).all()
    problem.matrices[0] = torch.full((6, 6), torch.nan)
    rule = MultiDDSS()
    rule.start(known([0.5, 0.3, 0.2]))
    assert decide(rule, np.array([0.5, 0.3, 0.2]), NOTHING, gradients=problem) is None
    assert np.isfinite(rule.psi).all()


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"period": 0}, {"moves": 0}, {"step": -1.0}])
def test_wrong_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        MultiDDS(**options)
