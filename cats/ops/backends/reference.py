"""The operators in plain torch, for tensors on any device with float64.

They compute what other backends do not support (the fallback), and they are a baseline of the benchmarks.

Parameters are processed in order, in blocks so short that an operator takes less than 64 MB beyond its arguments and
results; small parameters share a block. The gradients of a block are copied into one (k, c) float64 matrix, for the k
tasks that have them. Products of float32 numbers are exact in float64, and all sums over k or c are float64. The blocks
depend on the operator, on the tensors' layouts, on the groups and on which gradients are None, but never on threads:
results have the same bits on every run and for every number of threads.

All functions take grads, K lists of N tensors or None; others, lists of N tensors or None that the operator needs
besides; groups, N ints; weights, (R, K) float64. Arguments have been checked by `cats.ops.checks`. Statistics are
float64 with a leading group axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..interface import AdamW, Draws, Limits, Row
from ..layout import device_of

LIMITS = Limits()
Key = tuple[tuple[int, ...], int, torch.dtype]  # what the pieces of a block have in common: tasks, group, dtype

# What an operator needs for a block has at most this many float64 elements (48 MiB), and on a CPU a block has at most
# this many columns: torch uses one thread for a sum of fewer than 32768 numbers. With several threads, the bits of a
# sum would depend on their number.
_MEMORY = 6 << 20
_CPU_COLUMNS = 1 << 14
# How many vectors of a block's length the operators need at a time, as float64, beyond what `_blocks` counts.
_VECTORS = 2  # a combination, and the one before it; or a direction, and the same as float64
_ADAMW_VECTORS, _ADAMW_VECTORS_FLOAT64 = 8, 13  # with float32 moments, and with float64 ones
_GRADDROP_VECTORS = 11
_ROWS = 1 << 21  # row_dots: elements of a block of one matrix, as float64 16 MiB


@torch.no_grad()
def combine(grads: Sequence[Row], out: Sequence[Row], groups: Sequence[int], weights: Tensor) -> None:
    """out[r][i] = sum_n weights[r, n] * grads[n][i]. out: R rows; None where no task has a gradient."""
    weights = _on_device(weights, device_of(grads) or weights.device)
    for block in _blocks(grads, groups, out):
        for r, values in enumerate(_combined(block, weights)):
            _store(values, block.others(r))


@torch.no_grad()
def combine_dots(
    grads: Sequence[Row], out: Sequence[Row], groups: Sequence[int], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`combine`; returns dots (G, R, K) with the combinations before rounding, and squared norms (G, K)."""
    device = device_of(grads) or weights.device
    weights = _on_device(weights, device)
    dots, sqnorms = _Sums(groups, weights.shape, device), _Sums(groups, weights.shape[1:], device)
    for block in _blocks(grads, groups, out):
        products = []
        for r, values in enumerate(_combined(block, weights)):
            products.append(block.products(values))
            _store(values, block.others(r))
        dots.add(block, torch.stack(products))
        sqnorms.add(block, block.products(block.matrix))
    return dots.total, sqnorms.total


@torch.no_grad()
def dots(grads: Sequence[Row], others: Sequence[Row], groups: Sequence[int]) -> tuple[Tensor]:
    """(G, K): <grads[n], direction>. others: the direction, one row; None in it is zero."""
    (direction,) = others
    touched = [[None if d is None else g for g, d in zip(row, direction, strict=True)] for row in grads]
    result = _Sums(groups, (len(grads),), device_of(grads))
    for block in _blocks(touched, groups, [direction]):
        result.add(block, block.products(_concatenate([block.others(0)]).double()))
    return (result.total,)


@torch.no_grad()
def gram(grads: Sequence[Row], others: Sequence[Row], groups: Sequence[int]) -> tuple[Tensor]:
    """(G, K, K), symmetric bit for bit. others: no rows."""
    upper = _Sums(groups, (len(grads), len(grads)), device_of(grads))
    for block in _blocks(grads, groups, others):
        products = block.matrix.new_zeros(len(block.tasks), len(block.tasks))
        for n, row in enumerate(block.matrix):
            products[n, n:] = block.products(row, n)
        upper.add(block, _spread(products.mT, block.tasks, len(grads)).mT)
    return (upper.total + upper.total.triu(1).mT,)


