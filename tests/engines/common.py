"""What the tests of the engines share."""

from __future__ import annotations

import torch

from cats.engines.losses import TaskLosses


def params_of(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def by_task(losses):
    return TaskLosses(list(range(len(losses))), losses, [f"task {n}" for n in range(len(losses))])
