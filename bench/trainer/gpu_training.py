"""Measures training of presets on a GPU in bf16: its speed, and the share of time in which the GPU is idle."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.common import measure

from . import pipeline
from .records import GpuTraining

PRESETS = ("ted", "base")
TASKS, PAIRS = 8, 12_000
WARMUP, SAMPLES, UPDATES = 10, 9, 10


def run(preset: str, folder: Path) -> GpuTraining:
    """Measures a preset's model, batches and optimizer on generated text, with the plain mean over tokens."""
    return measured(preset, make_trainer(preset, folder))


def measured(preset: str, trainer: Any) -> GpuTraining:
    """Measures tokens per second, operations per second, and the share of time in which the GPU is idle.

    The profiler slows down the host, so the real idle share is smaller.
    """
    from torch.utils.flop_counter import FlopCounterMode

    trainer.model.train()
    updates(trainer, WARMUP)
    rates = [tokens / seconds for tokens, seconds in (updates(trainer, UPDATES) for _ in range(SAMPLES))]
    with FlopCounterMode(display=False) as counter:
        counted, _ = updates(trainer, UPDATES)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        updates(trainer, UPDATES)
    cuda = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    found = measure.summary(rates)
    return GpuTraining(
        preset=preset,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        vocab_size=trainer.model.embedding.num_embeddings,
        batch_tokens=trainer.config.sampling.batch_tokens,
        per_second=found,
        rate=counter.get_total_flops() / counted * found.median,
        idle=idle([(e.time_range.start, e.time_range.end) for e in cuda]),
    )


def make_trainer(preset: str, folder: Path) -> Any:
    """A trainer with the settings of a preset, on generated text."""
    from cats import nmt
    from cats.nmt.config.toml import apply_overrides, read_config
    from cats.nmt.training.trainer import Trainer

    pipeline.write_text(folder / "text", TASKS, PAIRS)
    config = apply_overrides(
        read_config(Path(nmt.__file__).with_name("config") / "presets" / f"{preset}.toml"),
        [
            f"data.path={folder / 'text'}",
            "tokenizer.most_pairs=20000",
            "train.precision=bf16",
            "method.name=static",
            "method.weights=tokens",
        ],
    )
    return Trainer(config, folder / "run", resume=False, quiet=True)


def updates(trainer: Any, count: int) -> tuple[int, float]:
    """Target tokens and seconds of this many updates."""
    synchronize(trainer.device)
    start = time.perf_counter()
    for _ in range(count):
        trainer.update()
    synchronize(trainer.device)
    seconds = time.perf_counter() - start
    chosen = [trainer.sampler.batch(step) for step in range(trainer.step - count, trainer.step)]
    return sum(map(trainer.training.target_tokens, chosen)), seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def idle(spans: Iterable[tuple[float, float]]) -> float:
    """The share of time, from the first start to the last end, that no span covers. Spans are (start, end).

    Raises:
        ValueError: there are no spans.
    """
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("the profiler saw no kernel")
    first = covered_until = ordered[0][0]
    waited = 0.0
    for start, end in ordered:
        waited += max(0.0, start - covered_until)
        covered_until = max(covered_until, end)
    return waited / (covered_until - first)
