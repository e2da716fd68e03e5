"""The targets of the engines, and whether they were met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.common.targets import TargetResult, judge

from .contenders import AUTO, DEFAULT_PERIOD, ONE_PASS, SAMPLED, SEPARATE, TORCHJD
from .records import EngineResults, OuterStep

WIDE = 256  # the width from which the tighter bound holds
FEW = 8  # K up to which it holds

Value = tuple[float, str]  # the value, and the case that it is from


def evaluate(results: EngineResults) -> list[TargetResult]:
    """The worst case's value for each target; no entry where nothing was measured."""
    every = results.outer_steps
    few = [step for step in every if step.tasks <= FEW]
    width = {m.name: m.width for m in results.models}
    wide = [step for step in few if width[step.model] >= WIDE]
    rows = (
        ("outer step / plain step, exact, every K", ONE_PASS, 1.33, True, times(every, ONE_PASS)),
        (f"outer step / plain step, exact, K ≤ {FEW}, d ≥ {WIDE}", ONE_PASS, 1.2, True, times(wide, ONE_PASS)),
        ("outer step / plain step, a quarter of the rows", SAMPLED, 1.15, True, times(every, SAMPLED)),
        (f"outer step / plain step, K ≤ {FEW}", SEPARATE, 1.25, True, times(few, SEPARATE)),
        (f"training / plain training, m = {DEFAULT_PERIOD}", AUTO, 1.05, True, trainings(every)),
        ("peak memory / plain, every K", ONE_PASS, 1.1, True, memory(every, ONE_PASS)),
        ("peak memory, largest K / smallest K", ONE_PASS, 1.1, True, growth(every, ONE_PASS)),
        ("best of TorchJD / outer step, K = 8", ONE_PASS, 3.0, False, torchjd(every, ONE_PASS, 8)),
        ("best of TorchJD / outer step, K = 92", ONE_PASS, 10.0, False, torchjd(every, ONE_PASS, 92)),
    )
    found = []
    for text, contender, bound, at_most, values in rows:
        worst = (max if at_most else min)(values, default=None)
        if worst is not None:
            found.append(judge(text, contender, worst[0], bound, at_most, worst[1]))
    return found


def times(steps: Sequence[OuterStep], name: str) -> Iterator[Value]:
    """The times of a contender relative to plain steps."""
    for step in steps:
        if own := step.find(name):
            yield own.ratio.median, case(step)


def trainings(steps: Sequence[OuterStep]) -> Iterator[Value]:
    """The times of whole trainings with the default m relative to plain training."""
    for step in steps:
        for training in step.training:
            if training.inner_steps == DEFAULT_PERIOD:
                yield training.ratio.median, case(step)


def memory(steps: Sequence[OuterStep], name: str) -> Iterator[Value]:
    """The peak memory of a contender relative to plain training."""
    for step in steps:
        own = step.find(name)
        if own and (ratio := step.memory(own)):
            yield ratio, case(step)


def growth(steps: Sequence[OuterStep], name: str) -> Iterator[Value]:
    """For each model, the peak memory of a contender at the largest K relative to that at the smallest."""
    for model in dict.fromkeys(step.model for step in steps):
        peaks = {
            s.tasks: own.peak_bytes for s in steps if s.model == model and (own := s.find(name)) and own.peak_bytes
        }
        if len(peaks) > 1:
            yield peaks[max(peaks)] / peaks[min(peaks)], f"{model} K={max(peaks)}"


def torchjd(steps: Sequence[OuterStep], name: str, tasks: int) -> Iterator[Value]:
    """How many times as long as a contender the fastest form of TorchJD takes."""
    for step in steps:
        own = step.find(name)
        theirs = [c.ratio.median for c in step.contenders if c.kind == TORCHJD]
        if step.tasks == tasks and own and theirs:
            yield min(theirs) / own.ratio.median, case(step)


def case(step: OuterStep) -> str:
    return f"{step.model} K={step.tasks}"
