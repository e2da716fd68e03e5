"""The operators in C++ for the CPU (csrc/): one pass over memory, AVX-512, AVX2 or what else the processor has.

The functions are those of `cats.reference`, for tensors on the CPU. Sums have the same bits on every run and for every
number of threads, and the bounds of `cats.ops` hold for gradients of any magnitude: a block whose squares leave
float32's range is summed again in float64. Last bits depend on the instruction set. The threads are torch's own, as
many as torch.get_num_threads(); a forked process runs on one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import reference, table

try:
    from . import _native
except ImportError as error:
    try:
        from . import _build
    except ImportError:
        raise ImportError(f"cats was not installed with its compiled module ({error})") from None
    raise ImportError(_build.NATIVE or str(error)) from None

DEVICES = ("cpu",)
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # as `Type` in csrc/work.h

Row = Sequence[Tensor | None]


def combine(grads: Sequence[Row], weights: Tensor, out: Sequence[Row]) -> None:
    """out[r][i] = sum_n weights[r, n] * grads[n][i]."""
    weights = weights.contiguous()
    flat = table.flatten(grads, out)
    for work in _works(flat, len(grads), [0] * len(grads[0])):
        _native.combine(work, len(weights), weights.data_ptr(), 0, 0)
    if flat.odd:
        reference.combine(table.select(grads, flat.odd), weights, table.select(out, flat.odd))


def combine_dots(
    grads: Sequence[Row], weights: Tensor, out: Sequence[Row], groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`combine`, and dots (G, R, K) with the combinations before rounding, and squared norms (G, K), both float64."""
    weights = weights.contiguous()
    dots, sqnorms = _statistics(groups, weights)
    flat = table.flatten(grads, out)
    for work in _works(flat, len(grads), groups):
        _native.combine(work, len(weights), weights.data_ptr(), dots.data_ptr(), sqnorms.data_ptr())
    if flat.odd:
        rest = [table.select(rows, flat.odd) for rows in (grads, out)]
        found = reference.combine_dots(rest[0], weights, rest[1], [groups[i] for i in flat.odd])
        table.add_statistics((dots, sqnorms), found)
    return dots, sqnorms


def dots(grads: Sequence[Row], direction: Row, groups: Sequence[int]) -> Tensor:
    """(G, K) float64: <grads[n], direction>; a None in the direction is zero."""
    result = torch.zeros(max(groups) + 1, len(grads), dtype=torch.float64, device="cpu")
    flat = table.flatten(grads, [direction])
    odd = list(flat.odd)
    for dtypes, rows in flat.by_dtypes().items():
        wide = dtypes[1] == (torch.float64 if dtypes[0] == torch.float64 else torch.float32)
        if wide or dtypes[1] == dtypes[0]:
            _native.dots(_work(flat, rows, len(grads), groups), wide, result.data_ptr())
        else:
            odd += [flat.params[row] for row in rows]
    if odd:
        rest = [table.select(rows, odd) for rows in (grads, [direction])]
        table.add_statistics((result,), (reference.dots(rest[0], rest[1][0], [groups[i] for i in odd]),))
    return result


def gram(grads: Sequence[Row], groups: Sequence[int]) -> Tensor:
    """(G, K, K) float64, symmetric bit for bit."""
    result = torch.zeros(max(groups) + 1, len(grads), len(grads), dtype=torch.float64, device="cpu")
    flat = table.flatten(grads)
    for work in _works(flat, len(grads), groups):
        _native.gram(work, result.data_ptr())
    if flat.odd:
        found = reference.gram(table.select(grads, flat.odd), [groups[i] for i in flat.odd])
        table.add_statistics((result,), (found,))
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
    """AdamW on the combination of one row of weights, in the moments' dtype, rounded once into params.

    Returns dots (G, 1, K) and squared norms (G, K), float64, of the gradients as given.
    """
    weights = weights.contiguous()
    dots, sqnorms = _statistics(groups, weights)
    count, rate = step.item(), lr.item()
    options = (
        rate / (1 - beta1**count),
        1 - rate * weight_decay,
        beta1,
        beta2,
        eps,
        (1 - beta2**count) ** 0.5,
        1.0 if grad_scale is None else grad_scale.item(),
        found_inf is not None and found_inf.item() != 0,
    )
    flat = table.flatten(grads, [params, exp_avgs, exp_avg_sqs])
    for work in _works(flat, len(grads), groups):
        _native.combine_adamw(work, weights.data_ptr(), *options, dots.data_ptr(), sqnorms.data_ptr())
    if flat.odd:
        odd_params, odd_avgs, odd_sqs = table.select([params, exp_avgs, exp_avg_sqs], flat.odd)
        found = reference.combine_adamw_(
            odd_params,
            table.select(grads, flat.odd),
            weights,
            odd_avgs,
            odd_sqs,
            step,
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            found_inf,
            grad_scale,
            [groups[i] for i in flat.odd],
        )
        table.add_statistics((dots, sqnorms), found)
    return dots, sqnorms


def _statistics(groups: Sequence[int], weights: Tensor) -> tuple[Tensor, Tensor]:
    count = max(groups) + 1
    dots = torch.zeros(count, *weights.shape, dtype=torch.float64, device="cpu")
    return dots, torch.zeros(count, weights.shape[1], dtype=torch.float64, device="cpu")


def _works(flat: table.Flat, tasks: int, groups: Sequence[int]) -> Iterator[Any]:
    """The parameters as the compiled kernels take them: those of one combination of dtypes at a time."""
    for rows in flat.by_dtypes().values():
        yield _work(flat, rows, tasks, groups)


def _work(flat: table.Flat, rows: Sequence[int], tasks: int, groups: Sequence[int]) -> Any:
    width = len(flat.pointers) // len(flat.params)
    whole = len(rows) == len(flat.params)
    return _native.Work(
        flat.pointers if whole else b"".join(flat.pointers[row * width : (row + 1) * width].tobytes() for row in rows),
        flat.numels if whole else [flat.numels[row] for row in rows],
        [groups[flat.params[row]] for row in rows],
        tasks,
        width - tasks,
        TYPES[flat.dtypes[rows[0]][0]],
        torch.get_num_threads(),
    )


def instructions() -> str:
    """The instruction set that the kernels use on this processor."""
    return _native.instructions()


def _openmp() -> str | None:
    """The file of the OpenMP runtime that torch has loaded, so that its threads can be used and no others started."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = sorted(set(re.findall(r"(/\S*/lib(?:gomp|iomp5|omp)[-.]\S*)$", maps, re.MULTILINE)))
    ours = [path for path in found if "/torch" in path]
    return next((path for path in [*ours, *found] if _native.use_openmp(path)), None)


openmp = _openmp()
