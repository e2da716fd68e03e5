"""gram: all inner products between the tasks' gradients, in one read of them.

Up to UNROLLED tasks: one accumulator per pair, with multiply-adds. More tasks: products of (ROWS, LENGTH) tiles on the
matrix units. These are exact for bfloat16 and float16. For float32 they are three TF32 products, which leave out only
the product of the low halves, 2^-22 of the result.

Up to BLOCK tasks, a program has one block of sums. More tasks are two blocks, so there are three products: inside each
and of the pair. 16-bit gradients are read once for all three. For float32, three launches compute one product each:
three blocks of sums and the halves of all operands would leave registers for one program on a multiprocessor, which
waits at 27 barriers for each tile of 16 elements. The second block has no more rows than it needs.

Matrix units truncate their sums, and a lane's float32 sum must be short so that the error stays below 2e-6 |g_i| |g_j|.
So the product of a tile is at most 8 steps of the matrix unit. A lane adds TILES such products, rounded to the nearest;
then the sum is added to a float64 sum. Terms of one sign are the worst case: with u = 2^-24 the error is at most 4u
(a product from three) + 8u (8 steps) + 16.5u (32 partial sums), in all 1.7e-6.

There is no kernel for float64: a matrix of float64 sums does not fit into a program's registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.ops.device_table import DevicePieces

from . import common
from .common import INTERPRETED, STAGES, locate, offsets, pointers, widen

UNROLLED = 8
BLOCK = 64  # at most this many tasks in a block; more tasks form two blocks, with products inside and of the pair
TILES = 32  # products added in float32
LENGTH = 64

# For more than UNROLLED tasks, partial sums are matrices. This limits their memory and the time to add them.
MAX_BYTES = 48 << 20
MAX_SLOTS = 1 << 12


# Few tasks


@triton.jit
def _add_pairs(firsts, present, lanes, at, length, TASKS: tl.constexpr, MASKED: tl.constexpr):
    """Returns the (LANES,) accumulators of all pairs i <= j, with the products of a tile added."""
    grads = ()
    for i in tl.static_range(TASKS):
        mask = present[i] & (at < length) if MASKED else present[i] & (at >= 0)
        grads += (widen(tl.load(firsts[i] + at, mask=mask, other=0.0), tl.float32),)
    added = ()
    for i in tl.static_range(TASKS):
        for j in tl.static_range(i, TASKS):
            added += (lanes[len(added)] + tl.sum(grads[i] * grads[j], axis=1),)
    return added


@triton.jit
def _flush(lanes, sums, present, TASKS: tl.constexpr, SQUARE: tl.constexpr):
    """Returns the float64 sums of all pairs, (SQUARE,), with these accumulators added.

    Not those of tasks without a gradient: they are products of the zeros in its place, which are nan with infinities.
    """
    at = tl.arange(0, SQUARE)
    for i in tl.static_range(TASKS):
        for j in tl.static_range(i, TASKS):
            total = tl.sum(lanes[i * TASKS - i * (i - 1) // 2 + j - i].to(tl.float64), axis=0)
            pair = (at == i * TASKS + j) | (at == j * TASKS + i)
            sums += tl.where(pair & present[i] & present[j], total, 0.0)
    return sums


@triton.jit(do_not_specialize=["base", "count"])
def gram_kernel(
    table, chunks, base, count, partials,
    TASKS: tl.constexpr, SQUARE: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, RUN: tl.constexpr,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One chunk: the inner products of all pairs, which go to partials[i * TASKS + j, chunk]."""
    index = tl.program_id(0) + base
    row, start, length = locate(chunks, index)
    firsts = ()
    present = ()
    zeros = ()
    for i in tl.static_range(TASKS):
        address = tl.load(table + row * TASKS + i)
        firsts += (pointers(address, DTYPE, ALIGNED) + start,)
        present += (address != 0,)
        for _ in tl.static_range(i + 1):
            zeros += (tl.zeros([LANES], tl.float32),)
    sums = tl.zeros([SQUARE], tl.float64)
    size: tl.constexpr = LANES * WIDTH
    full = length // size
    inner = offsets(LANES, WIDTH)
    for run in range(0, full, RUN):
        lanes = zeros
        for tile in tl.range(run, tl.minimum(run + RUN, full), num_stages=STAGES):
            at = tl.cast(tile, tl.int64) * size + inner
            lanes = _add_pairs(firsts, present, lanes, at, length, TASKS, False)
        sums = _flush(lanes, sums, present, TASKS, SQUARE)
    if full * size < length:
        lanes = zeros
        for rest in range(full * size, length, LANES):
            at = tl.cast(rest, tl.int64) + offsets(LANES, 1)
            lanes = _add_pairs(firsts, present, lanes, at, length, TASKS, True)
        sums = _flush(lanes, sums, present, TASKS, SQUARE)
    pairs = tl.arange(0, SQUARE)
    at = tl.cast(pairs, tl.int64) * count + index
    tl.store(partials + at, sums, mask=pairs < TASKS * TASKS)


