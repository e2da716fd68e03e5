"""The operators in plain torch, on any device with float64: oracle of the tests, fallback, baseline of the benchmarks.

Parameters are walked in order and cut into blocks of a bounded number of elements, small parameters sharing a block.
A block of the k gradients that are present becomes one (k, c) float64 matrix; products of float32 numbers are exact in
it and every sum over c or k runs in float64. The partition depends on shapes, groups and which gradients are None, and
on nothing else, so results have the same bits on every run and for every thread count.

Every function takes what `cats.ops` has checked already: grads, K lists of N tensors or None; weights, (R, K) float64;
groups, N ints; out, R lists of N tensors (None where no task has a gradient). Statistics have a leading group axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Row = Sequence[Tensor | None]

# On a CPU a block's matrix and its products stay in the second-level cache, and torch runs sums of fewer than 32768
# elements on one thread: splitting a sum between threads would make its bits depend on their number.
_CPU_BLOCK = 1 << 13
# Elsewhere the cost is launches, so blocks are large; this bounds one float64 (k, c) matrix to 16 MiB.
_DEVICE_BLOCK = 1 << 21


def combine(grads: Sequence[Row], weights: Tensor, out: Sequence[Row]) -> None:
    """out[r][i] = sum_n weights[r, n] * grads[n][i]."""
    device = _device(grads, weights.device)
    weights = weights.to(device, non_blocking=True)
    for block in _blocks(grads, [0] * len(grads[0]), out):
        combined = _combined(block.gradients(), _columns(weights, block.tasks))
        for r, values in enumerate(combined):
            _store(values, block.others(r))


def combine_dots(
    grads: Sequence[Row], weights: Tensor, out: Sequence[Row], groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`combine`, and dots (G, R, K) with the combinations before rounding, and squared norms (G, K), both float64."""
    device = _device(grads, weights.device)
    weights = weights.to(device, non_blocking=True)
    dots = torch.zeros(max(groups) + 1, *weights.shape, dtype=torch.float64, device=device)
    sqnorms = torch.zeros(max(groups) + 1, len(grads), dtype=torch.float64, device=device)
    for block in _blocks(grads, groups, out):
        matrix = block.gradients()
        combined = _combined(matrix, _columns(weights, block.tasks))
        dots[block.group] += _spread(_products(matrix, combined), block.tasks, len(grads))
        sqnorms[block.group] += _spread((matrix * matrix).sum(1), block.tasks, len(grads))
        for r, values in enumerate(combined):
            _store(values, block.others(r))
    return dots, sqnorms


def dots(grads: Sequence[Row], direction: Row, groups: Sequence[int]) -> Tensor:
    """(G, K) float64: <grads[n], direction>; a None in the direction is zero."""
    result = torch.zeros(max(groups) + 1, len(grads), dtype=torch.float64, device=_device(grads))
    touched = [[None if d is None else g for g, d in zip(row, direction, strict=True)] for row in grads]
    for block in _blocks(touched, groups, [direction]):
        products = _products(block.gradients(), _concatenate([block.others(0)]).double())
        result[block.group] += _spread(products[0], block.tasks, len(grads))
    return result


def gram(grads: Sequence[Row], groups: Sequence[int]) -> Tensor:
    """(G, K, K) float64, symmetric bit for bit."""
    result = torch.zeros(max(groups) + 1, len(grads), len(grads), dtype=torch.float64, device=_device(grads))
    for block in _blocks(grads, groups):
        matrix = block.gradients()
        square = matrix.new_zeros(len(matrix), len(matrix))
        for n, row in enumerate(matrix):
            square[n, n:] = square[n:, n] = (matrix[n:] * row).sum(1)
        rows = _spread(square, block.tasks, len(grads))
        result[block.group] += _spread(rows.mT, block.tasks, len(grads))
    return result


