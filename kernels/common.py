"""What the kernels share: tiles, access to addresses and chunks, statistics and their reduction, launches.

Every program processes one chunk of one parameter (cats/ops/device_table.py), in tiles. The tasks are in GROUPS groups
of at most EACH = 8 tasks, and every warp works for one group. So a thread has one vector of 16 bytes of each of its
tasks, and their weights, addresses and sums, in registers. The kernels are written as loops over the tasks of a group;
a variable is a (GROUPS, LANES, WIDTH) tensor, a tuple has one for each task. This shape is chosen because:

- Up to 8 tasks a thread adds the tasks itself. For more tasks, only the partial sums of the groups go through shared
  memory, once for each tile; products with the result are again a thread's own.
- Tiles are loaded as matrices (`load_rows`), so that the copies in shared memory, where tiles wait, have no conflicts.
- A thread adds the WIDTH products of a vector, so statistics are (GROUPS, LANES) accumulators. After every RUN tiles
  they are added to float64 sums, which are spread over a warp's threads.
- Addresses are loaded again for every run and for the end of a chunk: kept, they would need 16 to 32 registers.

The error bound of statistics: a lane adds WIDTH <= 8 rounded products, then RUN such sums. The last run of a chunk has
less than RUN, and then up to 8 single products. With u = 2^-24 and terms of one sign and size, which is the worst case,
the error relative to the sum of absolute products is at most u (one product) + 4.4u (the partial sums of 8) + 23.4u (31
of these, then 8 of one), in all 1.8e-6. By Cauchy-Schwarz this is <= 2e-6 |g_i| |g_j|.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.ops.device_table import Geometry
from cats.ops.layout import VECTOR

# A tile of more tasks would not fit into one multiprocessor's registers.
MAX_TASKS = 128
RUN = 32

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}


class Tile(NamedTuple):
    groups: int  # of tasks, a power of two; every warp works for one
    each: int  # tasks in a group, the last may have fewer
    lanes: int
    width: int
    warps: int


MOST_TASKS = 8  # in a group
WARPS = 4  # at least
REGISTERS = 168  # per thread, so that three programs of WARPS warps share a multiprocessor's 65536
# The loop over tiles is a pipeline with this many stages: the next two tiles are on their way into shared memory while
# the arithmetic of one is done. With three programs of four warps, 96 KB are in flight on a multiprocessor.
STAGES = tl.constexpr(3)


def tile(tasks: int, dtype: torch.dtype, aligned: bool, busy: bool = False) -> Tile:
    """The tile for this number of tasks, dtype and alignment. busy: the kernel needs registers for more than that.

    It depends on nothing else, so the bits of the results do neither.

    A thread holds one vector of each task of its group, at most eight vectors. If there are few, it holds two of each.
    A vector is 16 bytes. It is 8 if there are so many warps that a thread of a busy kernel has too few registers for
    elements wider than the vector (16 bits) or accumulators of 8 bytes. Without alignment a vector is one element.
    """
    groups = triton.next_power_of_2(triton.cdiv(tasks, MOST_TASKS))
    each = triton.cdiv(tasks, groups)
    warps = max(WARPS, groups)
    single = dtype is torch.float32
    double = each * (1 if single or not aligned else 2) <= (2 if busy else 4)
    size = VECTOR // 2 if busy and warps > WARPS and not single else VECTOR
    lanes = 32 * warps // groups * (2 if double else 1)
    return Tile(groups, each, lanes, size // dtype.itemsize if aligned else 1, warps)


def constants(
    tasks: int, dtypes: Sequence[torch.dtype], aligned: bool, busy: bool = False
) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments that all kernels over tiles have, and the launch options."""
    groups, each, lanes, width, warps = tile(tasks, dtypes[0], aligned, busy)
    wide = torch.float64 in dtypes
    return {
        "TASKS": tasks,
        "GROUPS": groups,
        "EACH": each,
        "SLOTS": triton.next_power_of_2(each),
        "LANES": lanes,
        "WIDTH": width,
        "RUN": RUN,
        "DTYPE": TYPES[dtypes[0]],
        "COMPUTE": tl.float64 if wide else tl.float32,
        "ALIGNED": aligned,
    }, {"num_warps": warps, "maxnreg": registers(warps, most=wide)}


