"""What every contender must find, in float64 and plain torch: one gradient per task, from a forward pass of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .workload import Size, Workload, eager

# The norms of the errors of v and ḡ, as shares of the norms of v and ḡ, are at most this. Most are about 1e-7. But in
# float32 a ReLU may be on that is off in float64, and one such unit changes v by up to 3e-4 here.
EXACT = 1e-3
SAMPLED = 0.7  # of v from a sample of the rows: with K = 92 a task has about two rows


class Wrong(Exception):
    """A contender found something else. The text says by how much."""


@dataclass(frozen=True)
class Expected:
    """v: (K,), and ḡ = Σ g_n / K, one tensor per parameter. Both are float64."""

    v: Tensor
    combined: list[Tensor]


def expected(size: Size, tasks: int, device: torch.device) -> Expected:
    """v and ḡ of the first step with equal weights, without dropout and autocast."""
    work = Workload(size, tasks, device, torch.float64)
    params = list(work.model.parameters())
    combined = [torch.zeros_like(p) for p in params]
    with comparable(work):
        for gradient in _gradients(work, params):
            torch._foreach_add_(combined, gradient, alpha=1 / tasks)
        # The gradients are computed again, because K of them in float64 may not fit into memory.
        dots = [_dot(gradient, combined) for gradient in _gradients(work, params)]
    return Expected(torch.stack(dots), combined)


@contextmanager
def comparable(work: Workload) -> Iterator[None]:
    """In a with block, dropout and autocast are off, with which no two contenders would find the same."""
    precision, work.precision = work.precision, "fp32"
    work.model.eval()
    try:
        yield
    finally:
        work.model.train()
        work.precision = precision


def _gradients(work: Workload, params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for loss in work.separate_losses(eager).values():
        yield list(torch.autograd.grad(loss(), params))


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def check(work: Workload, v: Sequence[float] | Tensor | None, right: Expected, sampled: bool) -> float:
    """The norm of the error of v after the first step, as a share of the norm of v.

    v: None for plain training, which has none. sampled: it is from a sample of the rows.

    Raises:
        Wrong: v or ḡ is wrong.
    """
    found = right.v if v is None else torch.as_tensor(v, dtype=torch.float64, device=right.v.device).detach()
    if found.shape != right.v.shape:
        raise Wrong(f"v has shape {tuple(found.shape)}")
    error = ((found - right.v).norm() / right.v.norm()).item()
    bound = SAMPLED if sampled else EXACT
    if not error <= bound:
        raise Wrong(f"v is wrong by {error:.1e} of its norm")
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.double() for p in work.model.parameters()]
    difference = [a - b for a, b in zip(grads, right.combined, strict=True)]
    off = (_dot(difference, difference) / _dot(right.combined, right.combined)).sqrt().item()
    if not off <= EXACT:
        raise Wrong(f"ḡ is wrong by {off:.1e} of its norm")
    return error
