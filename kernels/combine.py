"""combine and combine_dots. A launch reads the gradients once for up to MAX_COMBINATIONS combinations."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.ops.device_table import DevicePieces

from . import common
from .common import (
    STAGES,
    combination,
    load_tasks,
    load_weights,
    locate,
    offsets,
    other_pointer,
    over_lanes,
    products,
    squares,
    store,
    store_statistic,
    task_pointers,
)

# Every combination has its own accumulators: with more combinations, registers would spill.
MAX_COMBINATIONS = 2


@triton.jit
def _tile(
    first, present, scales, outs, dots, norms, at, length,
    RESULTS: tl.constexpr, STATISTICS: tl.constexpr, MASKED: tl.constexpr,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Writes the combinations of one tile. Returns the accumulators with the tile's statistics added."""
    grads = load_tasks(first, present, at, length, MASKED, COMPUTE)
    sums = ()
    for r in tl.static_range(RESULTS):
        combined = combination(grads, scales[r])
        store(outs[r], at, length, combined, MASKED, DTYPE)
        if STATISTICS:
            sums += (dots[r] + products(grads, combined),)
    if STATISTICS:
        norms += squares(grads)
    return sums, norms


@triton.jit(do_not_specialize=["base", "count"])
def combine_kernel(
    table, chunks, base, count, weights, partials,
    RESULTS: tl.constexpr, STATISTICS: tl.constexpr,
    TASKS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, RUN: tl.constexpr,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One chunk: RESULTS combinations. If STATISTICS, their dots and the squared norms go to partials[:, chunk]."""
    index = tl.program_id(0) + base
    row, start, length = locate(chunks, index)
    columns: tl.constexpr = TASKS + RESULTS
    first, present = task_pointers(table, row, start, columns, TASKS, ROWS, DTYPE, ALIGNED)
    zeros = tl.zeros([ROWS, LANES], COMPUTE)
    scales = ()
    outs = ()
    dots = ()
    dot_sums = ()
    for r in tl.static_range(RESULTS):
        scales += (load_weights(weights + r * TASKS, present, TASKS, ROWS, COMPUTE),)
        outs += (other_pointer(table, row, start, columns, TASKS + r, DTYPE, ALIGNED),)
        if STATISTICS:
            dots += (zeros,)
            dot_sums += (tl.zeros([ROWS], tl.float64),)
    norms = zeros
    norm_sums = tl.zeros([ROWS], tl.float64)

    size: tl.constexpr = LANES * WIDTH
    full = length // size
    inner = offsets(LANES, WIDTH)
    for run in range(0, full, RUN):
        for tile in tl.range(run, tl.minimum(run + RUN, full), num_stages=STAGES):
            at = tl.cast(tile, tl.int64) * size + inner
            dots, norms = _tile(
                first, present, scales, outs, dots, norms, at, length, RESULTS, STATISTICS, False, DTYPE, COMPUTE
            )
        if STATISTICS:
            dots, dot_sums = _flush(dots, dot_sums, RESULTS)
            norm_sums += over_lanes(norms)
            norms = zeros
    for rest in range(full * size, length, LANES):
        at = tl.cast(rest, tl.int64) + offsets(LANES, 1)
        dots, norms = _tile(
            first, present, scales, outs, dots, norms, at, length, RESULTS, STATISTICS, True, DTYPE, COMPUTE
        )
    if STATISTICS:
        dots, dot_sums = _flush(dots, dot_sums, RESULTS)
        norm_sums += over_lanes(norms)
        for r in tl.static_range(RESULTS):
            store_statistic(partials, r, count, index, dot_sums[r], TASKS, ROWS)
        store_statistic(partials, RESULTS, count, index, norm_sums, TASKS, ROWS)


@triton.jit
def _flush(values, sums, RESULTS: tl.constexpr):
    """Returns new accumulators (zeros), and the float64 sums with the old accumulators added."""
    zeros = ()
    totals = ()
    for r in tl.static_range(RESULTS):
        totals += (sums[r] + over_lanes(values[r]),)
        zeros += (tl.zeros_like(values[r]),)
    return zeros, totals


def options(
    tasks: int, dtype: torch.dtype, aligned: bool, results: int, statistics: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of combine_kernel and the launch options."""
    constants, launch = common.constants(tasks, [dtype], aligned)
    if results > 1:
        launch["maxnreg"] = 255
    return {"RESULTS": results, "STATISTICS": statistics, **constants}, launch


def combine(pieces: DevicePieces, weights: Tensor) -> None:
    """Writes the combinations for (R, K) weights, with R <= MAX_COMBINATIONS."""
    _launch(pieces, common.to_device(weights, pieces.device), None)


def combine_dots(pieces: DevicePieces, weights: Tensor) -> tuple[Tensor, Tensor]:
    """`combine`; returns dots (G, R, K) with the combinations before rounding, and squared norms (G, K), float64."""
    weights = common.to_device(weights, pieces.device)
    results, tasks = weights.shape
    partials = weights.new_empty((results + 1) * tasks, pieces.geometry.chunk_count)
    _launch(pieces, weights, partials)
    dots, sqnorms = common.reduce(partials, pieces.geometry, pieces.groups, results * tasks)
    return dots.view(-1, results, tasks), sqnorms


def _launch(pieces: DevicePieces, weights: Tensor, partials: Tensor | None) -> None:
    table, geometry, device, tasks, *_ = pieces
    for dtypes, aligned, base, chunks in geometry.launches:
        constants, launch = options(tasks, dtypes[0], aligned, len(weights), partials is not None)
        arguments = (table, geometry.chunks, base, geometry.chunk_count, weights, partials)
        common.launch(combine_kernel, (chunks,), device, *arguments, **constants, **launch)
