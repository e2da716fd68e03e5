"""Tasks that are far below their baselines are drawn more often (adaptive)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.methods.sampling_rule import Known, SamplingRule, Seen, check


class Adaptive(SamplingRule):
    """The explicit adaptive schedule of Jean, Firat & Johnson (2019), "Adaptive Scheduling for Multi-Task Learning".

    After each validation, with s_n the validation score of task n and b_n that of its baseline:
        w_n = 1 / (min(1, s_n/b_n)^α + ε),    q_n ~ p_n w_n
    A task at its baseline or above has the weight 1/(1 + ε); the furthest below is drawn most. p is what [sampling]
    configures; `sampling.temperature=inf` leaves the weights alone to decide.

    Their scores are BLEU. Here s_n = e^(−NLL), the mean probability of a token, so that s_n/b_n = e^(NLL of the
    baseline − NLL): no translating during training. There is no public code, and we could not compare the formula with
    the paper's text; the values of α and ε are our choices.

    Args:
        reference: the run, or a list of runs, whose lowest validation NLL are the baselines, such as one run per
            language. If several have a task, the lowest counts.
        baselines: instead: a list of validation NLL, one per task in the order of their names.
        power: α.
        epsilon: ε, which bounds the weights by 1/ε.
    """

    period = 0
    needs_losses = False
    state = ("prior", "baseline")

    def __init__(
        self,
        reference: str | Sequence[str] = (),
        baselines: Sequence[float] = (),
        power: float = 1.0,
        epsilon: float = 0.1,
    ) -> None:
        check(
            baselines=(all(0 <= nll < np.inf for nll in baselines), baselines, "at least 0"),
            power=(0 <= power < np.inf, power, "at least 0"),
            epsilon=(0 < epsilon < np.inf, epsilon, "above 0"),
        )
        self.reference = (reference,) if isinstance(reference, str) else tuple(reference)
        self.baselines, self.power, self.epsilon = tuple(baselines), power, epsilon
        if bool(self.reference) == bool(self.baselines):
            raise ValueError(
                "give the validation NLL of a baseline for every task: reference=RUN takes those of a run, "
                "baselines=[1.5, 2.0, ..] lists them"
            )

    def start(self, known: Known) -> np.ndarray:
        if self.reference:
            self.baseline = known.runs.validation_nll(self.reference)
        elif len(self.baselines) != len(known.tasks):
            raise UserError(
                f"method.options: baselines has {len(self.baselines)} numbers, the corpus {len(known.tasks)} tasks "
                f"({', '.join(known.tasks)})"
            )
        else:
            self.baseline = np.array(self.baselines)
        self.prior = known.probabilities
        return known.probabilities

    def decide(self, seen: Seen) -> np.ndarray | None:
        assert seen.validation is not None
        relative = np.exp(np.minimum(0.0, self.baseline - seen.validation))
        q = self.prior / (relative**self.power + self.epsilon)
        return q / q.sum()
