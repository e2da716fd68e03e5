"""A bandit that draws the tasks with the most learning progress (bandit)."""

from __future__ import annotations

import numpy as np

from cats.nmt.methods.sampling_rule import Known, SamplingRule, Seen, check, log, softmax

REMEMBERED = 1000  # rewards per task whose quantiles scale the next ones


class Bandit(SamplingRule):
    """EXP3.S on the learning progress of the tasks (Graves et al., ICML 2017: "Automated Curriculum Learning for
    Neural Networks", Algorithm 1; for translation: Kreutzer, Vilar & Sokolov, 2021).

    Every `period` updates, with τ_n the share of task n in the target tokens since the last decision:
        reward      (L_n before − L_n) / τ_n, where L_n is the training loss; it is scaled linearly so that the 20 and
                    80 % quantiles of the rewards so far become −1 and 1, and clipped to [−1, 1]: r_n
        weights     w_n ← log[(1 − a) e^{w_n + η r̃_n} + a/(N−1) Σ_{m≠n} e^{w_m + η r̃_m}],  r̃_n = r_n + β/π_n
        probability π = (1 − ε) softmax(log p + w) + ε/N

    Update t of the weights has a = 1/(t + 1): in the paper, w_1 is 0, and w_2 has a = 1/2.

    Differences from the paper. There one task is drawn per update, and only it has a reward: r̃_n = (r_n [n is drawn] +
    β)/π_n. Here every update has all tasks, so r_n [n is drawn]/π_n is replaced by its expectation r_n. p is what
    [sampling] configures, so the bandit starts there; `sampling.temperature=inf` is the paper's uniform start. The
    quantiles are those of the newest rewards, not of a random sample of all.

    Args:
        period: updates between two decisions.
        rate: η. The paper's 0.001 is for rewards divided by π_n.
        exploration: ε, the share that is spread over all tasks evenly.
        bonus: β, in favour of rare tasks.
    """

    state = ("prior", "weights", "before", "rewards", "decisions")

    def __init__(self, period: int = 20, rate: float = 0.1, exploration: float = 0.05, bonus: float = 0.0) -> None:
        check(
            period=(period > 0, period, "at least 1"),
            rate=(0 < rate < np.inf, rate, "above 0"),
            exploration=(0 < exploration <= 1, exploration, "above 0 and at most 1"),
            bonus=(0 <= bonus < np.inf, bonus, "at least 0"),
        )
        self.period, self.rate, self.exploration, self.bonus = period, rate, exploration, bonus

    def start(self, known: Known) -> np.ndarray:
        count = len(known.tasks)
        self.prior, self.weights, self.before = known.probabilities, np.zeros(count), np.full(count, np.nan)
        self.rewards, self.decisions = np.empty((0, count)), np.zeros(())
        return known.probabilities

    def decide(self, seen: Seen) -> np.ndarray | None:
        losses, tokens = seen.mean_losses(), seen.losses[..., 1].sum(0)
        if not tokens.any():
            return None  # all updates since the last decision were skipped
        share = np.maximum(tokens, 1.0) / tokens.sum()
        progress = (self.before - losses) / share  # nan for a task that has not been seen twice
        self.before = np.where(np.isnan(losses), self.before, losses)
        if np.isnan(progress).all():
            return None
        self.rewards = np.concatenate([self.rewards, progress[None]])[-REMEMBERED:]
        self.decisions = self.decisions + 1
        reward = scaled(progress, self.rewards) + self.bonus / np.maximum(seen.probabilities, 1e-12)
        self.weights = exp3s(self.weights, self.rate * reward, 1.0 / (float(self.decisions) + 1))
        even = self.exploration / len(losses)
        return (1 - self.exploration) * softmax(log(self.prior) + self.weights) + even


def scaled(rewards: np.ndarray, history: np.ndarray) -> np.ndarray:
    """The rewards on a scale on which the 20 and 80 % quantiles of the history are −1 and 1, clipped; nan becomes 0."""
    low, high = np.nanquantile(history, [0.2, 0.8])
    if not high > low:
        return np.zeros(len(rewards))
    return np.nan_to_num(np.clip(2 * (rewards - low) / (high - low) - 1, -1.0, 1.0))


def exp3s(weights: np.ndarray, gains: np.ndarray, shared: float) -> np.ndarray:
    """The weights after gains. A part of each one's power is shared among the others, so that none is ever lost.

    They are returned with the maximum 0: only differences matter.
    """
    powers = weights + gains
    powers = np.exp(powers - powers.max())
    others = (powers.sum() - powers) / (len(powers) - 1)
    mixed = log((1 - shared) * powers + shared * others)
    return mixed - mixed.max()
