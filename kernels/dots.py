"""dots: the gradients' inner products with one direction, in one read of both.

The tile is that of combine (common.py), but nothing is added between the groups of tasks: no thread waits for another.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    flush,
    load,
    load_tasks,
    locate,
    offsets,
    other_pointer,
    store_sums,
    task_pointers,
    zeros,
)


@triton.jit(do_not_specialize=["base", "count"])
def dots_kernel(
    table, chunks, base, count, partials, DIRECTION: tl.constexpr,
    TASKS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, SLOTS: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, RUN: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One chunk: the dots with a direction of dtype DIRECTION, which go to partials[:, chunk]."""
    index = tl.program_id(0) + base
    row, start, length = locate(chunks, index)
    columns: tl.constexpr = TASKS + 1
    direction = other_pointer(table, row, start, columns, TASKS, DIRECTION, ALIGNED)
    size: tl.constexpr = LANES * WIDTH
    full = length // size
    sums = tl.zeros([GROUPS, SLOTS], tl.float64)
    for run in range(0, tl.cdiv(length, size), RUN):
        firsts, present = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
        lanes = zeros([GROUPS, LANES], EACH, COMPUTE)
        for tile in tl.range(run, tl.minimum(run + RUN, full), num_stages=STAGES):
            begin = tl.cast(tile, tl.int64) * size
            grads = load_tasks(firsts, present, begin, length, EACH, LANES, WIDTH, False, COMPUTE)
            vector = load(direction, begin + offsets(LANES, WIDTH), length, False, COMPUTE)
            lanes = add_products(lanes, grads, vector, EACH)
        for rest in range(full * size, tl.minimum(length, (run + RUN) * size), LANES):
            again = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
            begin = tl.cast(rest, tl.int64)
            grads = load_tasks(again[0], again[1], begin, length, EACH, LANES, 1, True, COMPUTE)
            vector = load(direction, begin + offsets(LANES, 1), length, True, COMPUTE)
            lanes = add_products(lanes, grads, vector, EACH)
        again = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
        sums = flush(sums, lanes, again[1], EACH)
    store_sums(partials, 0, count, index, sums, TASKS, EACH)


def options(tasks: int, dtypes: Sequence[torch.dtype], aligned: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of dots_kernel, for dtypes of gradients and direction, and the launch options."""
    constants, launch = common.constants(tasks, dtypes, aligned)
    return {"DIRECTION": common.TYPES[dtypes[1]], **constants}, launch


def dots(pieces: DevicePieces) -> tuple[Tensor]:
    """(G, K) float64: the gradients' inner products with the direction."""
    table, geometry, device, tasks, groups, _ = pieces
    partials = torch.empty(tasks, geometry.chunk_count, dtype=torch.float64, device=device)
    for dtypes, aligned, base, chunks in geometry.launches:
        constants, launch = options(tasks, dtypes, aligned)
        arguments = (table, geometry.chunks, base, geometry.chunk_count, partials)
        common.launch(dots_kernel, (chunks,), device, *arguments, **constants, **launch)
    result, _ = common.reduce(partials, geometry, groups, tasks)
    return (result,)
