"""Tasks whose gradient helps on the development sets are drawn more often (multidds and multidds-s)."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from torch import Tensor

import cats
from cats.nmt.methods.sampling_rule import Gradients, Known, SamplingRule, Seen, check, log, softmax

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam, which moves ψ


class _DifferentiableDataSelection(SamplingRule):
    """What both forms share: q = softmax(ψ), and ψ moves by policy gradient on the rewards R_n of the tasks.

    Every `period` updates: `moves` steps of Adam on −Σ R_n log q_n. ψ starts at the logarithm of what [sampling]
    configures; the paper has `sampling.temperature=1`.
    """

    needs_losses = False
    needs_gradients = True
    state = ("psi", "mean", "square", "moves_so_far")

    def __init__(self, period: int = 100, rate: float = 1e-3, moves: int = 200) -> None:
        check(
            period=(period > 0, period, "at least 1"),
            rate=(0 < rate < np.inf, rate, "above 0"),
            moves=(moves > 0, moves, "at least 1"),
        )
        self.period, self.rate, self.moves = period, rate, moves

    def start(self, known: Known) -> np.ndarray:
        self.psi = log(known.probabilities)
        self.mean, self.square = np.zeros_like(self.psi), np.zeros_like(self.psi)
        self.moves_so_far = np.zeros(())
        return known.probabilities

    @abstractmethod
    def rewards(self, gradients: Gradients, count: int) -> np.ndarray:
        """(count,) R_n."""

    def decide(self, seen: Seen) -> np.ndarray | None:
        assert seen.gradients is not None
        rewards = seen.gradients.agreed(self.rewards(seen.gradients, len(self.psi)))
        if not np.isfinite(rewards).all():
            return None  # the update itself has no finite gradient then; the trainer deals with that
        for _ in range(self.moves):
            gradient = softmax(self.psi) * rewards.sum() - rewards
            self.moves_so_far = self.moves_so_far + 1
            self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * gradient
            self.square = BETAS[1] * self.square + (1 - BETAS[1]) * gradient**2
            mean, square = (
                moment / (1 - beta**self.moves_so_far)
                for moment, beta in zip((self.mean, self.square), BETAS, strict=True)
            )
            self.psi = self.psi - self.rate * mean / (np.sqrt(square) + EPS)
        return softmax(self.psi)


class MultiDDSS(_DifferentiableDataSelection):
    """MultiDDS-S (Wang, Tsvetkov & Neubig, ACL 2020: "Balancing Training for Multilingual Neural Machine Translation").

    R_n = mean over the tasks m of cos(∇L_m on development data, ∇L_n on training data), all at one θ, with one batch of
    each task: the form that the paper recommends. The gradients are taken without dropout.

    The paper's run of 40 epochs on TED has period 1000 and rate 1e-4. The defaults let ψ move as far in 1,600 updates.

    Args:
        period: updates between two changes of q.
        rate, moves: learning rate and number of steps of Adam for each change.
    """

    def rewards(self, gradients: Gradients, count: int) -> np.ndarray:
        # Σ_m g_m/‖g_m‖ gives the sum of all cosines in one dot product, so two gradients at a time are in memory.
        direction: list[Tensor] = []
        for m in range(count):
            found = gradients.validation(m)
            unit = _norm(found)
            scale = 1 / (count * unit) if unit > 0 else 0.0
            rows = [direction, found] if direction else [found]
            direction = cats.ops.combine(rows, [1.0, scale][-len(rows) :])
        return np.array([_cosine(gradients.training(n), direction, norm=1.0) for n in range(count)])


class MultiDDS(_DifferentiableDataSelection):
    """MultiDDS (Wang, Tsvetkov & Neubig, ACL 2020), with a look-ahead: R_n = cos(∇L_n on training data at θ,
    Σ_m ∇L_m on development data at θ − step · ∇L_n).

    The paper's look-ahead is a step of descent on task n. The public code adds the gradient instead, which is a step of
    ascent; this follows the paper. The gradients are taken without dropout.

    Args:
        period, rate, moves: see multidds-s.
        step: learning rate of the look-ahead.
    """

    def __init__(self, period: int = 100, rate: float = 1e-3, moves: int = 200, step: float = 1e-3) -> None:
        super().__init__(period, rate, moves)
        check(step=(0 <= step < np.inf, step, "at least 0"))
        self.step = step

    def rewards(self, gradients: Gradients, count: int) -> np.ndarray:
        found = []
        for n in range(count):
            own = gradients.training(n)
            with gradients.moved(own, -self.step):
                ahead = gradients.validation_sum()
            found.append(_cosine(own, ahead, norm=_norm(ahead)))
        return np.array(found)


def _norm(gradient: list[Tensor]) -> float:
    return float(cats.ops.gram([gradient])[0, 0]) ** 0.5


def _cosine(gradient: list[Tensor], direction: list[Tensor], *, norm: float) -> float:
    """<gradient, direction>/(‖gradient‖ norm); 0 if a norm is 0."""
    scale = _norm(gradient) * norm
    return float(cats.ops.dots([gradient], direction)[0]) / scale if scale > 0 else 0.0
