"""Target gradient projection with trusted pairs from the validation text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import cats


class TargetProjection(cats.weighting.TargetProjection):
    """No task moves against the gradient of its trusted pairs, which are a part of its validation pairs.

    Yang et al., "Improving Multilingual Translation by Representation and Gradient Regularization", EMNLP 2021, section
    3.2; see :class:`cats.weighting.TargetProjection`. As in their code, github.com/yilinyang7/fairseq_multi_fix, four
    fifths of the validation pairs of each language are trusted, and validation, which chooses the best model, uses the
    rest: so the numbers of its validation cannot be compared with those of other methods. Their trusted gradient is the
    mean over all trusted pairs, renewed every 200 updates; here it is that of a new batch in every update, for all
    languages together as large as the one that is trained on.

    Args:
        trusted: {task: the name of its trusted task}. The trainer sets it, when it knows the tasks.
        groups: compare and project the gradients of each layer, or of each parameter, instead of the whole model.
    """

    def __init__(
        self, trusted: Mapping[str | int, str | int] | None = None, groups: Literal["layer", "parameter"] | None = None
    ) -> None:
        super().__init__(trusted or {}, groups)


def trusted_names(tasks: Iterable[str]) -> dict[str, str]:
    """{task: the name of its trusted task}."""
    return {task: f"trusted/{task}" for task in tasks}