@torch.no_grad()
def combine_adamw_(
    grads: Sequence[Row], others: Sequence[Row], groups: Sequence[int], weights: Tensor, settings: AdamW
) -> tuple[Tensor, Tensor]:
    """AdamW with the combination for (1, K) weights, computed in the moments' dtype, rounded once into the parameters.

    others: parameters, first and second moments. The operations and their order are those of torch.optim.AdamW with
    foreach=False. Returns dots (G, 1, K) and squared norms (G, K) of the gradients before grad_scale.
    """
    step, lr, beta1, beta2, eps, weight_decay, found_inf, grad_scale = settings
    device = device_of(grads) or weights.device
    weights = _on_device(weights, device)
    # On the device, so that numbers and tensors give the same bits: to divide by a number of the CPU, torch multiplies
    # by its inverse there.
    step, lr = _on_device(step, device).double(), _on_device(lr, device).double()
    decay = 1 - lr * weight_decay
    step_size = lr / (1 - beta1**step)
    correction = (1 - beta2**step).sqrt()
    skip = None if found_inf is None else _on_device(found_inf, device) != 0
    scale = None if grad_scale is None else _on_device(grad_scale, device)

    def update(block: _Block, combined: Tensor) -> None:
        before = _concatenate([block.others(j) for j in range(3)])
        param, exp_avg, exp_avg_sq = before
        grad = combined.to(before.dtype)
        if scale is not None:
            grad = grad / scale.to(grad.dtype)
        exp_avg = exp_avg.lerp(grad, 1 - beta1)
        exp_avg_sq = (exp_avg_sq * beta2).addcmul_(grad, grad, value=1 - beta2)
        param = (param * decay).addcdiv_(exp_avg * -step_size, (exp_avg_sq.sqrt() / correction).add_(eps))
        for j, (old, new) in enumerate(zip(before, (param, exp_avg, exp_avg_sq), strict=True)):
            _store(new if skip is None else torch.where(skip, old, new), block.others(j))

    dots, sqnorms = _Sums(groups, weights.shape, device), _Sums(groups, weights.shape[1:], device)
    wide = any(t is not None and t.dtype == torch.float64 for t in others[1])
    for block in _blocks(grads, groups, others, _ADAMW_VECTORS_FLOAT64 if wide else _ADAMW_VECTORS):
        (combined,) = _combined(block, weights)
        dots.add(block, block.products(combined).unsqueeze(0))
        sqnorms.add(block, block.products(block.matrix))
        update(block, combined)
    return dots.total, sqnorms.total


@torch.no_grad()
def graddrop(grads: Sequence[Row], others: Sequence[Row], groups: Sequence[int], leak: Tensor, draws: Draws) -> None:
    """The gradients' sums of one sign. others: the result, one row. leak: (1, K) float64. groups: not used."""
    leaks = _on_device(leak, device_of(grads) or leak.device)[0].unbind()
    positions = list(draws.positions)
    for block in _blocks(grads, range(len(groups)), others, _GRADDROP_VECTORS):  # a parameter is a group
        position = positions[block.group]
        positions[block.group] += block.matrix.shape[1]  # its blocks come in order
        kept = torch.stack([leaks[n] for n in block.tasks]).unsqueeze(1)
        _store(_of_one_sign(block, kept, draws, position), block.others(0))


def _of_one_sign(block: _Block, kept: Tensor, draws: Draws, position: int) -> Tensor:
    """(c,) float64, the result of graddrop. kept: (k, 1), the leaks. position: of the block's first element."""
    zero = block.matrix.new_zeros(())
    above = block.matrix > 0  # not for NaN, which therefore gets into `down`
    part = torch.where(above, block.matrix, zero, out=block.scratch)
    up, kept_up = part.sum(0), part.mul_(kept).sum(0)
    part = torch.where(above, zero, block.matrix, out=block.scratch)
    down, kept_down = part.sum(0), part.mul_(kept).sum(0)
    size = up - down
    # P > U, multiplied by the size. All of one sign are kept, even if their sum is so small that it is rounded.
    chosen = (up + down > thresholds(draws, position, len(size), zero.device) * size) | (up + down == size)
    return torch.where(chosen, up.add_(kept_down), down.add_(kept_up)) + (size - size)  # NaN if it is not finite


