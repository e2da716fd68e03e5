"""Ratios from group DRO of a proxy model over a reference model (doremi)."""

from __future__ import annotations

import numpy as np

from cats.nmt.methods.sampling_rule import Known, SamplingRule, Seen, check, log, softmax


class DoReMi(SamplingRule):
    """DoReMi (Xie et al., NeurIPS 2023: "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining",
    Algorithm 1), in three runs.

    1. A reference model, trained in any way, such as ``--method static``.
    2. A proxy, with ``reference=RUN``. It starts from uniform α, and every `period` updates, with λ_n = max(L_n − the
       reference's training loss, 0):
           α_n ← α_n e^{η λ_n},  normalised,  α ← (1 − c) α + c/N
    3. The model, with ``ratios_from=RUN`` of the proxy: constant ratios, the mean α over the proxy's updates.

    Differences from the paper. The proxy draws tasks in proportion to α instead of weighting their losses by it: in
    expectation the same objective, up to the mean lengths of the tasks' sentences. The excess loss is of a task's
    tokens together; the paper clips that of each token at 0, which needs the reference model in memory. Here the
    reference's losses are those at the end of its training.

    Args:
        reference: the run of step 1. ratios_from: the run of step 2, or of any other adaptive method.
        rate: η. smoothing: c. period: updates between two changes of α; the paper has 1.
    """

    state = ("baseline",)

    def __init__(
        self,
        reference: str = "",
        ratios_from: str = "",
        rate: float = 1.0,
        smoothing: float = 1e-3,
        period: int = 10,
    ) -> None:
        check(
            rate=(0 < rate < np.inf, rate, "above 0"),
            smoothing=(0 <= smoothing <= 1, smoothing, "between 0 and 1"),
            period=(period > 0, period, "at least 1"),
        )
        if bool(reference) == bool(ratios_from):
            raise ValueError(
                "it takes three runs: a reference, as from --method static; a proxy, with "
                "method.options=reference=RUN; and the final one, with method.options=ratios_from=RUN"
            )
        self.reference, self.ratios_from = reference, ratios_from
        self.rate, self.smoothing, self.period = rate, smoothing, period

    def start(self, known: Known) -> np.ndarray:
        count = len(known.tasks)
        self.baseline = np.full(count, np.nan)
        if self.ratios_from:
            return known.runs.mean_probabilities(self.ratios_from)
        self.baseline = known.runs.training_nll(self.reference)
        return np.full(count, 1 / count)

    def decide(self, seen: Seen) -> np.ndarray | None:
        if self.ratios_from:
            return None
        excess = np.nan_to_num(np.maximum(seen.mean_losses() - self.baseline, 0.0))  # 0 for a task not seen
        alpha = softmax(log(seen.probabilities) + self.rate * excess)
        return (1 - self.smoothing) * alpha + self.smoothing / len(alpha)
