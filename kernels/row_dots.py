"""row_dots: the inner products of the rows of two matrices, added by task, in one read of both.

A warp reads whole rows, at most VECTORS vectors of each matrix and lane at a time, so that a row's sum needs no other
warp. Long rows are read in a pipeline, as the chunks of other kernels. Of short rows, a program would fill and drain
the pipeline for each tile; they are loaded directly into registers, which leaves space for five programs on a
multiprocessor, and the owners of the next rows are loaded meanwhile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.ops.layout import VECTOR, RowPieces

from . import common
from .common import STAGES, load_rows, over_lanes

VECTORS = 4  # that a thread loads of each matrix for a tile
PROGRAMS = 1024  # enough for a large GPU; with more rows, a program takes several tiles of rows
PIPELINE = 4  # a row of at least so many steps is read in a pipeline; a shorter one would mostly fill and drain it
MOST_ROWS = 32  # in a tile; with more, the sums by task would not fit into registers


@triton.jit
def row_pointers(matrix, stride, rows, WIDTH: tl.constexpr):
    """Addresses of rows, whose strides are multiples of WIDTH elements."""
    return matrix + rows * tl.multiple_of(tl.cast(stride, tl.int64), WIDTH)


@triton.jit
def _add_products(
    left, right, wanted, begin, width, lanes,
    PARTS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Returns the (ROWS, LANES) accumulators with the products of PARTS parts added. All loads come first."""
    a = ()
    b = ()
    for part in tl.static_range(PARTS):
        at = begin + part * LANES * WIDTH
        a += (load_rows(left, wanted, at, width, LANES, WIDTH, MASKED, COMPUTE),)
        b += (load_rows(right, wanted, at, width, LANES, WIDTH, MASKED, COMPUTE),)
    for part in tl.static_range(PARTS):
        lanes += tl.sum(a[part] * b[part], axis=2)
    return lanes


@triton.jit(do_not_specialize=["x_stride", "y_stride", "count", "width", "tasks", "repeat"])
def row_dots_kernel(
    x, y, x_stride, y_stride, owners, count, width, tasks, repeat, partials,
    TASKS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
    RUN: tl.constexpr, STEPS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """`repeat` times ROWS rows: their sums by task, which go to partials[:, program].

    A row is read in steps of PARTS parts of LANES * WIDTH elements, then in single parts, then the rest.
    """
    program = tl.program_id(0)
    part: tl.constexpr = LANES * WIDTH
    step: tl.constexpr = PARTS * part
    steps = width // step * step
    whole = width // part * part
    numbers = tl.arange(0, TASKS)
    totals = tl.zeros([TASKS], tl.float64)
    rows = tl.cast(program, tl.int64) * repeat * ROWS + tl.arange(0, ROWS)
    own = tl.load(owners + rows, mask=rows < count, other=-1)
    for block in range(0, repeat):
        # Loaded a tile ahead, because the loads of the next tile wait for it.
        following = tl.load(owners + rows + ROWS, mask=rows + ROWS < tl.where(block + 1 < repeat, count, 0), other=-1)
        wanted = (own >= 0) & (own < tasks)  # the others are not read
        left, right = row_pointers(x, x_stride, rows, WIDTH), row_pointers(y, y_stride, rows, WIDTH)
        sums = tl.zeros([ROWS], tl.float64)
        for run in range(0, width, RUN * step):
            end = run + RUN * step
            lanes = tl.zeros([ROWS, LANES], COMPUTE)
            for begin in tl.range(run, tl.minimum(steps, end), step, num_stages=STEPS):
                at = tl.cast(begin, tl.int64)
                lanes = _add_products(left, right, wanted, at, width, lanes, PARTS, LANES, WIDTH, False, COMPUTE)
            # What is left belongs to the last run.
            for begin in range(steps, tl.minimum(whole, end), part):
                at = tl.cast(begin, tl.int64)
                lanes = _add_products(left, right, wanted, at, width, lanes, 1, LANES, WIDTH, False, COMPUTE)
            for begin in range(whole, tl.minimum(width, end), LANES):
                at = tl.cast(begin, tl.int64)
                lanes = _add_products(left, right, wanted, at, width, lanes, 1, LANES, 1, True, COMPUTE)
            sums += over_lanes(lanes)
        totals += tl.sum(tl.where(own[None, :] == numbers[:, None], sums[None, :], 0.0), axis=1)
        own = following
        rows += ROWS
    at = tl.cast(numbers, tl.int64) * tl.num_programs(0) + program
    tl.store(partials + at, totals, mask=numbers < tasks)


def options(
    width: int, tasks: int, dtypes: tuple[torch.dtype, torch.dtype], aligned: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of row_dots_kernel and the launch options."""
    vector = VECTOR // dtypes[0].itemsize if aligned else 1
    vectors = max(1, width // vector)
    lanes = min(32, 1 << (vectors.bit_length() - 1))
    parts = min(VECTORS, 1 << ((vectors // lanes).bit_length() - 1))
    wide = torch.float64 in dtypes
    return {
        "TASKS": triton.next_power_of_2(tasks),
        "ROWS": min(VECTORS * 32 * common.WARPS // (lanes * parts), MOST_ROWS),
        "PARTS": parts,
        "LANES": lanes,
        "WIDTH": vector,
        "RUN": common.RUN // parts,
        "STEPS": STAGES.value if vectors >= PIPELINE * lanes * parts else 1,
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
