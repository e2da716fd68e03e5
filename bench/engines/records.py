"""The results of this benchmark. Field names are the keys of the JSON files, so they must not change."""

from __future__ import annotations

from dataclasses import dataclass

from bench.common.measure import Summary
from bench.common.targets import TargetResult


@dataclass(frozen=True)
class Model:
    """A model and its batches. tokens: of the target side."""

    name: str
    parameters: int
    width: int
    vocab_size: int
    sentences: int
    tokens: int
    precision: str


@dataclass(frozen=True)
class Measured:
    """One contender. ratio: its time divided by that of a plain step in the same round. peak_bytes: peak memory.

    error: the norm of the error of v, as a share of the norm of v.
    """

    name: str
    kind: str
    seconds: Summary
    ratio: Summary
    error: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Refused:
    """A contender without a number, and why. wrong: the library found a wrong result."""

    name: str
    reason: str
    wrong: bool = False


@dataclass(frozen=True)
class WholeTraining:
    """Training with cats.CATS and the engine "auto": one of m steps moves α.

    engine: what "auto" chose. ratio: the time of m steps divided by that of m plain steps. peak_bytes: peak memory in
    the m steps.
    """

    inner_steps: int
    engine: str
    ratio: Summary
    peak_bytes: int | None


@dataclass(frozen=True)
class OuterStep:
    """Outer steps with K tasks. plain: seconds of a plain step. plain_bytes: its peak memory."""

    model: str
    tasks: int
    plain: Summary
    plain_bytes: int | None
    contenders: list[Measured]
    training: list[WholeTraining]
    refused: list[Refused]

    def find(self, name: str) -> Measured | None:
        """The contender with this name, if it was measured."""
        return next((c for c in self.contenders if c.name == name), None)

    def memory(self, contender: Measured | WholeTraining) -> float | None:
        """The peak memory of a contender divided by that of plain training, if both were measured."""
        if contender.peak_bytes is None or not self.plain_bytes:
            return None
        return contender.peak_bytes / self.plain_bytes


@dataclass(frozen=True)
class EngineResults:
    """Everything that `python -m bench.engines` measures."""

    device: str
    models: list[Model]
    outer_steps: list[OuterStep]
    targets: list[TargetResult]
    seconds: float
