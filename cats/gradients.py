"""From losses to gradients: one backward pass of the weighted loss, or one gradient per task and what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import ops

Loss: TypeAlias = Tensor | Callable[[], Tensor]
Gradient: TypeAlias = list[Tensor | None]


def evaluate(loss: Loss, name: str) -> Tensor:
    """The loss as a scalar tensor; calls it if it is callable.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has more than one element, is not a float, or has no graph.
    """
    value = loss() if callable(loss) else loss
    if not isinstance(value, Tensor):
        raise TypeError(f"loss of {name}: expected a scalar tensor, got {type(value).__name__}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"loss of {name}: expected a scalar float tensor, got shape {tuple(value.shape)}, {value.dtype}"
        )
    if not value.requires_grad:
        raise ValueError(f"loss of {name}: does not require grad (computed under no_grad, or detached?)")
    return value


def weighted_backward(
    losses: Sequence[Loss],
    weights: Sequence[float],
    params: Sequence[Tensor],
    *,
    scale: Tensor | None = None,
    names: Sequence[str],
) -> list[Tensor]:
    """Adds the gradient of Σ w_n L_n to ``p.grad`` and returns the loss values, 0-d float64.

    Losses given as tensors share one backward pass; a callable's graph lives only until its own backward is done.
    """
    values, roots, seeds = [], [], []
    for loss, weight, name in zip(losses, weights, names, strict=True):
        value = evaluate(loss, name)
        seed = _seed(value, weight, scale)
        values.append(_number(value))
        if callable(loss):
            torch.autograd.backward(value, seed, inputs=params)
            del value  # or its graph would live on through the next forward pass
        else:
            roots.append(value)
            seeds.append(seed)
    if roots:
        torch.autograd.backward(roots, seeds, inputs=params)
    return values


def task_gradients(
    losses: Sequence[Loss], params: Sequence[Tensor], *, scale: Tensor | None = None, names: Sequence[str]
) -> tuple[list[Tensor], list[Gradient]]:
    """Loss values, 0-d float64, and one gradient (a tensor or None per parameter) per loss; ``p.grad`` is not touched.

    A callable's graph lives only until its gradient is formed. Tensors may share a graph, which is kept until the last
    of them; graphs that are not shared are freed one by one.
    """
    values: list[Tensor] = []
    gradients: list[Gradient] = []
    for loss, name, retain in zip(losses, names, _needed_again(losses), strict=True):
        value = evaluate(loss, name)
        grads = torch.autograd.grad(value, params, _seed(value, 1.0, scale), retain_graph=retain, allow_unused=True)
        values.append(_number(value))
        gradients.append(list(grads))
        del value  # or its graph would live on through the next forward pass
    return values, gradients


def _needed_again(losses: Sequence[Loss]) -> list[bool]:
    """For every loss whether a later one shares a part of its graph.

    Keeping every graph would cost memory, and compiled models refuse it: they reuse the buffers of a graph in its
    backward pass.
    """
    later: set[Any] = set()  # nodes, and with a node all that it depends on
    needed = []
    for loss in reversed(losses):
        own: set[Any] = set()
        shares = False
        stack: list[Any] = [loss.grad_fn] if isinstance(loss, Tensor) else []
        while stack:
            node = stack.pop()
            if node in later:
                shares = True
            # A node without inputs accumulates into a leaf: it saves nothing, and all losses share it.
            elif node is not None and node not in own and node.next_functions:
                own.add(node)
                stack += [parent for parent, _ in node.next_functions]
        later |= own
        needed.append(shares)
    return needed[::-1]


def _seed(value: Tensor, weight: float, scale: Tensor | None) -> Tensor:
    seed = torch.full_like(value, weight)
    return seed if scale is None else seed * scale.to(device=value.device, dtype=value.dtype)


def _number(value: Tensor) -> Tensor:
    return value.detach().double().reshape(())


def combine(
    gradients: Sequence[Gradient], weights: Tensor, shared: int, *, backend: str | None
) -> tuple[Gradient, Tensor, Tensor]:
    """ḡ = Σ w_n g_n over all parameters; v_n = <g_n, ḡ> and ‖g_n‖², (K,) float64, over the first ``shared`` of them."""
    combined, dots, sqnorms = ops.combine_dots([g[:shared] for g in gradients], weights, backend=backend)
    return [*combined, *_combine_private(gradients, weights, shared, backend)], dots, sqnorms


def combine_across(
    gradients: Sequence[Gradient], weights: Tensor, shared: int, *, backend: str | None
) -> tuple[Gradient, Tensor, Tensor]:
    """As :func:`combine`, for two independent halves A, B of each task's batch: 2K gradients A_1, B_1, A_2, B_2, ...

    g_n = ½(g_n^A + g_n^B), v_n = ½(<g_n^A, ḡ^B> + <g_n^B, ḡ^A>), and the squared norms are the mean of the halves'.
    """
    half_a, half_b = torch.zeros(2, len(gradients), dtype=weights.dtype, device=weights.device)
    half_a[0::2] = weights
    half_b[1::2] = weights
    mean = (half_a + half_b) / 2
    (combined, _, _), dots, sqnorms = ops.combine_dots(
        [g[:shared] for g in gradients], torch.stack([mean, half_a, half_b]), backend=backend
    )
    crossed = (dots[2, 0::2] + dots[1, 1::2]) / 2
    private = _combine_private(gradients, mean, shared, backend)
    return [*combined, *private], crossed, (sqnorms[0::2] + sqnorms[1::2]) / 2


def _combine_private(gradients: Sequence[Gradient], weights: Tensor, shared: int, backend: str | None) -> Gradient:
    private = [g[shared:] for g in gradients]
    return ops.combine(private, weights, backend=backend) if private[0] else []


def add(total: Gradient, new: Gradient) -> Gradient:
    """total + new, None counting as zero. Not in place: autograd may hand out shared or expanded memory."""
    return [b if a is None else a if b is None else a + b for a, b in zip(total, new, strict=True)]


@torch.no_grad()
def add_to_grad(params: Sequence[Tensor], gradient: Gradient, *, alpha: float = 1.0) -> None:
    """``p.grad += alpha * g`` as backward() would; where there is no ``p.grad`` yet, g becomes it (``alpha`` is 1)."""
    for p, g in zip(params, gradient, strict=True):
        if g is None:
            continue
        if p.grad is None:
            # Fused optimizers read the gradient with the parameter's strides, which backward() would have kept.
            p.grad = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        else:
            p.grad.add_(g, alpha=alpha)


@torch.no_grad()
def largest(params: Sequence[Tensor]) -> Tensor:
    """max |p.grad| over all parameters, 0-d, on the device; non-finite if any element is. No host sync."""
    grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in params if p.grad is not None]
    if any(g.is_cuda for g in grads):
        return torch.nn.utils.get_total_norm(grads, norm_type=float("inf"))
    # One kernel per tensor costs nothing here, and on the CPU this is ten times as fast as the norm.
    extremes = [x.double() for g in grads if g.numel() for x in torch.aminmax(g)]
    return torch.stack(extremes).abs().max() if extremes else torch.zeros((), device="cpu")


@torch.no_grad()
def unscale(params: Sequence[Tensor], scale: Tensor) -> None:
    """``p.grad /= scale``, as GradScaler.unscale_ does it."""
    inverse = scale.double().reciprocal().float()
    for p in params:
        if p.grad is not None:
            p.grad.mul_(inverse.to(p.grad.device))
