"""The results of the operators' benchmark. Field names are the keys of the JSON files, so they must not change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.common.measure import Summary
from bench.common.targets import TargetResult


@dataclass(frozen=True)
class Roofline:
    """The roofline of a case. set_by: "memory" or "arithmetic", whichever takes longer."""

    seconds: float
    set_by: str
    probe: str
    memory: Summary
    memory_gb_per_s: float
    arithmetic_seconds: float


@dataclass(frozen=True)
class Measured:
    """One contender of a case. error_in_bounds: its largest error, as a multiple of the library's bound.

    counts: whether it is considered when the best of its kind is chosen. fraction_of_limit: the roofline's time divided
    by its time. extra_bytes: peak memory beyond inputs and outputs. first_call_seconds includes compilation.
    """

    name: str
    kind: str
    counts: bool
    seconds: Summary
    gb_per_s: float
    fraction_of_limit: float
    error_in_bounds: float
    extra_bytes: int | None
    first_call_seconds: float


@dataclass(frozen=True)
class Refused:
    """A contender without a number, and why."""

    contender: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Case:
    """One operator on one workload."""

    name: str
    operator: str
    tasks: int
    elements: int
    tensors: int
    dtype: str
    layout: str
    bytes_read: int
    bytes_written: int
    operations: int
    limit: Roofline
    contenders: list[Measured]
    refused: list[Refused]

    def best(self, kind: str) -> Measured | None:
        """The fastest contender of a kind, among those that count."""
        able = [c for c in self.contenders if c.kind == kind and c.counts]
        return min(able, key=lambda c: c.seconds.median, default=None)

    def ratio(self, contender: Measured, kind: str) -> float:
        """How many times as fast the contender is as the best of a kind; NaN if there is none of that kind."""
        best = self.best(kind)
        return best.seconds.median / contender.seconds.median if best else math.nan


@dataclass(frozen=True)
class LinearFit:
    """Time of a backend's operator against K P."""

    operator: str
    backend: str
    points: int
    ns_per_element: float
    intercept_us: float
    r2: float


@dataclass(frozen=True)
class TinyCall:
    """Microseconds of a call on tiny tensors: at the addresses of an earlier call ("kept"), and at others ("new")."""

    backend: str
    tasks: int
    tensors: int
    kept_us: float
    new_us: float


@dataclass(frozen=True)
class TinyCallLine:
    """Microseconds of a call by number of tensors, and the slope of a line through them."""

    backend: str
    addresses: str
    us: dict[int, float]
    us_per_tensor: float


@dataclass(frozen=True)
class Compilation:
    """The first call of a compiled function with these sizes, and whether it was compiled for them."""

    tasks: int
    elements: int
    seconds: float
    compiled: bool


@dataclass(frozen=True)
class OperatorResults:
    """Everything that `python -m bench` measures. peaks: operations per second of matrix products, by dtype."""

    device: str
    peaks: dict[str, float]
    cases: list[Case]
    fits: list[LinearFit]
    calls: list[TinyCall]
    call_lines: list[TinyCallLine]
    compilations: list[Compilation]
    targets: list[TargetResult]
    seconds: float


@dataclass(frozen=True)
class HostCall:
    """The host's part of combine_dots on a GPU, in milliseconds: on a core, and of wall-clock time.

    first_ms: the first call with these shapes, which lists the chunks. reading_ms: the part of cpu_ms in which the
    gradients are read and checked.
    """

    tasks: int
    tensors: int
    chunks: int
    first_ms: float
    cpu_ms: float
    wall_ms: float
    reading_ms: float


@dataclass(frozen=True)
class HostResults:
    """Everything that `python -m bench --overhead` measures."""

    device: str
    host_calls: list[HostCall]
    targets: list[TargetResult]
    seconds: float


@dataclass(frozen=True)
class StepBackend:
    """Seconds of backward() and step() with one backend, and how many of these seconds combine_dots takes."""

    name: str
    step_seconds: Summary
    operators_seconds: Summary


@dataclass(frozen=True)
class StepTimes:
    tasks: int
    tensors: int
    elements: int
    steps: int
    backends: list[StepBackend]


@dataclass(frozen=True)
class StepResults:
    """Everything that `python -m bench --step` measures."""

    device: str
    step: StepTimes
    seconds: float
