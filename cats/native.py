"""The operators in C++ for the CPU (csrc/): one pass over memory, AVX-512, AVX2 or what else the processor has.

The functions are those of `cats.reference`, for tensors on the CPU. Sums have the same bits on every run and for every
number of threads, and the bounds of `cats.ops` hold for gradients of any magnitude: a block whose squares leave
float32's range is summed again in float64. Last bits depend on the instruction set. The threads are torch's own, as
many as torch.get_num_threads(); a forked process runs on one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    works, odd = _works(grads, out, [0] * len(grads[0]))
    for work, _, _ in works:
        _native.combine(work, len(weights), weights.data_ptr(), 0, 0)
    if odd:
        reference.combine(table.select(grads, odd), weights, table.select(out, odd))


def combine_dots(
    grads: Sequence[Row], weights: Tensor, out: Sequence[Row], groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`combine`, and dots (G, R, K) with the combinations before rounding, and squared norms (G, K), both float64."""
    weights = weights.contiguous()
    dots, sqnorms = _statistics(groups, weights)
    works, odd = _works(grads, out, groups)
    for work, _, _ in works:
        _native.combine(work, len(weights), weights.data_ptr(), dots.data_ptr(), sqnorms.data_ptr())
    if odd:
        rest = [table.select(rows, odd) for rows in (grads, out)]
        found = reference.combine_dots(rest[0], weights, rest[1], [groups[i] for i in odd])
        table.add_statistics((dots, sqnorms), found)
    return dots, sqnorms


def dots(grads: Sequence[Row], direction: Row, groups: Sequence[int]) -> Tensor:
    """(G, K) float64: <grads[n], direction>; a None in the direction is zero."""
    result = torch.zeros(max(groups) + 1, len(grads), dtype=torch.float64, device="cpu")
    works, odd = _works(grads, [direction], groups)
    for work, dtypes, params in works:
        wide = dtypes[1] == (torch.float64 if dtypes[0] == torch.float64 else torch.float32)
        if wide or dtypes[1] == dtypes[0]:
            _native.dots(work, wide, result.data_ptr())
        else:
            odd = [*odd, *params]
    if odd:
        rest = [table.select(rows, odd) for rows in (grads, [direction])]
        table.add_statistics((result,), (reference.dots(rest[0], rest[1][0], [groups[i] for i in odd]),))
    return result


def gram(grads: Sequence[Row], groups: Sequence[int]) -> Tensor:
    """(G, K, K) float64, symmetric bit for bit."""
    result = torch.zeros(max(groups) + 1, len(grads), len(grads), dtype=torch.float64, device="cpu")
    works, odd = _works(grads, [], groups)
    for work, _, _ in works:
        _native.gram(work, result.data_ptr())
    if odd:
        found = reference.gram(table.select(grads, odd), [groups[i] for i in odd])
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
    works, odd = _works(grads, [params, exp_avgs, exp_avg_sqs], groups)
    for work, _, _ in works:
        _native.combine_adamw(work, weights.data_ptr(), *options, dots.data_ptr(), sqnorms.data_ptr())
    if odd:
        odd_params, odd_avgs, odd_sqs = table.select([params, exp_avgs, exp_avg_sqs], odd)
        found = reference.combine_adamw_(
            odd_params,
            table.select(grads, odd),
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
            [groups[i] for i in odd],
        )
        table.add_statistics((dots, sqnorms), found)
    return dots, sqnorms


def _statistics(groups: Sequence[int], weights: Tensor) -> tuple[Tensor, Tensor]:
    count = max(groups) + 1
    dots = torch.zeros(count, *weights.shape, dtype=torch.float64, device="cpu")
    return dots, torch.zeros(count, weights.shape[1], dtype=torch.float64, device="cpu")


def _works(
    grads: Sequence[Row], others: Sequence[Row], groups: Sequence[int]
) -> tuple[list[tuple[Any, tuple[torch.dtype, ...], list[int]]], list[int]]:
    """The parameters as the compiled kernels take them, and those that they do not take.

    For every combination of dtypes (of the gradients, then of each of the others): its Work, it, and its parameters.
    """
    threads = torch.get_num_threads()
    views = getattr(grads, "views", None)
    found = _native.works(table.lists(grads), table.lists(others), list(groups), threads, views)
    if found is not None:
        return found
    flat = table.flatten(grads, others)
    width = len(grads) + len(others)
    works = []
    for dtypes, rows in flat.by_dtypes().items():
        params = [flat.params[row] for row in rows]
        work = _native.Work(
            b"".join(flat.pointers[row * width : (row + 1) * width].tobytes() for row in rows),
            [flat.numels[row] for row in rows],
            [groups[i] for i in params],
            len(grads),
            len(others),
            TYPES[dtypes[0]],
            threads,
        )
        works.append((work, dtypes, params))
    return works, flat.odd


def instructions() -> str:
    """The instruction set that the kernels use on this processor."""
    return str(_native.instructions().name)


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
