"""combine and combine_dots. A launch reads the gradients once for up to MAX_COMBINATIONS combinations.

The vectors of a tile stay in registers from the combination to the products with it. The arithmetic of a combination
does not depend on what else is computed, so all operators write the same bits. common.py has the shape of a tile.
"""

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
    add_products,
    add_squares,
    combination,
    flush,
    load_tasks,
    load_weights,
    locate,
    offsets,
    other_pointer,
    store,
    store_sums,
    task_pointers,
    without_padding,
    zeros,
)

# Every combination has its own accumulators: with more combinations, registers would spill.
MAX_COMBINATIONS = 2


@triton.jit
def _tile(
    firsts, present, scales, outs, dots, norms, begin, length,
    RESULTS: tl.constexpr, STATISTICS: tl.constexpr, EACH: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Writes the combinations of one tile. Returns the accumulators with the tile's statistics added."""
    grads = load_tasks(firsts, present, begin, length, EACH, LANES, WIDTH, MASKED, COMPUTE)
    sums = ()
    for r in tl.static_range(RESULTS):
        combined = combination(grads, scales[r], EACH)
        store(outs[r], begin + offsets(LANES, WIDTH), length, combined, MASKED, DTYPE)
        if STATISTICS:
            if MASKED:
                combined = without_padding(combined, begin + offsets(LANES, WIDTH), length)
            sums += (add_products(dots[r], grads, combined, EACH),)
    if STATISTICS:
        norms = add_squares(norms, grads, EACH)
    return sums, norms


@triton.jit(do_not_specialize=["base", "count"])
def combine_kernel(
    table, chunks, base, count, weights, partials,
    RESULTS: tl.constexpr, STATISTICS: tl.constexpr,
    TASKS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, SLOTS: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, RUN: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One chunk: RESULTS combinations. If STATISTICS, their dots and the squared norms go to partials[:, chunk]."""
    index = tl.program_id(0) + base
    row, start, length = locate(chunks, index)
    columns: tl.constexpr = TASKS + RESULTS
    _, present = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
    scales = ()
    outs = ()
    for r in tl.static_range(RESULTS):
        scales += (load_weights(weights + r * TASKS, present, TASKS, GROUPS, EACH, COMPUTE),)
        outs += (other_pointer(table, row, start, columns, TASKS + r, DTYPE, ALIGNED),)
    sums = ()
    for _ in tl.static_range(RESULTS + 1 if STATISTICS else 0):
        sums += (tl.zeros([GROUPS, SLOTS], tl.float64),)

    size: tl.constexpr = LANES * WIDTH
    full = length // size
    for run in range(0, tl.cdiv(length, size), RUN):
        firsts, present = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
        dots = ()
        norms = ()
        if STATISTICS:
            for _ in tl.static_range(RESULTS):
                dots += (zeros([GROUPS, LANES], EACH, COMPUTE),)
            norms = zeros([GROUPS, LANES], EACH, COMPUTE)
        for tile in tl.range(run, tl.minimum(run + RUN, full), num_stages=STAGES):
            begin = tl.cast(tile, tl.int64) * size
            dots, norms = _tile(
                firsts, present, scales, outs, dots, norms, begin, length,
                RESULTS, STATISTICS, EACH, LANES, WIDTH, False, DTYPE, COMPUTE,
            )  # fmt: skip
        for rest in range(full * size, tl.minimum(length, (run + RUN) * size), LANES):
            again = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
            dots, norms = _tile(
                again[0], again[1], scales, outs, dots, norms, tl.cast(rest, tl.int64), length,
                RESULTS, STATISTICS, EACH, LANES, 1, True, DTYPE, COMPUTE,
            )  # fmt: skip
        if STATISTICS:
            again = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
            totals = ()
            for r in tl.static_range(RESULTS):
                totals += (flush(sums[r], dots[r], again[1], EACH),)
            totals += (flush(sums[RESULTS], norms, again[1], EACH),)
            sums = totals
    if STATISTICS:
        for r in tl.static_range(RESULTS + 1):
            store_sums(partials, r, count, index, sums[r], TASKS, EACH)


def options(
    tasks: int, dtype: torch.dtype, aligned: bool, results: int, statistics: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of combine_kernel and the launch options."""
    constants, launch = common.constants(tasks, [dtype], aligned, busy=results > 1)
    if results > 1:
        launch["maxnreg"] = common.registers(launch["num_warps"], most=True)
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
