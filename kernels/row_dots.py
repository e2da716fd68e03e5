"""row_dots: the inner products of the rows of two matrices, added by task, in one read of both."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.ops.layout import VECTOR, RowPieces

from . import common
from .common import STAGES, load_tasks, offsets, over_lanes

VECTORS = 4  # that a thread loads of each matrix for a tile
PROGRAMS = 1024  # enough for a large GPU; with more rows, a program takes several tiles of rows


@triton.jit
def row_pointers(matrix, stride, rows, WIDTH: tl.constexpr):
    """Addresses of rows, whose strides are multiples of WIDTH elements."""
    return matrix + rows * tl.multiple_of(tl.cast(stride, tl.int64), WIDTH)


@triton.jit(do_not_specialize=["x_stride", "y_stride", "count", "width", "tasks", "repeat"])
def row_dots_kernel(
    x, y, x_stride, y_stride, owners, count, width, tasks, repeat, partials,
    TASKS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, RUN: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """`repeat` times ROWS rows: their sums by task, which go to partials[:, program]."""
    program = tl.program_id(0)
    size: tl.constexpr = LANES * WIDTH
    full = width // size
    inner = offsets(LANES, WIDTH)
    numbers = tl.arange(0, TASKS)
    totals = tl.zeros([TASKS], tl.float64)
    for block in range(0, repeat):
        first = (tl.cast(program, tl.int64) * repeat + block) * ROWS
        rows = first + tl.arange(0, ROWS)
        own = tl.load(owners + rows, mask=rows < count, other=-1)
        wanted = (own >= 0) & (own < tasks)  # the others are not read
        left, right = row_pointers(x, x_stride, rows, WIDTH), row_pointers(y, y_stride, rows, WIDTH)
        sums = tl.zeros([ROWS], tl.float64)
        for run in range(0, full, RUN):
            lanes = tl.zeros([ROWS, LANES], COMPUTE)
            for tile in tl.range(run, tl.minimum(run + RUN, full), num_stages=STAGES):
                at = tl.cast(tile, tl.int64) * size + inner
                a = load_tasks(left, wanted, at, width, False, COMPUTE)
                lanes += tl.sum(a * load_tasks(right, wanted, at, width, False, COMPUTE), axis=2)
            sums += over_lanes(lanes)
        lanes = tl.zeros([ROWS, LANES], COMPUTE)
        for rest in range(full * size, width, LANES):
            at = tl.cast(rest, tl.int64) + offsets(LANES, 1)
            a = load_tasks(left, wanted, at, width, True, COMPUTE)
            lanes += tl.sum(a * load_tasks(right, wanted, at, width, True, COMPUTE), axis=2)
        sums += over_lanes(lanes)
        totals += tl.sum(tl.where(own[None, :] == numbers[:, None], sums[None, :], 0.0), axis=1)
    at = tl.cast(numbers, tl.int64) * tl.num_programs(0) + program
    tl.store(partials + at, totals, mask=numbers < tasks)


def options(
    width: int, tasks: int, dtypes: tuple[torch.dtype, torch.dtype], aligned: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of row_dots_kernel and the launch options. Narrow matrices have tiles of many rows."""
    vector = VECTOR // dtypes[0].itemsize if aligned else 1
    threads = 32 * common.WARPS
    lanes = min(threads, 1 << max(0, (width // vector).bit_length() - 1))
    wide = torch.float64 in dtypes
    return {
        "TASKS": triton.next_power_of_2(tasks),
        "ROWS": min(VECTORS * threads // lanes, 32),  # with more, the sums by task would not fit into registers
        "LANES": lanes,
        "WIDTH": vector,
        "RUN": common.RUN,
        "COMPUTE": tl.float64 if wide else tl.float32,
    }, {"num_warps": common.WARPS, "maxnreg": 255 if wide else common.REGISTERS}


def row_dots(pieces: RowPieces) -> Tensor:
    """(K,) float64: the inner products of the rows of two matrices, added by task."""
    x, y, rows, tasks = pieces
    count, width = x.shape
    constants, launch = options(width, tasks, (x.dtype, y.dtype), pieces.aligned)
    repeat = max(1, count // (constants["ROWS"] * PROGRAMS))
    programs = triton.cdiv(count, constants["ROWS"] * repeat)
    partials = torch.empty(tasks, programs, dtype=torch.float64, device=x.device)
    arguments = (x, y, x.stride(0), y.stride(0), rows, count, width, tasks, repeat, partials)
    common.launch(row_dots_kernel, (programs,), x.device, *arguments, **constants, **launch)
    return partials.sum(1)  # in an order that depends on the shape alone
