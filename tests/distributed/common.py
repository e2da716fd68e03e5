"""A small training problem whose rows several processes share, and how tests start these processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

import cats

needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

TASKS = ["az", "be", "cs"]
ROWS = {"az": 5, "be": 1, "cs": 8}  # be has one row, so only one process has it
STEPS = 7
WAIT = timedelta(minutes=1)


def results_of(function: Callable[[int, int, Path], dict[str, Any]], count: int, folder: Path) -> list[dict[str, Any]]:
    """What ``function(rank, count, folder)`` returns in each of ``count`` processes."""
    torch.multiprocessing.spawn(_run, (function, count, folder), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _run(rank: int, function: Callable[[int, int, Path], dict[str, Any]], count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count, timeout=WAIT)
    try:
        result = function(rank, count, folder)
    finally:
        dist.destroy_process_group()
    torch.save(result, folder / f"{rank}.pt")


class Model(nn.Module):
    """The sum of squared errors. A layer of all tasks, a layer that only cs uses, and one that no task uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()
        self.idle = nn.Linear(2, 2).double()

    def forward(self, x: Tensor, y: Tensor, task: str) -> Tensor:
        hidden = self.body(x).tanh()
        return (((self.head(hidden) if task == "cs" else hidden) - y) ** 2).sum()


def batch(step: int) -> dict[str, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(step)
    tasks = {"cs"} if step == 3 else {"az", "cs"} if step == 4 else set(TASKS)  # in step 3 one process has no rows
    return {
        t: (torch.randn(n, 4, generator=draw).double(), torch.randn(n, 3, generator=draw).double())
        for t, n in ROWS.items()
        if t in tasks
    }


def optimizer_of(model: Model, how: str, process_group: Any = None) -> cats.MultiTask:
    base = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    if how == "static":
        return cats.MultiTask(base, TASKS, cats.weighting.Static([1.0, 2.0, 0.5]), process_group=process_group)
    options: dict[str, Any] = {
        "lagrangian": {"simplex": "lagrangian", "alpha_lr": 1e-3, "multiplier_lr": 1e-3},
        "softmax": {"simplex": "softmax", "loss_term": True},
    }
    shared = [*model.body.parameters()] if how == "shared" else None
    options = options.get(how, {"loss_term": True})
    return cats.CATS(base, TASKS, inner_steps=2, shared=shared, process_group=process_group, **options)