def unrolled_options(tasks: int, dtype: torch.dtype, aligned: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of gram_kernel and the launch options."""
    tile = common.tile(tasks, dtype, aligned)
    return {
        "TASKS": tasks,
        "SQUARE": triton.next_power_of_2(tasks * tasks),
        "LANES": tile.lanes,
        "WIDTH": tile.width,
        "RUN": common.RUN,
        "DTYPE": common.TYPES[dtype],
        "ALIGNED": aligned,
    }, {"num_warps": tile.warps}


# Many tasks. One program processes one slot: up to per_slot consecutive chunks of a group.


@triton.jit
def _first_slot(bounds, group, per_slot):
    """The index of a group's first slot. Every group before it may end with a slot that is not full."""
    return tl.load(bounds + group) // per_slot + group


@triton.jit
def _add_products(a, b, sums, PRECISION: tl.constexpr):
    # The minus sign keeps the compiler from adding inside the matrix unit, which does not round to the nearest.
    return sums - tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def _block_pointers(addresses, start, TASKS: tl.constexpr, ROWS: tl.constexpr, DTYPE, ALIGNED: tl.constexpr):
    """(ROWS,): addresses of the gradients of at most TASKS tasks at the start of this chunk, which tasks have one."""
    tasks = tl.arange(0, ROWS)
    found = tl.load(addresses + tasks, mask=tasks < TASKS, other=0)
    return pointers(found, DTYPE, ALIGNED) + start, found != 0


@triton.jit
def _load_block(first, present, at, length, MASKED: tl.constexpr):
    """(ROWS, LENGTH) in the gradients' dtype; in the interpreter float32, because it cannot multiply bfloat16."""
    mask = present[:, None]
    if MASKED:
        mask = mask & (at < length)[None, :]
    values = tl.load(first[:, None] + at[None, :], mask=mask, other=0.0)
    if INTERPRETED:
        return widen(values, tl.float32)
    return values


@triton.jit
def _store_sums(
    partials, sums, rows_present, columns_present, ROW: tl.constexpr, COLUMN: tl.constexpr, SIZE: tl.constexpr
):
    """Subtracts the sums of the pairs of tasks that both have a gradient from the partial sums; see `_flush`."""
    row = ROW + tl.arange(0, sums.shape[0])
    column = COLUMN + tl.arange(0, sums.shape[1])
    at = partials + row[:, None] * SIZE + column[None, :]
    both = rows_present[:, None] & columns_present[None, :]
    tl.store(at, tl.load(at) - tl.where(both, sums, 0.0).to(tl.float64))


@triton.jit
def _add_tile(
    a_first, a_present, b_first, b_present, at, length, aa, ab, bb,
    INSIDE: tl.constexpr, PAIR: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns the sums with the products of a tile added: inside the blocks, and of the pair of blocks."""
    a = _load_block(a_first, a_present, at, length, MASKED)
    if PAIR:
        b = _load_block(b_first, b_present, at, length, MASKED)
        ab = _add_products(a, b, ab, PRECISION)
        if INSIDE:
            bb = _add_products(b, b, bb, PRECISION)
    if INSIDE:
        aa = _add_products(a, a, aa, PRECISION)
    return aa, ab, bb


@triton.jit(do_not_specialize=["base", "last", "groups", "per_slot"])
def gram_blocks_kernel(
    table, chunks, base, last, order, bounds, groups, per_slot, partials,
    TASKS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, A_ROWS: tl.constexpr, B_ROWS: tl.constexpr,
    SIZE: tl.constexpr, INSIDE: tl.constexpr, LENGTH: tl.constexpr, TILES: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One slot: adds the products of its chunks in [base, last) to partials[slot], (SIZE, SIZE).

    Block a is the A_ROWS tasks from A, b the B_ROWS tasks from B; B_ROWS is 0 if there is none. The products are those
    of the pair, and those inside each block if INSIDE. They are in the upper triangle, seen as a matrix of blocks.
    """
    slot = tl.program_id(0)
    group = 0
    while (group + 1 < groups) & (_first_slot(bounds, group + 1, per_slot) <= slot):
        group += 1
    begin = tl.load(bounds + group) + (slot - _first_slot(bounds, group, per_slot)) * per_slot
    end = tl.minimum(begin + per_slot, tl.load(bounds + group + 1))
    pair: tl.constexpr = B_ROWS > 0
    partials += tl.cast(slot, tl.int64) * SIZE * SIZE
    inner = tl.arange(0, LENGTH)
    for position in range(begin, end):
        index = tl.load(order + position)
        if (index >= base) & (index < last):
            row, start, length = locate(chunks, index)
            addresses = table + row * TASKS
            a_first, a_present = _block_pointers(addresses + A, start, TASKS - A, A_ROWS, DTYPE, ALIGNED)
            b_first, b_present = a_first, a_present
            if pair:
                b_first, b_present = _block_pointers(addresses + B, start, TASKS - B, B_ROWS, DTYPE, ALIGNED)
            full = length // LENGTH
            for run in range(0, tl.cdiv(length, LENGTH), TILES):
                aa = tl.zeros([A_ROWS, A_ROWS] if INSIDE else [1, 1], tl.float32)
                ab = tl.zeros([A_ROWS, B_ROWS] if pair else [1, 1], tl.float32)
                bb = tl.zeros([B_ROWS, B_ROWS] if pair and INSIDE else [1, 1], tl.float32)
                for tile in range(run, tl.minimum(run + TILES, full)):
                    at = tl.cast(tile, tl.int64) * LENGTH + inner
                    aa, ab, bb = _add_tile(
                        a_first, a_present, b_first, b_present, at, length, aa, ab, bb, INSIDE, pair, False, PRECISION
                    )
                # The end of the last run. Masks need registers, so the tiles are narrow.
                for rest in range(full * LENGTH, tl.minimum(length, (run + TILES) * LENGTH), TAIL):
                    at = tl.cast(rest, tl.int64) + tl.arange(0, TAIL)
                    aa, ab, bb = _add_tile(
                        a_first, a_present, b_first, b_present, at, length, aa, ab, bb, INSIDE, pair, True, PRECISION
                    )
                # One thread may load what another has stored.
                tl.debug_barrier()
                if INSIDE:
                    _store_sums(partials, aa, a_present, a_present, A, A, SIZE)
                if pair:
                    _store_sums(partials, ab, a_present, b_present, A, B, SIZE)
                if pair and INSIDE:
                    _store_sums(partials, bb, b_present, b_present, B, B, SIZE)


@triton.jit(do_not_specialize=["per_slot"])
def reduce_slots_kernel(
    partials, bounds, per_slot, result,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over the slots of a group, in order: (G, SIZE)."""
    group = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = _first_slot(bounds, group, per_slot)
    chunks = tl.load(bounds + group + 1) - tl.load(bounds + group)
    end = first + tl.cdiv(chunks, per_slot)
    sums = tl.zeros([SLOTS, COLUMNS], tl.float64)
    for slot in range(first, end, SLOTS):
        slots = slot + tl.arange(0, SLOTS).to(tl.int64)
        mask = (slots < end)[:, None]
        sums += tl.load(partials + slots[:, None] * SIZE + columns[None, :], mask=mask, other=0.0)
    tl.store(result + tl.cast(group, tl.int64) * SIZE + columns, tl.sum(sums, axis=0))


class Product(NamedTuple):
    """A launch: the products of the pair of blocks, if there is a b, and those inside each block if `inside`."""

    a: int  # the first task of the block
    a_rows: int
    b: int
    b_rows: int  # 0: none
    inside: bool
    length: int  # elements of a tile
    warps: int


def block_rows(tasks: int) -> int:
    """The rows of a block of this many tasks: a power of two, because Triton's tiles are, and at least 16."""
    return max(16, triton.next_power_of_2(tasks))


def size(tasks: int) -> int:
    """The rows of the matrix of sums of more than UNROLLED tasks."""
    return block_rows(tasks) if tasks <= BLOCK else 2 * BLOCK


def products(tasks: int, dtype: torch.dtype, aligned: bool) -> list[Product]:
    """The launches for more than UNROLLED tasks. A tile is at most 8 steps of the matrix unit long.

    Of 16-bit gradients all products are computed in one launch, which reads once. A launch of float32 computes one
    product: the operands of its three TF32 products are in registers, and with all three blocks of sums there would be
    room for one program on a multiprocessor, which mostly waits. Reading twice takes less time than the arithmetic.
    """

    def length(rows: int) -> int:
        if not aligned:
            return 16
        return max(16, 1024 // rows) if dtype is torch.float32 else 64

    def inside(first: int, rows: int) -> Product:
        return Product(first, rows, 0, 0, True, length(rows), rows // 16)

    if tasks <= BLOCK:
        return [inside(0, block_rows(tasks))]
    if dtype is not torch.float32:
        return [Product(0, BLOCK, BLOCK, BLOCK, True, length(BLOCK), 8)]
    rest = block_rows(tasks - BLOCK)
    return [inside(0, BLOCK), Product(0, BLOCK, BLOCK, rest, False, length(BLOCK), 4), inside(BLOCK, rest)]


def blocks_options(
    tasks: int, dtype: torch.dtype, aligned: bool, product: Product
) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of gram_blocks_kernel and the launch options.

    Prefetching needs registers. Without alignment there are never enough, and the compiler must be told that it may use
    all: it would rather spill a few and run another program. The result does not depend on it.
    """
    return {
        "TASKS": tasks,
        "A": product.a,
        "B": product.b,
        "A_ROWS": product.a_rows,
        "B_ROWS": product.b_rows,
        "SIZE": size(tasks),
        "INSIDE": product.inside,
        "LENGTH": product.length,
        "TILES": TILES,
        "TAIL": 16,
        "PRECISION": "tf32x3" if dtype is torch.float32 and not INTERPRETED.value else "ieee",
        "DTYPE": common.TYPES[dtype],
        "ALIGNED": aligned,
    }, {"num_warps": product.warps, "num_stages": 3 if aligned else 1, **({} if aligned else {"maxnreg": 255})}


REDUCE_OPTIONS = {"SLOTS": 128, "COLUMNS": 32}, {"num_warps": 8}


# On the host


def gram(pieces: DevicePieces) -> tuple[Tensor]:
    """(G, K, K) float64, symmetric bit for bit."""
    return ((_unrolled if pieces.tasks <= UNROLLED else _blocks)(pieces),)


def _unrolled(pieces: DevicePieces) -> Tensor:
    table, geometry, device, tasks, groups, _ = pieces
    partials = torch.empty(tasks * tasks, geometry.chunk_count, dtype=torch.float64, device=device)
    for dtypes, aligned, base, chunks in geometry.launches:
        constants, launch = unrolled_options(tasks, dtypes[0], aligned)
        arguments = (table, geometry.chunks, base, geometry.chunk_count, partials)
        common.launch(gram_kernel, (chunks,), device, *arguments, **constants, **launch)
    return common.reduce(partials, geometry, groups, tasks * tasks)[0].view(groups, tasks, tasks)


def _blocks(pieces: DevicePieces) -> Tensor:
    table, geometry, device, tasks, groups, _ = pieces
    rows = size(tasks)
    slots = min(MAX_SLOTS, MAX_BYTES // (8 * rows * rows))
    per_slot = max(1, triton.cdiv(geometry.chunk_count, slots))
    # The last slot of a group may not be full, so there is one more slot per group.
    partials = torch.zeros(geometry.chunk_count // per_slot + groups, rows, rows, dtype=torch.float64, device=device)
    for dtypes, aligned, base, chunks in geometry.launches:
        order, bounds = geometry.order, geometry.bounds
        arguments = (table, geometry.chunks, base, base + chunks, order, bounds, groups, per_slot, partials)
        for product in products(tasks, dtypes[0], aligned):
            constants, launch = blocks_options(tasks, dtypes[0], aligned, product)
            common.launch(gram_blocks_kernel, (len(partials),), device, *arguments, **constants, **launch)
    result = partials.new_empty(groups, rows, rows)
    tiles, launch = REDUCE_OPTIONS
    grid = (groups, rows * rows // tiles["COLUMNS"])
    arguments = (partials, geometry.bounds, per_slot, result)
    common.launch(reduce_slots_kernel, grid, device, *arguments, SIZE=rows * rows, **tiles, **launch)
    upper = result[:, :tasks, :tasks].triu()
    return upper + upper.triu(1).mT
