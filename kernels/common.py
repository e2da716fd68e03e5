"""What the kernels share: tiles, access to addresses and chunks, statistics and their reduction, launches.

Every program processes one chunk of one parameter (cats/ops/device_table.py), in tiles of ROWS tasks by LANES by WIDTH
elements. The WIDTH elements are the 16 bytes that one thread loads at once, and a thread adds over them itself. So
statistics are (ROWS, LANES) accumulators. After every RUN tiles they are added to float64 sums.

The error bound of statistics: a lane adds WIDTH <= 8 rounded products, then RUN such sums. With u = 2^-24 and terms of
one sign, which is the worst case, the error relative to the sum of absolute products is at most u (one product) + 4.4u
(the partial sums of 8) + 16.5u (those of RUN = 32), in all 1.3e-6. By Cauchy-Schwarz this is <= 2e-6 |g_i| |g_j|.
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

# A tile of more tasks would not fit into one program's registers.
MAX_TASKS = 128
RUN = 32

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}


class Tile(NamedTuple):
    rows: int  # tasks, rounded up to a power of two
    lanes: int
    width: int


WARPS = 4
REGISTERS = 168  # per thread, so that three programs share a multiprocessor's 65536
# The loop over tiles is a pipeline with this many stages: the next two tiles are on their way into shared memory while
# the arithmetic of one is done. So at least eight vectors per thread are always in flight.
STAGES = tl.constexpr(3)


def tile(tasks: int, dtype: torch.dtype, aligned: bool, others: int = 0) -> Tile:
    """The tile for this number of tasks, dtype and alignment, in a kernel that updates `others` more tensors.

    It depends on nothing else, so the bits of the results do neither.

    A thread holds at most 32 registers of gradients, so several programs share a multiprocessor, and the arithmetic of
    some hides the loads of others. 32 registers are eight vectors of float32, or four of the other dtypes, whose
    elements or accumulators need more. With other tensors there are registers for four. A thread holds at most two
    vectors per task. If there are more tasks than vectors, they are spread over the threads. Without alignment a vector
    is one element.
    """
    rows = triton.next_power_of_2(tasks)
    threads = 32 * WARPS
    vectors = 8 if (dtype is torch.float32 and not others) or not aligned else 4
    return Tile(rows, min(vectors * threads // rows, 2 * threads), VECTOR // dtype.itemsize if aligned else 1)


def constants(
    tasks: int, dtypes: Sequence[torch.dtype], aligned: bool, others: int = 0
) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments that all kernels over tiles have, and the launch options."""
    rows, lanes, width = tile(tasks, dtypes[0], aligned, others)
    wide = torch.float64 in dtypes
    return {
        "TASKS": tasks,
        "ROWS": rows,
        "LANES": lanes,
        "WIDTH": width,
        "RUN": RUN,
        "DTYPE": TYPES[dtypes[0]],
        "COMPUTE": tl.float64 if wide else tl.float32,
        "ALIGNED": aligned,
    }, {"num_warps": WARPS, "maxnreg": 255 if wide else REGISTERS}


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
def task_pointers(table, row, start, columns, TASKS: tl.constexpr, ROWS: tl.constexpr, DTYPE, ALIGNED: tl.constexpr):
    """Addresses of the tasks' gradients at the start of this chunk, (ROWS,), and which tasks have a gradient."""
    tasks = tl.arange(0, ROWS)
    addresses = tl.load(table + row * columns + tasks, mask=tasks < TASKS, other=0)
    return pointers(addresses, DTYPE, ALIGNED) + start, addresses != 0


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
def load_tasks(first, present, at, length, MASKED: tl.constexpr, COMPUTE: tl.constexpr):
    """(ROWS, LANES, WIDTH): the tasks' gradients at these elements, zero where a task has none.

    A mask that differs between neighbouring elements splits the 16-byte loads. So only the end of a chunk, after its
    last full tile, is MASKED. It is read in tiles of width 1, which also need fewer registers.
    """
    mask = present[:, None, None]
    if MASKED:
        mask = mask & (at < length)[None, :, :]
    return widen(tl.load(first[:, None, None] + at[None, :, :], mask=mask, other=0.0), COMPUTE)


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
def load_weights(weights, present, TASKS: tl.constexpr, ROWS: tl.constexpr, COMPUTE: tl.constexpr):
    """(ROWS,): the weights; zero where a task has no gradient."""
    tasks = tl.arange(0, ROWS)
    return tl.where(present, tl.load(weights + tasks, mask=tasks < TASKS, other=0.0), 0.0).to(COMPUTE)


@triton.jit
def combination(grads, weights):
    """(LANES, WIDTH): the weighted sum over tasks."""
    return tl.sum(grads * weights[:, None, None], axis=0)


@triton.jit
def products(grads, vector):
    """(ROWS, LANES): every task's inner product with a (LANES, WIDTH) vector, summed per lane."""
    return tl.sum(grads * vector[None, :, :], axis=2)


@triton.jit
def squares(grads):
    return tl.sum(grads * grads, axis=2)


@triton.jit
def over_lanes(values):
    return tl.sum(values.to(tl.float64), axis=1)


@triton.jit
def store_statistic(partials, statistic, count, index, values, TASKS: tl.constexpr, ROWS: tl.constexpr):
    """Writes a chunk's TASKS partial sums into its column of partials, beginning at row statistic * TASKS."""
    tasks = tl.arange(0, ROWS)
    at = tl.cast(statistic * TASKS + tasks, tl.int64) * count + index
    tl.store(partials + at, values, mask=tasks < TASKS)


@triton.jit(do_not_specialize=["count"])
def reduce_kernel(
    partials, count, order, bounds, left, right, SPLIT: tl.constexpr, TOTAL: tl.constexpr,
    COLUMNS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Sums over the chunks of a group in the order of the table: (G, SPLIT) to left, the other statistics to right."""
    group = tl.program_id(0)
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
