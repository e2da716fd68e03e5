"""A few small gradients and arguments, for tests that do not compare backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHAPES: list[tuple[int, ...]] = [(3, 4), (5,), (), (2, 0), (6,)]
WEIGHTS = [0.5, 0.25, -1.0]
ADAMW: dict[str, Any] = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.01}


def make(requires_grad: bool = False) -> list[list[Tensor | None]]:
    """Three tasks. Task 1 does not use the second parameter, and no task uses the last. Task 2 may require grad."""
    generator = torch.Generator().manual_seed(0)
    grads: list[list[Tensor | None]] = [[torch.randn(s, generator=generator) for s in SHAPES] for _ in range(3)]
    grads[1][1] = None
    for row in grads:
        row[4] = None
    if requires_grad:
        grads[2] = [None if g is None else g.requires_grad_() for g in grads[2]]
    return grads


def grads_with(n: int, i: int, value: Any) -> Any:
    grads: Any = [[torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3)]]
    grads[n][i] = value
    return grads


GOOD = grads_with(0, 0, torch.ones(2))
