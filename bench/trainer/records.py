"""The results of the trainer's benchmarks. Field names are the keys of the JSON files, so they must not change."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.common.measure import Summary
from bench.common.targets import TargetResult


@dataclass(frozen=True)
class Contender:
    """per_second: target tokens or sentences. times: how many times as fast cats was in the same rounds."""

    name: str
    per_second: Summary
    times: Summary


@dataclass(frozen=True)
class Missing:
    """A contender without a number, and why."""

    contender: str
    reason: str


@dataclass(frozen=True)
class Baseline:
    """Versions of a baseline, and what its check found.

    nll: per token, with our weights, before and after some updates. same: the share of translations equal to ours.
    """

    version: str
    torch: str
    nll: list[float] | None = None
    same: float | None = None


@dataclass(frozen=True)
class TrainingComparison:
    """Training against baselines. updates: how many in one turn. nll: that of cats; a baseline must have the same."""

    size: str
    settings: list[str]
    threads: int
    parameters: int
    vocab_size: int
    batch_tokens: int
    updates: int
    nll: list[float]
    facts: dict[str, Baseline]
    contenders: list[Contender]
    missing: list[Missing]
    part: str = "training"


@dataclass(frozen=True)
class TranslationComparison:
    """Beam search against baselines. batch: sentences in a batch. length: tokens of every translation."""

    size: str
    settings: list[str]
    threads: int
    sentences: int
    batch: int
    beam: int
    length: int
    facts: dict[str, Baseline]
    contenders: list[Contender]
    missing: list[Missing]
    part: str = "translation"


@dataclass(frozen=True)
class PipelineRate:
    """Tokens per second of drawing and padding batches. target: target tokens only. both: source tokens too."""

    batch_tokens: int
    target: Summary
    both: Summary


@dataclass(frozen=True)
class GpuTraining:
    """per_second: target tokens. rate: floating-point operations per second. idle: share of time without a kernel."""

    preset: str
    parameters: int
    vocab_size: int
    batch_tokens: int
    per_second: Summary
    rate: float
    idle: float


@dataclass(frozen=True)
class EndToEndResults:
    """Everything that `python -m bench.trainer.end_to_end` measures.

    On the CPU: contests (the comparisons with baselines) and pipeline. On a GPU: gpu and bfloat16_peak, the operations
    per second of a large matrix product.
    """

    device: str
    contests: list[TrainingComparison | TranslationComparison] = field(default_factory=list)
    pipeline: list[PipelineRate] = field(default_factory=list)
    bfloat16_peak: float | None = None
    gpu: list[GpuTraining] = field(default_factory=list)
    targets: list[TargetResult] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """Preparing one corpus. peak_mib: the largest resident set of any process."""

    pairs: int
    text_mib: float
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class PreparingResults:
    """Everything that `python -m bench.trainer.preparing` measures."""

    sizes: list[Prepared]
