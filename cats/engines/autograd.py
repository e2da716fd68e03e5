"""Gradients by given parameters, also where a Python function in the graph runs a backward pass of its own.

``torch.autograd.grad``, and ``backward`` with ``inputs``, visit only what lies between the loss and these inputs. What
a function uses inside its own backward pass is not in the graph, so its gradient is left out, or torch raises. This
concerns ``torch.utils.checkpoint(use_reentrant=True)``, its relatives in other libraries, and reversible layers. For
graphs with functions written in Python there is therefore a plain backward pass, and the gradients are taken from
``p.grad``. What ``torch.compile`` makes is such a function too, although it has no backward pass of its own inside.
Wrappers that reduce gradients by hooks (DistributedDataParallel, fully_shard) need a plain backward pass of the whole
graph in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cats.gradients import Gradient, take_grads


def add_gradients(
    roots: Sequence[Tensor],
    seeds: Sequence[Tensor],
    params: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    whole: bool = False,
    before: Callable[[bool], None] | None = None,
) -> None:
    """Adds the gradient of Σ seed · root to ``p.grad``. The graph is freed, unless ``retain_graph``.

    Other leaves get no gradient, except those that only a Python function's own backward pass uses.

    Args:
        whole: whether this is a plain backward pass in any case, in which other leaves get gradients too.
        before: called before the backward pass, with whether it writes to each ``p.grad`` only once.
    """
    leaves = [] if whole else _leaves_of_python_functions(roots)
    if before is not None:
        before(leaves is None)
    if leaves is None:
        torch.autograd.backward(roots, seeds, inputs=params, retain_graph=retain_graph)
    else:
        _backward(roots, seeds, params, leaves, retain_graph=retain_graph)


def gradient(
    root: Tensor, seed: Tensor, params: Sequence[Tensor], *, retain_graph: bool, whole: bool = False
) -> Gradient:
    """The gradient of seed · root: one tensor per parameter, or None where it does not depend on the parameter.

    ``p.grad`` does not change. Other leaves get no gradient, with the exception above. ``whole`` is as above.
    """
    leaves = [] if whole else _leaves_of_python_functions([root])
    if leaves is None:
        return list(torch.autograd.grad(root, params, seed, retain_graph=retain_graph, allow_unused=True))
    before = take_grads(params)
    try:
        _backward([root], [seed], params, leaves, retain_graph=retain_graph)
        return take_grads(params)
    finally:
        _set_grads(params, before)


def _backward(
    roots: Sequence[Tensor],
    seeds: Sequence[Tensor],
    params: Sequence[Tensor],
    leaves: Sequence[Tensor],
    *,
    retain_graph: bool,
) -> None:
    ours = {id(p) for p in params}
    others = [leaf for leaf in leaves if id(leaf) not in ours]
    before = take_grads(others)
    try:
        torch.autograd.backward(roots, seeds, retain_graph=retain_graph)
    finally:
        _set_grads(others, before)


def _set_grads(params: Sequence[Tensor], grads: Gradient) -> None:
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def _leaves_of_python_functions(roots: Sequence[Tensor]) -> list[Tensor] | None:
    """The leaves of the graph if there are functions written in Python in it, otherwise None."""
    seen: set[Any] = {None}
    stack: list[Any] = [root.grad_fn for root in roots]
    leaves: list[Tensor] = []
    found = False
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found = True
        parents = node.next_functions
        if parents:
            stack += [parent for parent, _ in parents]
        elif hasattr(node, "variable"):
            leaves.append(node.variable)
    return leaves if found else None
