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

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cats.gradients import Gradient, take_grads

_FREED = (
    "an earlier backward pass has freed a part of the graph of these losses. Pass losses that share a graph as tensors "
    "in one backward() call, or compute all of it inside each callable. A backward() of your own comes first, with "
    "retain_graph=True"
)
_USED = "cats: used in a backward pass"


def mark_used(nodes: Iterable[Any]) -> None:
    """Notes that these nodes would be freed now, if an engine had not kept their graph for a purpose of its own."""
    for node in nodes:
        node.metadata[_USED] = True


def check_unused(nodes: Iterable[Any]) -> None:
    """Raises RuntimeError if a node is marked so, as torch does if it is freed: this must not depend on the engine."""
    if any(_USED in node.metadata for node in nodes):
        raise RuntimeError(_FREED)


def add_gradients(
    roots: Sequence[Tensor],
    seeds: Sequence[Tensor],
    params: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    whole: bool = False,
    before: Callable[[], None] | None = None,
) -> None:
    """Adds the gradient of Σ seed · root to ``p.grad``. The graph is freed, unless ``retain_graph``.

    Other leaves get no gradient, except those that only a Python function's own backward pass uses.

    Args:
        whole: whether this is a plain backward pass in any case, in which other leaves get gradients too.
        before: called before the backward pass.
    """
    check_unused(root.grad_fn for root in roots)
    leaves = [] if whole else _leaves_of_python_functions(roots)
    if before is not None:
        before()
    with freed_graphs_explained():
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
        with freed_graphs_explained():
            return list(torch.autograd.grad(root, params, seed, retain_graph=retain_graph, allow_unused=True))
    before = take_grads(params)
    try:
        with freed_graphs_explained():
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


def is_opaque(node: Any) -> bool:
    """Whether the node is a function written in Python, which may use leaves that are not among its inputs.

    A ``torch.autograd.Function`` that does not can say so by an attribute: ``uses_only_its_inputs = True``.
    """
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return False
    return not getattr(getattr(node, "_forward_cls", None), "uses_only_its_inputs", False)


def nodes(roots: Sequence[Tensor]) -> Iterator[Any]:
    """All nodes of the graph of the roots, each once."""
    seen: set[Any] = {None}
    stack: list[Any] = [root.grad_fn for root in roots]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += [parent for parent, _ in node.next_functions]


def needed_again(roots: Sequence[Tensor | None]) -> list[bool]:
    """For each root, whether a later one shares a part of its graph. None stands for a loss that has no graph yet.

    Keeping every graph would cost memory. Compiled models refuse it too: their backward pass reuses the buffers of the
    graph.
    """
    later: set[Any] = set()  # the graph nodes of the losses that come later
    needed = []
    for root in reversed(roots):
        own: set[Any] = set()
        shares = False
        stack: list[Any] = [] if root is None else [root.grad_fn]
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


def uncompiled() -> AbstractContextManager[None]:
    """Runs compiled models without their compiled code, whose graph hides their layers and has no tangents."""
    if "torch._dynamo" not in sys.modules:  # importing it takes long, and nothing is compiled then
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def compiled_graphs_explained(what: str) -> Iterator[None]:
    """Says what to do where the graph of a compiled model would have to be kept, which torch refuses."""
    try:
        yield
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise RuntimeError(
            f"{what}: torch.compile lets the backward pass of a graph run only once, and this step needs it "
            "again: pass each loss as a callable, or set torch._functorch.config.donated_buffer = False before the "
            "first compilation"
        ) from error


@contextmanager
def freed_graphs_explained() -> Iterator[None]:
    """Says what to do where a graph was freed too early. torch advises an argument that backward() has not."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise RuntimeError(_FREED) from error


def _leaves_of_python_functions(roots: Sequence[Tensor]) -> list[Tensor] | None:
    """The leaves of the graph if there are functions written in Python in it, otherwise None."""
    leaves: list[Tensor] = []
    found = False
    for node in nodes(roots):
        found |= is_opaque(node)
        if not node.next_functions and hasattr(node, "variable"):
            leaves.append(node.variable)
    return leaves if found else None
