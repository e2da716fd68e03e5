"""Gradients, as lists with one tensor or None per parameter, and how they get into ``p.grad``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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


def dense(g: Tensor | None) -> Tensor | None:
    """The gradient as a dense tensor."""
    return g.to_dense() if g is not None and g.is_sparse else g


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
    _multiply(params, scale.double().reciprocal().float())


@contextmanager
def unscaled(params: Sequence[Tensor], scale: Tensor | None) -> Iterator[None]:
    """Divides ``p.grad`` by ``scale``, and multiplies it by ``scale`` again if the block raises.

    That gives the old values back exactly if ``scale`` is a power of two, as GradScaler's is unless the user sets
    another one, and no element is subnormal in between. A copy would be exact always, but would cost time in every
    step. With None nothing is divided.
    """
    if scale is not None:
        unscale(params, scale)
    try:
        yield
    except BaseException:
        if scale is not None:
            _multiply(params, scale)
        raise


@torch.no_grad()
def _multiply(params: Sequence[Tensor], factor: Tensor) -> None:
    for p in params:
        if p.grad is not None:
            p.grad.mul_(factor.to(p.grad.device))


@contextmanager
def grads_restored_on_error(params: Sequence[Tensor]) -> Iterator[None]:
    """If the block raises, every ``p.grad`` is the tensor that it was before, with the values that it had.

    A ``p.grad`` that is None costs nothing. Others are copied.
    """
    before = [None if p.grad is None else (p.grad, p.grad.detach().clone()) for p in params]
    try:
        yield
    except BaseException:  # KeyboardInterrupt too
        with torch.no_grad():
            for p, was in zip(params, before, strict=True):
                p.grad = None if was is None else was[0].copy_(was[1])
        raise
