"""The results of this benchmark. Field names are the keys of the JSON files, so they must not change."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.common.measure import Summary, fit

from .model import BACKWARD, FORWARD, Hardware, Job, Link


@dataclass(frozen=True)
class Pass:
    """A plain forward and backward pass over this many tokens, in all processes at the same time."""

    processes: int
    tokens: int
    seconds: Summary


@dataclass(frozen=True)
class Moved:
    """An addition of two large tensors in place, in all processes at the same time. size: the bytes that it moves."""

    processes: int
    size: int
    seconds: Summary


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce of this many bytes."""

    processes: int
    size: int
    seconds: Summary


@dataclass(frozen=True)
class MeasuredStep:
    """A whole step: batch in memory, forward, backward, all-reduce, AdamW.

    method: a name of ``bench.scaling.model.REPLICAS``, or "inner", an inner step of CATS. sharded: by FSDP2.
    """

    processes: int
    method: str
    sharded: bool
    seconds: Summary


@dataclass(frozen=True)
class ScalingResults:
    """Everything that `python -m bench.scaling` measures.

    Attributes:
        parameters, layers: of the model.
        tokens: target tokens of one process in a step. There are as many source tokens.
        tasks: K.
        threads: of each process.
        seconds: what all of it took.
    """

    parameters: int
    layers: int
    tokens: int
    tasks: int
    threads: int
    cores: int
    passes: list[Pass] = field(default_factory=list)
    memory: list[Moved] = field(default_factory=list)
    all_reduces: list[AllReduce] = field(default_factory=list)
    steps: list[MeasuredStep] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def processes(self) -> list[int]:
        """The numbers of processes that were measured."""
        return sorted({s.processes for s in self.steps})

    def job(self, processes: int) -> Job:
        return Job(self.parameters, self.tokens, self.tasks, processes, groups=self.layers + 1)

    def link(self, processes: int) -> Link:
        """The link that explains the smallest and the largest all-reduce of this many processes."""
        found = sorted((a for a in self.all_reduces if a.processes == processes), key=lambda a: a.size)
        if not found:
            return Link(0.0, 1.0)  # one process sends nothing
        small, large = found[0], found[-1]
        rate = (large.seconds.median - small.seconds.median) / (large.size - small.size)  # seconds per byte
        messages = 2 * (processes - 1)
        return Link(max(0.0, small.seconds.median - rate * small.size) / messages, messages / processes / rate)

    def hardware(self, processes: int) -> Hardware:
        """This machine, as one of so many processes sees it."""
        passes = [p for p in self.passes if p.processes == processes]
        line = fit([p.tokens for p in passes], [p.seconds.median for p in passes])
        moved = next(m for m in self.memory if m.processes == processes)
        link = self.link(processes)
        return Hardware(
            operations=(FORWARD + BACKWARD) * self.parameters / line.slope,
            memory_rate=moved.size / moved.seconds.median,
            call=max(0.0, line.intercept),
            near=link,
            far=link,
            node=processes,
        )
