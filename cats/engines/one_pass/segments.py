"""The weight gradients of all tasks, one layer at a time: cheaper than the rows if the tasks are few.

Autograd forms a Linear layer's weight gradient as one matrix product over all rows. If the rows are sorted by task, one
product per task takes the same number of operations. Their sum is ḡ, and <g_n, ḡ> comes from one read of them. Then
they are dropped. So autograd need not form this gradient at all, where the rows need one more product.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from cats import ops
from cats.gradients import Gradient, add_to_grad

from .derivatives import Data
from .graph import Graph, Use, needed
from .placement import Measured, Placement

# With fewer rows or multiplications per task, the products of the tasks take longer than one more product over all
# rows. Measured with one CPU thread, 2 to 32 tasks and widths of 96 to 1,024. Not measured on a GPU: there, this many
# multiplications take as long as starting a kernel or two.
_ROWS = 40
_MULTIPLICATIONS = {"cpu": 7 * 10**5, "cuda": 2**32}
_ELEMENTS = 2**20  # of the gradients of all tasks that are formed at once
_VIEWS = [(), ("TBackward0",), ("ToCopyBackward0", "TBackward0")]  # from a weight to the right matrix of the product


def by_segments(
    graph: Graph,
    uses: Mapping[Use, Placement | Measured],
    params: Sequence[Tensor],
    others: Collection[int],
    tasks: int,
) -> set[Use]:
    """The Linear layers whose weight gradients are formed task by task.

    Args:
        uses: all that are computed by rows. others: the parameters that are not.
        tasks: the number of tasks that have losses.
    """
    count: dict[int, int] = {}
    for use in graph.uses:
        for i in use.params:
            count[i] = count.get(i, 0) + 1
    chosen = {
        use: {id(params[i]) for i in use.params}
        for use, placement in uses.items()
        if placement.first
        and all(count[i] == 1 and i not in others and not _has_hooks(params[i]) for i in use.params)
        and _is_linear(use)
        and _worth_it(use.shape[0] // tasks, [params[i] for i in use.params])
    }
    if not chosen:
        return set()
    # The node of a layer runs only if the backward pass needs the gradient of its input.
    return needed(graph, chosen, params)


def _has_hooks(param: Tensor) -> bool:
    """Whether code of the user waits for the gradient, which autograd would not form."""
    return bool(getattr(param, "_post_accumulate_grad_hooks", None))


def _worth_it(rows: int, params: Sequence[Tensor]) -> bool:
    elements = max(p.numel() for p in params)
    return rows >= _ROWS and rows * elements >= _MULTIPLICATIONS.get(params[0].device.type, math.inf)


def _is_linear(use: Use) -> bool:
    weight = {"AddmmBackward0": 2, "MmBackward0": 1}.get(use.name)
    if weight not in use.inputs or set(use.inputs) - {0, weight}:
        return False
    if use.name == "AddmmBackward0" and not (use.node._saved_alpha == use.node._saved_beta == 1):
        return False
    bias = use.inputs.get(0) if weight == 2 else None
    plain = bias is None or all(node.name() == "ToCopyBackward0" for node, _ in bias.views)
    return plain and tuple(node.name() for node, _ in use.inputs[weight].views) in _VIEWS


class Segments:
    """The rows of a list of tasks, sorted by task.

    Args:
        tasks: (R,) the task of each row, -1 for none. present: the tasks that have losses, ascending.
    """

    def __init__(self, tasks: Tensor, present: Sequence[int], total: int) -> None:
        host = tasks.cpu()
        is_sorted = bool((host[1:] >= host[:-1]).all())
        self.order = None if is_sorted else torch.argsort(tasks, stable=True)
        sizes = torch.bincount(host + 1, minlength=total + 1)
        first = (sizes.cumsum(0) - sizes).tolist()
        self.bounds = [(first[n + 1], first[n + 1] + int(sizes[n + 1])) for n in present]

    def sort(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(0, self.order)


def add_segment_gradients(
    use: Use,
    delta: Tensor,
    segments: Segments,
    params: Sequence[Tensor],
    direction: Gradient | None,
    backend: str | None,
) -> Tensor:
    """Sets ``p.grad`` of the layer's weight and bias, and returns <g_n, d> of the tasks present, (K,) float64.

    The gradients of a few rows of the weight at a time are formed, for all tasks, so that they stay in the cache.

    delta: (R, out), the gradient of the layer's output.
    direction: d. None: ḡ.
    """
    number = 2 if use.name == "AddmmBackward0" else 1
    source, bias = use.inputs[number], use.inputs.get(0) if number == 2 else None
    inputs = segments.sort(Data(use.node)["mat1" if number == 2 else "self"])
    delta = segments.sort(delta)
    transposed = any(node.name() == "TBackward0" for node, _ in source.views)
    left, right = (delta, inputs) if transposed else (inputs, delta)
    weight, count = params[source.param], len(segments.bounds)
    size = max(1, _ELEMENTS // (count * weight.shape[1]))
    combined = torch.empty_like(weight)
    total = torch.zeros(count, dtype=torch.float64, device=delta.device)
    for first in range(0, len(weight), size):
        part = slice(first, first + size)
        gradients = [[(left[a:b, part].t() @ right[a:b]).to(weight.dtype)] for a, b in segments.bounds]
        out: list[Tensor | None] = [combined[part]]
        if first == 0 and bias is not None:
            for gradient, (a, b) in zip(gradients, segments.bounds, strict=True):
                gradient.append(delta[a:b].sum(0).to(params[bias.param].dtype))
            out.append(None)
        if direction is None:
            sums, dots, _ = ops.combine_dots(gradients, [1.0] * count, out=out, backend=backend)
        else:
            along = direction[source.param]
            d = [None if along is None else along[part]]
            if len(out) > 1:
                assert bias is not None
                d.append(direction[bias.param])
            sums = ops.combine(gradients, [1.0] * count, out=out, backend=backend)
            dots = ops.dots(gradients, d, backend=backend)
        if first == 0 and bias is not None:
            add_to_grad([params[bias.param]], sums[1:])
        total += dots.to(total.device)
    add_to_grad([weight], [combined])
    return total
