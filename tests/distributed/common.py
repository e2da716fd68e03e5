"""A small training problem whose rows several processes share, and how tests start these processes."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

import cats
from tests.processes import spawn

needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

TASKS = ["az", "be", "cs"]
ROWS = {"az": 5, "be": 1, "cs": 8}  # be has one row, so only one process has it
STEPS = 7
WAIT = timedelta(minutes=1)


def results_of(function: Callable[[int, int, Path], dict[str, Any]], count: int, folder: Path) -> list[dict[str, Any]]:
    """What ``function(rank, count, folder)`` returns in each of ``count`` processes."""
    spawn(_run, (function, count, folder), count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _run(rank: int, function: Callable[[int, int, Path], dict[str, Any]], count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count, timeout=WAIT)
    result = function(rank, count, folder)
    gc.collect()  # the wrappers of cycles, too: see examples/torchrun_ddp.py
    dist.barrier()
    dist.destroy_process_group()
    torch.save(result, folder / f"{rank}.pt")


class Model(nn.Module):
    """The sum of squared errors. A layer of all tasks, a layer that only cs uses, and one that no task uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(4, 3).double(), nn.Linear(3, 3).double()
        self.idle = nn.Linear(2, 2).double()

    def forward(self, x: Tensor, y: Tensor, task: str | Tensor) -> Tensor:
        """The loss of a task, or with a tensor of indices of tasks, the loss of each row."""
        hidden = self.body(x).tanh()
        if isinstance(task, Tensor):
            out = torch.where((task == TASKS.index("cs"))[:, None], self.head(hidden), hidden)
            return ((out - y) ** 2).sum(1)
        return (((self.head(hidden) if task == "cs" else hidden) - y) ** 2).sum()


def batch(step: int) -> dict[str, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(step)
    tasks = {"cs"} if step == 3 else {"az", "cs"} if step == 4 else set(TASKS)  # in step 3 one process has no rows
    return {
        t: (torch.randn(n, 4, generator=draw).double(), torch.randn(n, 3, generator=draw).double())
        for t, n in ROWS.items()
        if t in tasks
    }


def inverse_norms(gram: Tensor) -> Tensor:
    """Weights that depend on all of the Gram matrix."""
    return 1 / (1 + gram.abs().sum(1).sqrt())


def optimizer_of(model: Model, how: str, **more: Any) -> cats.MultiTask:
    base = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    if how == "gram":
        return cats.MultiTask(base, TASKS, inverse_norms, **more)
    if how == "groups":
        return cats.MultiTask(base, TASKS, cats.weighting.GradVac(0.5, "parameter"), **more)
    weightings: dict[str, Callable[[], cats.weighting.Weighting]] = {
        "static": lambda: cats.weighting.Static([1.0, 2.0, 0.5]),
        "group_dro": lambda: cats.weighting.GroupDRO(step_size=0.5),
        "famo": lambda: cats.weighting.FAMO(lr=0.1),
        "graddrop": lambda: cats.weighting.GradDrop(leak=[0.1, 0.0, 0.5], seed=7),
        "gradnorm": lambda: cats.weighting.GradNorm(lr=0.1),
    }
    if how in weightings:
        return cats.MultiTask(base, TASKS, weightings[how](), **more)
    options: dict[str, Any] = {
        "halves": {"cross_batch": True},
        "lagrangian": {"simplex": "lagrangian", "alpha_lr": 1e-3, "multiplier_lr": 1e-3},
        "softmax": {"simplex": "softmax", "loss_term": True},
        "momentum": {"direction": "momentum"},
        "preconditioned": {"direction": "preconditioned"},
        "update": {"direction": "update", "loss_term": True},
        "two_pass": {"engine": "two_pass", "loss_term": True},
        "forward_mode": {"engine": "forward_mode", "loss_term": True},
    }
    shared = [*model.body.parameters()] if how == "shared" else None
    options = options.get(how, {"loss_term": True})
    return cats.CATS(base, TASKS, inner_steps=2, shared=shared, **options, **more)


def whole(t: Any) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach()


def train(
    place: int,
    count: int,
    how: str,
    calls: int,
    *,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    form: str = "tensors",
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> dict[str, Any]:
    """A run in one of the processes, with its own rows. A task's loss is the mean over the rows of all processes.

    A process without rows of a task has no loss of it. With a wrapper it passes a loss of 0, because wrappers wait.

    Args:
        place, count: of this process.
        how: see :func:`optimizer_of`.
        calls: the number of backward() calls per step.
        wrap: puts a wrapper around the model.
        form: of the losses: "tensors", "callables", "rows", with a loss for each row, or "halves", two per task.
        more: arguments of the optimizer.
    """
    bare = Model().to(dtype)
    model = bare if wrap is None else wrap(bare)
    optimizer = optimizer_of(bare, how, **more)
    history: list[dict[str, Any]] = []

    def loss(x: Tensor, y: Tensor, task: str, mine: list[int]) -> Tensor:
        rows = mine or [0]
        return (count / len(x) if mine else 0.0) * model(x[rows].to(dtype), y[rows].to(dtype), task)

    def mixed(rows: dict[str, Any]) -> tuple[Tensor, Tensor]:
        x, y = (torch.cat([row[i][row[0] or [0]] for row in rows.values()]).to(dtype) for i in (1, 2))
        ids = [TASKS.index(task) for task, (mine, _, _) in rows.items() for _ in mine or [0]]
        factors = [count / len(x) if mine else 0.0 for mine, x, _ in rows.values() for _ in mine or [0]]
        return torch.tensor(factors, dtype=dtype) * model(x, y, torch.tensor(ids)), torch.tensor(ids)

    for step in range(STEPS):
        optimizer.zero_grad()
        for call in range(calls):
            last = call == calls - 1 if how == "famo" else None
            losses: dict[str, Any] = {}
            for task, (x, y) in batch(step).items():
                mine = [i for i in range(len(x)) if i % count == place and (i // count) % calls == call]
                if step == 3:  # one process has all rows
                    mine = [i for i in range(len(x)) if place == 0 and i % calls == call]
                if mine or wrap:
                    later = functools.partial(loss, x, y, task, mine)
                    losses[task] = later if form == "callables" else (mine, x, y) if form == "rows" else later()
                if mine and form == "halves":
                    losses[task] = [loss(x, y, task, [i for i in mine if i % 4 // 2 == half]) for half in (0, 1)]
            if losses and form == "rows":
                values, ids = mixed(losses)
                optimizer.backward(values, tasks=ids, reduction="sum", last=last)
            elif losses or count > 1:
                optimizer.backward(losses, last=last)
        nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        history.append({k: v for k, v in optimizer.statistics.items() if k in ("losses", "dots", "sqnorms", "sqnorm")})
    return {
        "model": {name: whole(p) for name, p in bare.named_parameters()},
        "alpha": optimizer.alpha,
        "multipliers": optimizer.multipliers,
        "history": history,
        "idle": bare.idle.weight.grad is None,
        "engine": optimizer.statistics["engine"],
    }
