"""Training of presets on a GPU in bf16: how fast, how near to the matrix units' rate, and how long the GPU waits."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.common import measure

from . import pipeline

Record = dict[str, Any]

PRESETS = ("ted", "base")
TASKS, PAIRS = 8, 12_000
WARMUP, SAMPLES, UPDATES = 10, 9, 10


def run(preset: str, folder: Path) -> Record:
    """A preset's model, batches and learning on made-up text, its method the plain mean over the tokens."""
    return {"preset": preset, **measured(make_trainer(preset, folder))}


def measured(trainer: Any) -> Record:
    """Tokens per second, operations per second ("rate"), and the share of the time in which the GPU has nothing to do.

    The profiler that sees the latter holds up the host: without it the GPU waits less.
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
    found = measure.summary(rates, "wall")
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "vocab_size": trainer.model.embedding.num_embeddings,
        "batch_tokens": trainer.config.sampling.batch_tokens,
        "per_second": vars(found),
        "rate": counter.get_total_flops() / counted * found.median,
        "idle": idle([(e.time_range.start, e.time_range.end) for e in cuda]),
    }


def make_trainer(preset: str, folder: Path) -> Any:
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
    """Target tokens and seconds of so many updates."""
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
    """The share of the time from the first start to the last end that no span covers."""
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("the profiler saw no kernel")
    first = covered_until = ordered[0][0]
    waited = 0.0
    for start, end in ordered:
        waited += max(0.0, start - covered_until)
        covered_until = max(covered_until, end)
    return waited / (covered_until - first)
