"""Gradients, as lists with one tensor or None per parameter, and how they get into ``p.grad``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

Gradient: TypeAlias = list[Tensor | None]


def is_sharded(t: Tensor) -> bool:
    """Whether it is a DTensor, of which this process may have only a part."""
    # This module takes long to import. If nobody has imported it, there are no such tensors.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(t, tensors.DTensor)


def local(t: Any) -> Tensor:
    """The part of a DTensor that this process has. Other tensors are returned as they are."""
    return t.to_local() if is_sharded(t) else t


def position(params: Sequence[Any], i: int, first: int = 0) -> int:
    """A number for element number ``first`` of parameter i, of those that this process has of it.

    The numbers of an element are the same in one process and in several. They count the elements of a parameter in
    row-major order, from a multiple of 2^40.

    Raises:
        RuntimeError: the parameter is sharded along another dimension than the first.
    """
    p = params[i]
    if is_sharded(p):
        *replicated, sharded = p.placements
        if not all(each.is_replicate() for each in replicated) or not sharded.is_shard(0):
            raise RuntimeError(f"a parameter is sharded as {p.placements}, but must be along its first dimension")
        mesh, last = p.device_mesh, len(replicated)
        rows = -(-p.shape[0] // mesh.size(last)) * mesh.get_local_rank(last)
        first += min(rows, p.shape[0]) * (p.numel() // max(1, p.shape[0]))
    return (i << 40) + first


def power_of_two(size: Tensor) -> Tensor:
    """The power of two next to ``size``, 0-d, by which float numbers are scaled without rounding errors.

    It is 1 if the size is 0 or not finite, and within the range of float32.
    """
    exponent = size.log2().round()
    return torch.where(exponent.isfinite(), exponent.clamp(-100, 100), 0.0).exp2()


def add(total: Gradient, new: Gradient) -> Gradient:
    """total + new, where None counts as zero. Not in place: autograd may return memory that tensors share."""
    pairs = zip(total, new, strict=True)
    # torch adds a sparse tensor to a dense one, but not the other way round.
    return [b if a is None else a if b is None else b + a if a.is_sparse else a + b for a, b in pairs]


@torch.no_grad()
def add_to_grad(params: Sequence[Tensor], gradient: Gradient, *, alpha: float = 1.0) -> None:
    """``p.grad += alpha * g``. A parameter without ``p.grad`` gets alpha g: g itself, not a copy, if ``alpha`` is 1.

    Of a sharded parameter, g is the part of this process.
    """
    for p, g in zip(params, gradient, strict=True):
        if g is None:
            continue
        if p.grad is None:
            dtype = getattr(p, "grad_dtype", None)  # what p.grad may be; None: anything. Not in torch 2.6
            g = g if dtype is None else g.to(dtype)
            g = g if alpha == 1 else g * alpha
            # Fused optimizers read the gradient with the parameter's strides. backward() gives it these strides too.
            here = local(p)
            same = g.is_sparse or g.stride() == here.stride()
            p.grad = _sharded_like(p, g if same else torch.empty_like(here, dtype=g.dtype).copy_(g))
        elif p.grad.is_sparse and not g.is_sparse:
            p.grad = torch.add(p.grad.to_dense(), g, alpha=alpha)
        else:
            local(p.grad).add_(g, alpha=alpha)


def _sharded_like(p: Any, g: Tensor) -> Tensor:
    """g as the part of a DTensor, if p is one."""
    if not is_sharded(p):
        return g
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(g, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def dense(g: Tensor | None) -> Tensor | None:
    """The gradient as a dense tensor. Of a DTensor, the part of this process."""
    return None if g is None else g.to_dense() if g.is_sparse else local(g)


def take_grads(params: Iterable[Tensor]) -> Gradient:
    """The gradients in ``p.grad``, which is set to None."""
    taken: Gradient = []
    for p in params:
        taken.append(p.grad)
        p.grad = None
    return taken


@torch.no_grad()
def largest(params: Sequence[Tensor]) -> Tensor:
    """max |p.grad| over all parameters, 0-d on their device. It is not finite if any element is not. No host sync.

    Of sharded parameters, it is over the parts of this process.
    """
    grads = [p.grad.coalesce().values() if p.grad.is_sparse else local(p.grad) for p in params if p.grad is not None]
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
            local(p.grad).mul_(factor.to(p.grad.device))


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
