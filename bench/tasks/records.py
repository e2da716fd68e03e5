"""The results of this benchmark. Field names are the keys of the JSON files, so they must not change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """One training. errors: those of the problem, at the end. alpha: the weights at the end, as shares of their sum.

    failure: the error that ended the training early; errors and alpha are then empty.
    """

    problem: str
    method: str
    seed: int
    errors: list[float]
    alpha: list[float]
    failure: str | None = None

    @property
    def worst(self) -> float:
        """The error of the worst task."""
        return max(self.errors)


@dataclass(frozen=True)
class WeightingResults:
    """Everything that `python -m bench.tasks` measures."""

    trainings: list[Training]
    seconds: float
