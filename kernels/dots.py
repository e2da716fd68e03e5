"""dots: the gradients' inner products with one direction, in one read of both."""

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
    load,
    load_tasks,
    locate,
    offsets,
    other_pointer,
    over_lanes,
    products,
    store_statistic,
    task_pointers,
)


@triton.jit(do_not_specialize=["base", "count"])
def dots_kernel(
    table, chunks, base, count, partials, DIRECTION: tl.constexpr,
    TASKS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, RUN: tl.constexpr,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One chunk: the dots with a direction of dtype DIRECTION, which go to partials[:, chunk]."""
    index = tl.program_id(0) + base
    row, start, length = locate(chunks, index)
    columns: tl.constexpr = TASKS + 1
    first, present = task_pointers(table, row, start, columns, TASKS, ROWS, DTYPE, ALIGNED)
    direction = other_pointer(table, row, start, columns, TASKS, DIRECTION, ALIGNED)
    size: tl.constexpr = LANES * WIDTH
    full = length // size
    inner = offsets(LANES, WIDTH)
    sums = tl.zeros([ROWS], tl.float64)
    for run in range(0, full, RUN):
        lanes = tl.zeros([ROWS, LANES], COMPUTE)
        for tile in tl.range(run, tl.minimum(run + RUN, full), num_stages=STAGES):
            at = tl.cast(tile, tl.int64) * size + inner
            vector = load(direction, at, length, False, COMPUTE)
            lanes += products(load_tasks(first, present, at, length, False, COMPUTE), vector)
        sums += over_lanes(lanes)
    lanes = tl.zeros([ROWS, LANES], COMPUTE)
    for rest in range(full * size, length, LANES):
        at = tl.cast(rest, tl.int64) + offsets(LANES, 1)
        vector = load(direction, at, length, True, COMPUTE)
        lanes += products(load_tasks(first, present, at, length, True, COMPUTE), vector)
    store_statistic(partials, 0, count, index, sums + over_lanes(lanes), TASKS, ROWS)


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