def registers(warps: int, most: bool) -> int:
    """Per thread. `most`: as many as there are, else so few that several programs share a multiprocessor."""
    if most or warps > 2 * WARPS:
        return min(255, 65536 // (32 * warps))
    return REGISTERS if warps == WARPS else 128


# On the device


@triton.jit
def locate(chunks, index):
    """A chunk's row in the table of addresses, its first element, its number of elements."""
    at = chunks + tl.cast(index, tl.int64) * 3
    return tl.load(at), tl.multiple_of(tl.load(at + 1), 16), tl.load(at + 2)


# Whether kernels run in Triton's interpreter in this process. It rounds to bfloat16 towards zero.
INTERPRETED = tl.constexpr(not isinstance(locate, triton.runtime.JITFunction))


@triton.jit
def pointers(addresses, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    if ALIGNED:
        return tl.multiple_of(addresses.to(tl.pointer_type(DTYPE)), 16)
    return addresses.to(tl.pointer_type(DTYPE))


@triton.jit
def tasks_of(NUMBER: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr):
    """(GROUPS,): of every group, the task with this number in it."""
    return tl.arange(0, GROUPS) * EACH + NUMBER


@triton.jit
def task_pointers(
    table, row, start, columns, TASKS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, DTYPE,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """EACH times (GROUPS,): addresses of the tasks' gradients at the start of this chunk, and which tasks have one."""
    firsts = ()
    present = ()
    for n in tl.static_range(EACH):
        tasks = tasks_of(n, GROUPS, EACH)
        addresses = tl.load(table + row * columns + tasks, mask=tasks < TASKS, other=0)
        firsts += (pointers(addresses, DTYPE, ALIGNED) + start,)
        present += (addresses != 0,)
    return firsts, present


@triton.jit
def other_pointer(table, row, start, columns, column, DTYPE, ALIGNED: tl.constexpr):
    """The address of another of the parameter's tensors at the start of this chunk."""
    return pointers(tl.load(table + row * columns + column), DTYPE, ALIGNED) + start


@triton.jit
def widen(values, COMPUTE: tl.constexpr):
    """Exact conversion. bfloat16 goes through its bits: the interpreter does not convert subnormal numbers."""
    if values.dtype == tl.bfloat16:
        bits = values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True).to(COMPUTE)
    return values.to(COMPUTE)


@triton.jit
def narrow(values, DTYPE: tl.constexpr):
    """Conversion that rounds to the nearest, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = tl.where(values == values, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(DTYPE)


@triton.jit
def offsets(LANES: tl.constexpr, WIDTH: tl.constexpr):
    """(LANES, WIDTH): the elements of a tile. A lane has WIDTH neighbouring elements."""
    return tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_rows(
    firsts, wanted, begin, length, LANES: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, COMPUTE: tl.constexpr
):
    """(ROWS, LANES, WIDTH): LANES * WIDTH elements from `begin` of the wanted rows, zeros for the others.

    They are loaded as a matrix. Of a tile with three dimensions, Triton 3.6 and 3.7 would put the lanes of a row ROWS
    vectors apart in shared memory, so that up to eight lanes of a warp would meet in the same banks.

    A mask that differs between neighbouring elements splits the 16-byte loads. So only the end of a chunk, after its
    last full tile, is MASKED. It is read in tiles of width 1, which also need fewer registers.
    """
    at = begin + tl.arange(0, LANES * WIDTH)
    mask = wanted[:, None]
    if MASKED:
        mask = mask & (at < length)[None, :]
    values = tl.load(firsts[:, None] + at[None, :], mask=mask, other=0.0)
    return widen(values.reshape(firsts.shape[0], LANES, WIDTH), COMPUTE)


@triton.jit
def load_tasks(
    firsts, present, begin, length,
    EACH: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """EACH times (GROUPS, LANES, WIDTH): the tasks' gradients, zero where a task has none. All loads come first."""
    grads = ()
    for n in tl.static_range(EACH):
        grads += (load_rows(firsts[n], present[n], begin, length, LANES, WIDTH, MASKED, COMPUTE),)
    return grads


@triton.jit
def load(first, at, length, MASKED: tl.constexpr, COMPUTE: tl.constexpr):
    if MASKED:
        return widen(tl.load(first + at, mask=at < length, other=0.0), COMPUTE)
    return widen(tl.load(first + at), COMPUTE)


@triton.jit
def store(first, at, length, values, MASKED: tl.constexpr, DTYPE: tl.constexpr, wanted=True):
    mask = wanted
    if MASKED:  # not `& wanted`: Triton's interpreter cannot spread a bool over a tile
        mask = at < tl.where(wanted, length, 0)
    tl.store(first + at, narrow(values, DTYPE), mask=mask)


@triton.jit
def load_weights(
    weights, present, TASKS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, COMPUTE: tl.constexpr
):
    """EACH times (GROUPS,): the weights; zero where a task has no gradient."""
    values = ()
    for n in tl.static_range(EACH):
        tasks = tasks_of(n, GROUPS, EACH)
        loaded = tl.load(weights + tasks, mask=tasks < TASKS, other=0.0)
        values += (tl.where(present[n], loaded, 0.0).to(COMPUTE),)
    return values


@triton.jit
def combination(grads, weights, EACH: tl.constexpr):
    """(LANES, WIDTH): the weighted sum over tasks. A thread adds those of its group, then the groups are added."""
    total = grads[0] * weights[0][:, None, None]
    for n in tl.static_range(1, EACH):
        total += grads[n] * weights[n][:, None, None]
    return tl.sum(total, axis=0)


@triton.jit
def without_padding(combined, at, length):
    """The combination with zeros behind the end: infinite weights make nan of the zeros that gradients have there."""
    return tl.where(at < length, combined, 0.0)


@triton.jit
def add_products(lanes, grads, vector, EACH: tl.constexpr):
    """EACH times (GROUPS, LANES): every task's inner product with a (LANES, WIDTH) vector is added, lane by lane."""
    added = ()
    for n in tl.static_range(EACH):
        added += (lanes[n] + tl.sum(grads[n] * vector[None, :, :], axis=2),)
    return added


@triton.jit
def add_squares(lanes, grads, EACH: tl.constexpr):
    added = ()
    for n in tl.static_range(EACH):
        added += (lanes[n] + tl.sum(grads[n] * grads[n], axis=2),)
    return added


@triton.jit
def zeros(shape: tl.constexpr, EACH: tl.constexpr, DTYPE: tl.constexpr):
    values = ()
    for _ in tl.static_range(EACH):
        values += (tl.zeros(shape, DTYPE),)
    return values


@triton.jit
def over_lanes(values):
    return tl.sum(values.to(tl.float64), axis=1)


@triton.jit
def flush(sums, lanes, present, EACH: tl.constexpr):
    """(GROUPS, SLOTS) float64 sums, a slot for each task of a group, with the sums over lanes added.

    Not those of tasks without a gradient: they are products of the zeros in its place, which are nan with infinities.
    """
    slots = tl.arange(0, sums.shape[1])[None, :]
    for n in tl.static_range(EACH):
        sums += tl.where((slots == n) & present[n][:, None], over_lanes(lanes[n])[:, None], 0.0)
    return sums


@triton.jit
def store_sums(partials, statistic, count, index, sums, TASKS: tl.constexpr, EACH: tl.constexpr):
    """Writes a chunk's partial sums of TASKS tasks into its column of partials, beginning at row statistic * TASKS."""
    slots = tl.arange(0, sums.shape[1])[None, :]
    tasks = tl.arange(0, sums.shape[0])[:, None] * EACH + slots
    at = tl.cast(statistic * TASKS + tasks, tl.int64) * count + index
    tl.store(partials + at, sums, mask=(slots < EACH) & (tasks < TASKS))


@triton.jit(do_not_specialize=["count"])
def reduce_kernel(
    partials, count, order, bounds, left, right, SPLIT: tl.constexpr, TOTAL: tl.constexpr,
    COLUMNS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Sums over the chunks of a group in the order of the table: (G, SPLIT) to left, the other statistics to right."""
    group = tl.cast(tl.program_id(0), tl.int64)  # group * SPLIT may be more than 2^31
    statistics = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = statistics < TOTAL
    begin = tl.load(bounds + group)
    end = tl.load(bounds + group + 1)
    sums = tl.zeros([COLUMNS, CHUNKS], tl.float64)
    rows = partials + statistics[:, None].to(tl.int64) * count
    for position in range(begin, end, CHUNKS):
        at = position + tl.arange(0, CHUNKS)
        chunks = tl.load(order + at, mask=at < end, other=0)
        sums += tl.load(rows + chunks[None, :], mask=inside[:, None] & (at < end)[None, :], other=0.0)
    total = tl.sum(sums, axis=1)
    tl.store(left + group * SPLIT + statistics, total, mask=statistics < SPLIT)
    at_right = group * (TOTAL - SPLIT) + statistics - SPLIT
    tl.store(right + at_right, total, mask=inside & (statistics >= SPLIT))


# On the host


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **options: Any) -> None:
    """Starts the kernel on the device's current stream."""
    if device.type == "cpu" and not INTERPRETED.value:
        raise RuntimeError(
            "backend 'triton' was given tensors on the CPU: it runs on a GPU, or anywhere in Triton's interpreter "
            "with TRITON_INTERPRET=1 in the environment"
        )
    with contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device):
        # Fuse multiplications and additions, whatever the default of this Triton version is.
        kernel[grid](*arguments, **options, enable_fp_fusion=True)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the CPU to the device: an `Upload` of cats/ops/device_table.py."""
    if device.type == "cpu":
        return tensor
    if torch.cuda.is_current_stream_capturing():
        return through_arguments(tensor, device)
    return tensor.pin_memory().to(device, non_blocking=True)


def through_arguments(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy whose numbers are arguments of torch's kernels, so that a CUDA graph has them in its nodes.

    A graph reads the source of a copy again at every replay, when that memory may have been freed. This is slower.
    """
    target = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    torch._foreach_add_(list(target.view(-1).unbind()), tensor.reshape(-1).tolist())
    return target


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor as contiguous float64 on the device. Does not wait for the device."""
    tensor = tensor.double().contiguous()
    return upload(tensor, device) if tensor.device.type == "cpu" else tensor.to(device, non_blocking=True)


def reduce_options(total: int) -> tuple[dict[str, int], dict[str, int]]:
    """One program per statistic if there are few. Otherwise the reduction would take as long as the main kernel."""
    columns = 1 if total < 64 else 8
    return {"COLUMNS": columns, "CHUNKS": 4096 // columns}, {"num_warps": 8}


def reduce(partials: Tensor, geometry: Geometry, groups: int, split: int) -> tuple[Tensor, Tensor]:
    """(G, split) and (G, S - split) of (S, chunks) partial sums, all float64."""
    total = len(partials)
    if geometry.chunk_count == 0:
        return partials.new_zeros(groups, split), partials.new_zeros(groups, total - split)
    left, right = partials.new_empty(groups, split), partials.new_empty(groups, total - split)
    blocks, options = reduce_options(total)
    grid = (groups, triton.cdiv(total, blocks["COLUMNS"]))  # only the first may be larger than 65535
    arguments = (partials, geometry.chunk_count, geometry.order, geometry.bounds, left, right)
    launch(reduce_kernel, grid, partials.device, *arguments, SPLIT=split, TOTAL=total, **blocks, **options)
    return left, right
