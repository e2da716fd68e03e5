"""Gradients, as lists with one tensor or None per parameter, and how they get into ``p.grad``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Gradient: TypeAlias = list[Tensor | None]


def add(total: Gradient, new: Gradient) -> Gradient:
    """total + new, where None counts as zero. Not in place: autograd may return memory that tensors share."""
    return [b if a is None else a if b is None else a + b for a, b in zip(total, new, strict=True)]


@torch.no_grad()
def add_to_grad(params: Sequence[Tensor], gradient: Gradient, *, alpha: float = 1.0) -> None:
    """``p.grad += alpha * g``. A parameter without ``p.grad`` gets g itself; ``alpha`` must be 1 then."""
    for p, g in zip(params, gradient, strict=True):
        if g is None:
            continue
        if p.grad is None:
            # Fused optimizers read the gradient with the parameter's strides. backward() gives it these strides too.
            p.grad = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        else:
            p.grad.add_(g, alpha=alpha)


def take_grads(params: Iterable[Tensor]) -> Gradient:
    """The gradients in ``p.grad``, which is set to None."""
    taken: Gradient = []
    for p in params:
        taken.append(p.grad)
        p.grad = None
    return taken


@torch.no_grad()
def largest(params: Sequence[Tensor]) -> Tensor:
    """max |p.grad| over all parameters, 0-d on their device. It is not finite if any element is not. No host sync."""
    grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in params if p.grad is not None]
    if any(g.is_cuda for g in grads):
        return torch.nn.utils.get_total_norm(grads, norm_type=float("inf"))
    # On the CPU it costs nothing to start a kernel per tensor, and aminmax is ten times as fast as the norm.
    extremes = [x.double() for g in grads if g.numel() for x in torch.aminmax(g)]
    return torch.stack(extremes).abs().max() if extremes else torch.zeros((), device=params[0].device)


@torch.no_grad()
def unscale(params: Sequence[Tensor], scale: Tensor) -> None:
    """``p.grad /= scale``, with the same rounding as ``GradScaler.unscale_``."""
    inverse = scale.double().reciprocal().float()
    for p in params:
        if p.grad is not None:
            p.grad.mul_(inverse.to(p.grad.device))
