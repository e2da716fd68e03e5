"""Measures backward() and step() of cats.CATS on the demo model with each backend, in steps that also update α."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.common import measure

from .records import StepBackend, StepTimes

STEPS, WARMUP = 40, 3


class Stopwatch:
    """Adds up the seconds that wrapped functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def run(backends: list[str], steps: int = STEPS) -> StepTimes:
    """Times backward() + step() with the trainer's default model and corpus. Every step also updates α.

    Each backend trains a copy of the model on the same batches. They take turns, and the order of turns alternates.
    """
    import cats
    from cats.nmt.config.schema import Config
    from cats.nmt.config.toml import apply_overrides
    from cats.nmt.training.device import set_threads
    from cats.nmt.training.trainer import Trainer

    # The engine that combines the gradients of the tasks with the operators that are measured.
    config = apply_overrides(Config(), ["method.inner_steps=1", "method.engine=per_task"])
    set_threads(config.train.threads, config.model.d_model)
    watches = {name: (Stopwatch(), Stopwatch()) for name in backends}
    totals: dict[str, list[float]] = {name: [] for name in backends}
    operators: dict[str, list[float]] = {name: [] for name in backends}
    combine_dots = cats.ops.combine_dots
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for name in backends:
            trainer = trainers[name] = Trainer(config, Path(folder, name), resume=False, quiet=True)
            optimizer: Any = trainer.optimizer
            optimizer.backend = name
            for method in ("backward", "step"):
                setattr(optimizer, method, watches[name][0].watch(getattr(optimizer, method)))
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for turn in range(WARMUP + steps):
            for name in backends if turn % 2 else reversed(backends):
                whole, part = watches[name]
                whole.seconds = part.seconds = 0.0
                with _replaced(cats.ops, "combine_dots", part.watch(combine_dots)):
                    trainers[name].update()
                if turn >= WARMUP:
                    totals[name].append(whole.seconds)
                    operators[name].append(part.seconds)
    return StepTimes(
        tasks=len(optimizer.tasks),
        tensors=len(params),
        elements=sum(p.numel() for p in params),
        steps=steps,
        backends=[
            StepBackend(name, measure.summary(totals[name]), measure.summary(operators[name])) for name in backends
        ],
    )


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute for the duration of a with block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
