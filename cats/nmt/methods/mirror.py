"""Mirror ascent on the losses of the tasks (mirror): our own control, a relative of group DRO."""

from __future__ import annotations

import numpy as np

from cats.nmt.methods.sampling_rule import Known, SamplingRule, Seen, check, log, softmax


class Mirror(SamplingRule):
    """Draws tasks with a high loss more often, between the temperatures 1 and T.

    This is a form of group DRO (Sagawa et al., ICLR 2020): exponentiated-gradient ascent of q on Σ q_n L_n. It differs
    from CATS, which descends on the norm of the gradient. It is here as a control: does it take more than the losses?

    Every `period` updates, with L_n the training loss in nats per token, from sums that are multiplied by `decay` at
    each decision:
        a_n ← a_n + κ (L_n − Σ q_m L_m)
        a_n ← a_n − a_giant, clipped to [0, (1 − 1/T) ln(size_giant/size_n)]      giant: the task with the most pairs
        q_n ~ size_n e^{a_n}
    With a = 0 that is temperature 1, at the upper bounds it is temperature T. It starts at 1; the temperature of
    [sampling] has no effect.

    Args:
        rate: κ.
        temperature: T, at least 1; inf allows uniform probabilities.
        period: updates between two decisions.
        first: updates before the first decision.
        decay: see above.
    """

    state = ("sizes", "a", "sums", "updates")

    def __init__(
        self, rate: float = 0.05, temperature: float = 3.0, period: int = 10, first: int = 50, decay: float = 0.9
    ) -> None:
        check(
            rate=(0 < rate < np.inf, rate, "above 0"),
            temperature=(temperature >= 1, temperature, "at least 1"),
            period=(period > 0, period, "at least 1"),
            first=(first >= 0, first, "at least 0"),
            decay=(0 <= decay <= 1, decay, "between 0 and 1"),
        )
        self.rate, self.temperature, self.period, self.first, self.decay = rate, temperature, period, first, decay

    def start(self, known: Known) -> np.ndarray:
        self.sizes, self.a = known.sizes, np.zeros(len(known.sizes))
        self.sums, self.updates = np.zeros((len(known.sizes), 2)), np.zeros(())
        return known.sizes / known.sizes.sum()

    def decide(self, seen: Seen) -> np.ndarray | None:
        self.sums = self.decay * self.sums + seen.losses.sum(0)
        self.updates = self.updates + len(seen.losses)
        nats, tokens = self.sums.T
        there = tokens > 0
        if self.updates < self.first or not there.any():
            return None
        losses = np.divide(nats, tokens, out=np.zeros(len(nats)), where=there)
        q = seen.probabilities * there / (seen.probabilities * there).sum()
        self.a = self.a + np.where(there, self.rate * (losses - q @ losses), 0.0)  # tasks not seen keep theirs
        giant = int(self.sizes.argmax())
        most = (1 - 1 / self.temperature) * np.log(self.sizes[giant] / self.sizes)
        self.a = np.clip(self.a - self.a[giant], 0.0, most)
        return softmax(log(self.sizes) + self.a)
