"""A small training problem whose rows several processes share, and how tests start these processes."""

from __future__ import annotations

import functools
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
        "two_pass": {"engine": "two_pass", "loss_term": True},
        "forward_mode": {"engine": "forward_mode", "loss_term": True},
    }
    shared = [*model.body.parameters()] if how == "shared" else None
    options = options.get(how, {"loss_term": True})
    return cats.CATS(base, TASKS, inner_steps=2, shared=shared, process_group=process_group, **options)


def whole(t: Any) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach()


def train(
    place: int,
    count: int,
    how: str,
    calls: int,
    *,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    lazy: bool = False,
    group: Any = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """A run in one of the processes, with its own rows. A task's loss is the mean over the rows of all processes.

    A process without rows of a task has no loss of it. With a wrapper it passes a loss of 0, because wrappers wait.

    Args:
        place, count: of this process.
        how: see :func:`optimizer_of`.
        calls: the number of backward() calls per step.
        wrap: puts a wrapper around the model.
        lazy: whether losses are callables.
    """
    bare = Model().to(dtype)
    model = bare if wrap is None else wrap(bare)
    optimizer = optimizer_of(bare, how, group)
    history: list[dict[str, Any]] = []

    def loss(x: Tensor, y: Tensor, task: str, mine: list[int]) -> Tensor:
        rows = mine or [0]
        return (count / len(x) if mine else 0.0) * model(x[rows].to(dtype), y[rows].to(dtype), task)

    for step in range(STEPS):
        optimizer.zero_grad()
        for call in range(calls):
            losses: dict[str, Any] = {}
            for task, (x, y) in batch(step).items():
                mine = [i for i in range(len(x)) if i % count == place and (i // count) % calls == call]
                if step == 3:  # one process has all rows
                    mine = [i for i in range(len(x)) if place == 0 and i % calls == call]
                if mine or wrap:
                    later = functools.partial(loss, x, y, task, mine)
                    losses[task] = later if lazy else later()
            if losses or count > 1:
                optimizer.backward(losses)
        nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        history.append({k: v for k, v in optimizer.statistics.items() if k in ("losses", "dots", "sqnorms", "sqnorm")})
    return {
        "model": {name: whole(p) for name, p in bare.named_parameters()},
        "alpha": optimizer.alpha,
        "multipliers": optimizer.multipliers,
        "history": history,
        "idle": bare.idle.weight.grad is None,
    }