def thresholds(draws: Draws, position: int, count: int, device: torch.device) -> Tensor:
    """2 U - 1, (count,) float64, for `count` elements that begin at this position."""
    first, last = position // 4, (position + count - 1) // 4
    counters = torch.arange(first, last + 1, dtype=torch.int64, device=device)
    words = torch.stack(_philox(draws.seed, draws.step, counters), 1).flatten()[position % 4 :][:count]
    return (2 * (words >> 8) + 1 - (1 << 24)).double() * 2.0**-24


def _philox(seed: int, step: int, counters: Tensor) -> list[Tensor]:
    """Four words of 32 bits for every counter, as int64: Philox4x32-10, see `cats.ops.graddrop`."""
    word = (1 << 32) - 1
    a, b = counters & word, counters >> 32
    c, d = torch.full_like(a, step & word), torch.full_like(a, step >> 32)
    low, high = seed & word, (seed >> 32) & word
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # beyond 63 bits they wrap around, which keeps all 64 bits
        a, b, c, d = ((q >> 32) & word) ^ b ^ low, q & word, ((p >> 32) & word) ^ d ^ high, p & word
        low, high = (low + 0x9E3779B9) & word, (high + 0xBB67AE85) & word
    return [a, b, c, d]


@torch.no_grad()
def row_dots(x: Tensor, y: Tensor, rows: Tensor, tasks: int) -> Tensor:
    """(tasks,): by task, the sum of the inner products of the rows of x and y, both (R, W). rows: (R,) int64."""
    total = torch.zeros(tasks, dtype=torch.float64, device=x.device)
    numbers = torch.arange(tasks, device=x.device).unsqueeze(1)
    # On a CPU, blocks that stay in a cache: new memory would cost more time than the arithmetic.
    limit, most = (1 << 18, _CPU_COLUMNS) if x.device.type == "cpu" else (_ROWS, _ROWS)
    columns = min(max(1, x.shape[1]), most)
    count = max(1, min(most, limit // max(columns, tasks)))
    for left, right, owners in zip(x.split(count), y.split(count), rows.split(count), strict=True):
        dots = torch.zeros(len(left), dtype=torch.float64, device=x.device)
        for a, b in zip(left.split(columns, 1), right.split(columns, 1), strict=True):
            dots += (a.double() * b).sum(1)
        # Not index_add_: on a GPU the order of its sums changes. Not a product with zeros and ones: NaN would spread.
        total += torch.where(owners == numbers, dots, 0.0).sum(1)
    return total


class _Sums:
    """Statistics by group, (G, *shape) float64, summed over the blocks."""

    def __init__(self, groups: Sequence[int], shape: Sequence[int], device: torch.device | None) -> None:
        self.total = torch.zeros(max(groups) + 1, *shape, dtype=torch.float64, device=device)
        self.groups = self.total.unbind()

    def add(self, block: _Block, values: Tensor) -> None:
        """Add values of shape (..., k): one for each of the block's tasks."""
        total = self.groups[block.group]
        total.add_(_spread(values, block.tasks, total.shape[-1]))


class _Block(NamedTuple):
    """Some elements of some parameters, all with gradients from the same k tasks."""

    tasks: tuple[int, ...]
    group: int
    matrix: Tensor  # (k, c) float64, the gradients; the next block overwrites it
    scratch: Tensor  # of the same size
    pieces: list[list[Tensor]]  # per piece of a parameter: views of the k gradients, then of the other tensors

    def others(self, j: int) -> list[Tensor]:
        """The views of the j-th of the tensors that are not gradients."""
        return [piece[len(self.tasks) + j] for piece in self.pieces]

    def products(self, other: Tensor, first: int = 0) -> Tensor:
        """Inner products of the gradients from index `first` with one vector (c,), or each with its row of (k, c)."""
        return torch.mul(self.matrix[first:], other, out=self.scratch[first:]).sum(1)


def _blocks(
    grads: Sequence[Row], groups: Sequence[int], others: Sequence[Row], vectors: int = _VECTORS
) -> Iterator[_Block]:
    """The parameters in order, as blocks. Consecutive parameters with the same tasks, group and dtype share a block.

    vectors: how many of the length of a block the operator needs, as float64.
    """
    columns: list[tuple[Key, list[Tensor]]] = []
    for i, group in enumerate(groups):
        tasks = tuple(n for n, row in enumerate(grads) if row[i] is not None)
        column = [t for row in itertools.chain(grads, others) if (t := row[i]) is not None]
        if tasks and column[0].numel() > 0:
            columns.append(((tasks, group, column[0].dtype), column))
    if not columns:
        return
    device = columns[0][1][0].device
    limit = max(1, _MEMORY // (3 * len(grads) + vectors))  # the matrix, the scratch, and the gradients side by side
    limit = 1 << limit.bit_length() - 1  # a power of two: then a list of tensors has the blocks of its flat view
    if device.type == "cpu":
        limit = min(limit, _CPU_COLUMNS)
    width = min(limit, sum(column[0].numel() for _, column in columns))
    # One allocation for all blocks: new memory for every block would cost more time than the arithmetic.
    space = torch.empty(2, len(grads) * width, dtype=torch.float64, device=device)

    def block(key: Key, pieces: list[list[Tensor]]) -> _Block:
        count = len(key[0])
        size = count * sum(piece[0].numel() for piece in pieces)
        matrix, scratch = space[:, :size]
        matrix.copy_(torch.cat([piece[j].flatten() for j in range(count) for piece in pieces]))
        return _Block(*key[:2], matrix.view(count, -1), scratch.view(count, -1), pieces)

    pieces: list[list[Tensor]] = []
    filled = 0
    last = columns[0][0]
    for key, column in columns:
        if all(t.is_contiguous() for t in column):
            column = [t.view(-1) for t in column]
        for index in _cuts(column[0].shape, limit):
            piece = [t[index] for t in column] if index else column
            size = piece[0].numel()
            if pieces and (key != last or filled + size > limit):
                yield block(last, pieces)
                pieces, filled = [], 0
            pieces.append(piece)
            filled, last = filled + size, key
    yield block(last, pieces)


def _cuts(shape: torch.Size, limit: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cut a tensor of this shape into boxes of at most `limit` elements, in order. () is all of it."""
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
    """(len(rows), c): the tensors of each row, flattened and concatenated, in the widest dtype among them."""
    return torch.cat([t.flatten() for row in rows for t in row]).view(len(rows), -1)


def _on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A few numbers on the device. The host does not wait for it.

    A CUDA graph cannot copy them from the host, whose memory may be free by then: a kernel writes each number.
    """
    if numbers.is_cpu and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        filled = [torch.full((), x, dtype=numbers.dtype, device=device) for x in numbers.flatten().tolist()]
        return torch.stack(filled).view(numbers.shape)
    return numbers.to(device, non_blocking=True)


# Not a matrix product: in BLAS the order of the sums can depend on the number of threads.
def _combined(block: _Block, weights: Tensor) -> Iterator[Tensor]:
    """R vectors (c,), one at a time: the combinations of the block's gradients for (R, K) weights."""
    columns = weights.unbind(1)
    # Not weights[:, block.tasks]: the index would have to be copied to the device.
    chosen = torch.stack([columns[n] for n in block.tasks]).unsqueeze(-1)
    for column in chosen.unbind(1):  # made when it is asked for: all of them would take R vectors of memory
        yield torch.mul(block.matrix, column, out=block.scratch).sum(0)


def _store(values: Tensor, targets: list[Tensor]) -> None:
    for target, part in zip(targets, values.split([t.numel() for t in targets]), strict=True):
        target.copy_(part.view(target.shape))


def _spread(values: Tensor, tasks: tuple[int, ...], count: int) -> Tensor:
    """(..., K) from (..., k): zero for the tasks that are not in the block."""
    if len(tasks) == count:
        return values
    absent = torch.zeros_like(values[..., 0])
    present = dict(zip(tasks, values.unbind(-1), strict=True))
    return torch.stack([present.get(n, absent) for n in range(count)], -1)