def combine_adamw_(
    params: Row,
    grads: Sequence[Row],
    weights: Tensor,
    exp_avgs: Row,
    exp_avg_sqs: Row,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    found_inf: Tensor | None,
    grad_scale: Tensor | None,
    groups: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """AdamW on the combination of one row of weights, computed in the moments' dtype and rounded once into params.

    The operations and their order are those of torch.optim.AdamW's loop over single tensors. Returns dots (G, 1, K) and
    squared norms (G, K), float64, of the gradients as given.
    """
    device = _device(grads, weights.device)
    weights = weights.to(device, non_blocking=True)
    step, lr = step.double(), lr.double()
    decay = 1 - lr * weight_decay
    step_size = lr / (1 - beta1**step)
    correction = (1 - beta2**step).sqrt()
    skip = None if found_inf is None else found_inf.to(device, non_blocking=True) != 0
    dots = torch.zeros(max(groups) + 1, *weights.shape, dtype=torch.float64, device=device)
    sqnorms = torch.zeros(max(groups) + 1, len(grads), dtype=torch.float64, device=device)
    for block in _blocks(grads, groups, [params, exp_avgs, exp_avg_sqs]):
        matrix = block.gradients()
        combined = _combined(matrix, _columns(weights, block.tasks))
        dots[block.group] += _spread(_products(matrix, combined), block.tasks, len(grads))
        sqnorms[block.group] += _spread((matrix * matrix).sum(1), block.tasks, len(grads))

        before = _concatenate([block.others(j) for j in range(3)])
        param, exp_avg, exp_avg_sq = before
        grad = combined[0].to(before.dtype)
        if grad_scale is not None:
            grad = grad / grad_scale.to(grad)
        exp_avg = exp_avg.lerp(grad, 1 - beta1)
        exp_avg_sq = (exp_avg_sq * beta2).addcmul_(grad, grad, value=1 - beta2)
        param = (param * decay).addcdiv_(exp_avg * -step_size, (exp_avg_sq.sqrt() / correction).add_(eps))
        for j, (old, new) in enumerate(zip(before, (param, exp_avg, exp_avg_sq), strict=True)):
            _store(new if skip is None else torch.where(skip, old, new), block.others(j))
    return dots, sqnorms


class _Block(NamedTuple):
    """Some elements of some parameters: at most the block size of them, all with gradients from the same tasks."""

    tasks: tuple[int, ...]
    group: int
    pieces: list[list[Tensor]]  # per piece of a parameter: views of the k gradients, then of the other tensors

    def gradients(self) -> Tensor:
        """(k, c) float64."""
        return _concatenate([[piece[j] for piece in self.pieces] for j in range(len(self.tasks))]).double()

    def others(self, j: int) -> list[Tensor]:
        """The views of the j-th of the tensors that are not gradients."""
        return [piece[len(self.tasks) + j] for piece in self.pieces]


def _blocks(grads: Sequence[Row], groups: Sequence[int], others: Sequence[Row] = ()) -> Iterator[_Block]:
    pieces: list[list[Tensor]] = []
    filled = 0
    last: tuple[tuple[int, ...], int, torch.dtype] | None = None
    for i, group in enumerate(groups):
        tasks = tuple(n for n, row in enumerate(grads) if row[i] is not None)
        column = [t for row in itertools.chain(grads, others) if (t := row[i]) is not None]
        if not tasks or column[0].numel() == 0:
            continue
        if all(t.is_contiguous() for t in column):
            column = [t.view(-1) for t in column]
        key = (tasks, group, column[0].dtype)
        limit = _CPU_BLOCK if column[0].device.type == "cpu" else max(1, _DEVICE_BLOCK // len(tasks))
        for index in _cuts(column[0].shape, limit):
            piece = [t[index] for t in column] if index else column
            size = piece[0].numel()
            if last is not None and (key != last or filled + size > limit):
                yield _Block(*last[:2], pieces)
                pieces, filled = [], 0
            last = key
            pieces.append(piece)
            filled += size
    if last is not None:
        yield _Block(*last[:2], pieces)


def _cuts(shape: torch.Size, limit: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cut a tensor of this shape into boxes of at most limit elements, in order; () is all of it."""
    if shape.numel() <= limit:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner > limit:
        for i, rest in itertools.product(range(shape[0]), list(_cuts(shape[1:], limit))):
            yield (i, *rest)
    else:
        for start in range(0, shape[0], limit // inner):
            yield (slice(start, start + limit // inner),)


def _concatenate(rows: list[list[Tensor]]) -> Tensor:
    """(len(rows), c): each row's tensors flattened and joined, in the widest dtype among them."""
    return torch.cat([t.flatten() for row in rows for t in row]).view(len(rows), -1)


def _combined(matrix: Tensor, weights: Tensor) -> Tensor:
    """(R, c) from (k, c) and (R, k). No matrix product: BLAS may order its sums by the number of threads."""
    return torch.stack([(matrix * row.unsqueeze(1)).sum(0) for row in weights])


def _products(matrix: Tensor, directions: Tensor) -> Tensor:
    """(R, k): the inner products of (k, c) with (R, c)."""
    return torch.stack([(matrix * direction).sum(1) for direction in directions])


def _store(values: Tensor, targets: list[Tensor]) -> None:
    for target, part in zip(targets, values.split([t.numel() for t in targets]), strict=True):
        target.copy_(part.view(target.shape))


# Selecting tasks by stacking columns, not by an index tensor: that would have to be copied to the device each time.
def _columns(weights: Tensor, tasks: tuple[int, ...]) -> Tensor:
    """(R, k) of (R, K): the weights of these tasks."""
    if len(tasks) == weights.shape[1]:
        return weights
    return torch.stack([weights[:, n] for n in tasks], 1)


def _spread(values: Tensor, tasks: tuple[int, ...], count: int) -> Tensor:
    """(..., K) of (..., k): zero for the tasks that are absent."""
    if len(tasks) == count:
        return values
    absent = torch.zeros_like(values[..., 0])
    present = dict(zip(tasks, values.unbind(-1), strict=True))
    return torch.stack([present.get(n, absent) for n in range(count)], -1)


def _device(grads: Sequence[Row], default: torch.device | None = None) -> torch.device | None:
    return next((g.device for row in grads for g in row if g is not None), default)
