"""One backward pass of the weighted loss Σ w_n L_n: the steps that need no per-task gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .autograd import add_gradients
from .losses import Loss, evaluate, number, seed


def weighted_backward(
    losses: Sequence[Loss],
    weights: Sequence[float],
    params: Sequence[Tensor],
    *,
    scale: Tensor | None = None,
    names: Sequence[str],
) -> list[Tensor]:
    """Adds the gradient of Σ w_n L_n to ``p.grad`` and returns the values of the losses, 0-d float64.

    Losses given as tensors share one backward pass. Each callable has a backward pass of its own, after which its
    graph is freed.

    Args:
        losses: tensors or callables, see :func:`cats.engines.losses.evaluate`, which also lists the errors.
        weights: one number w_n per loss.
        params: the parameters that receive gradients. Others get none.
        scale: GradScaler's scale, 0-d. The gradients are multiplied by it; the returned values are not.
        names: the names of the losses in error messages.
    """
    values, roots, seeds = [], [], []
    for loss, weight, name in zip(losses, weights, names, strict=True):
        value = evaluate(loss, name)
        start = seed(value, weight, scale)
        values.append(number(value))
        if callable(loss):
            add_gradients([value], [start], params)
            del value  # otherwise its graph would stay alive during the next forward pass
        else:
            roots.append(value)
            seeds.append(start)
    if roots:
        add_gradients(roots, seeds, params)
    return values
