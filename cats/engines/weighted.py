"""One backward pass of the weighted loss Σ w_n L_n: the steps that do not need <g_n, ḡ>."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .autograd import add_gradients, compiled_graphs_explained
from .examples import Examples
from .losses import TaskLosses, evaluate, number, seed


def weighted_backward(
    losses: TaskLosses | Examples,
    weights: Sequence[float],
    params: Sequence[Tensor],
    *,
    scale: Tensor | None = None,
    retain_graph: bool = False,
    whole: bool = False,
    before_last_pass: Callable[[], None] | None = None,
) -> list[Tensor]:
    """Adds the gradient of Σ w_n L_n to ``p.grad``. Returns the values of the losses, 0-d float64, as ``losses.tasks``.

    Losses given as tensors share one backward pass. Each callable has a backward pass of its own, after which its
    graph is freed.

    Args:
        losses: see :func:`cats.engines.losses.evaluate` and :meth:`Examples.evaluate`, which also list the errors.
        weights: the numbers w_n of all N tasks.
        params: the parameters that receive gradients. Others get none.
        scale: GradScaler's scale, 0-d. The gradients are multiplied by it; the returned values are not.
        retain_graph: whether to keep the graphs of losses given as tensors.
        whole: whether all losses, callables too, share one plain backward pass of the whole graph. Then other leaves
            get gradients too.
        before_last_pass: called before the last backward pass.
    """
    roots: list[Tensor] = []
    seeds: list[Tensor] = []
    if isinstance(losses, Examples):
        value = losses.evaluate()
        seeds = [losses.seed(value, weights, scale)]
        retain_graph = retain_graph and not callable(losses.loss)
        with compiled_graphs_explained("losses with tasks="):
            add_gradients([value], seeds, params, retain_graph=retain_graph, whole=whole, before=before_last_pass)
        return losses.values(value)
    values = []
    together = [whole or not callable(loss) for loss in losses.losses]
    shares = losses.shares(weights)
    for i, (loss, share, name) in enumerate(zip(losses.losses, shares, losses.names, strict=True)):
        value = evaluate(loss, name)
        start = seed(value, share, scale)
        values.append(number(value))
        if together[i]:
            roots.append(value)
            seeds.append(start)
        else:
            is_last = i == len(together) - 1 and not any(together)
            add_gradients([value], [start], params, before=before_last_pass if is_last else None)
            del value  # otherwise its graph would stay alive during the next forward pass
    if roots:
        with compiled_graphs_explained("losses given as tensors"):
            add_gradients(roots, seeds, params, retain_graph=retain_graph, whole=whole, before=before_last_pass)
    return values
