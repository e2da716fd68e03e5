"""LSSD, language-specific self-distillation: a task that gets worse learns from the best model that it has had."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cats.nmt.methods.sampling_rule import check


class LSSD:
    """When the loss of a task is mixed with a distillation loss, and which model is the teacher.

    Huang et al., "Unifying the Convergences in Multilingual Neural Machine Translation", EMNLP 2022. The tasks reach
    their best validation loss at different times. The teacher of task n is the model of the validation at which n had
    its lowest nll so far. While the newest validation of n is not that one, every token of n costs::

        (L + weight · L_KD) / 2,    L_KD = −Σ_v p_teacher(v) log p_model(v)

    where L is the label-smoothed loss and the sum is over the vocabulary. The teacher runs without dropout. This is the
    variant that the authors call whole: all tokens are distilled alike. The rule and the weight are those of their
    code, github.com/OrangeInSouth/LSSD, which validates once per epoch; here it is every `train.validate_every`
    updates. Their teachers are in float16; these have the precision of the model.

    Args:
        weight: of L_KD, at least 0.
        wait: a task is distilled once this many validations in a row were no better than its best one; 0: always.
    """

    def __init__(self, weight: float = 0.5, wait: int = 1) -> None:
        check(weight=(0 <= weight < math.inf, weight, "finite and at least 0"), wait=(wait >= 0, wait, "at least 0"))
        self.weight, self.wait = weight, wait
        self.best: dict[str, float] = {}  # {task: its lowest validation nll}
        self.step: dict[str, int] = {}  # {task: updates of the model that had it}
        self.worse: dict[str, int] = {}  # {task: validations since then}

    def after_validation(self, step: int, nll: Mapping[str, float]) -> bool:
        """Notes a validation after update `step`. Returns whether its model is the teacher of a task from now on."""
        for task, value in nll.items():
            if task not in self.best or value < self.best[task]:
                self.best[task], self.step[task], self.worse[task] = value, step, 0
            else:
                self.worse[task] += 1
        return step in self.step.values()

    def teacher(self, task: str) -> int | None:
        """The updates of the model that teaches a task now; None: no model does."""
        return self.step[task] if self.worse.get(task, -1) >= self.wait else None
