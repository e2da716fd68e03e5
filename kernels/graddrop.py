"""graddrop: the sum of the gradients with one of their two signs, in one read of them and one write of the result.

The tile is that of combine (common.py). Both sums, and both leaks, are added before the sign is drawn: a thread adds
them for its group of tasks, then the groups are added.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.ops.device_table import DevicePieces
from cats.ops.interface import Draws

from . import common
from .common import STAGES, load_tasks, load_weights, locate, offsets, other_pointer, store, task_pointers


@triton.jit
def philox(counters, seed, step):
    """Philox4x32-10 (see `cats.ops.graddrop`): four uint32 tensors for a tensor of int64 counters."""
    a, b = counters.to(tl.uint32), (counters >> 32).to(tl.uint32)
    c, d = tl.zeros_like(a) + step.to(tl.uint32), tl.zeros_like(a) + (step >> 32).to(tl.uint32)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p, q = a.to(tl.uint64) * 0xD2511F53, c.to(tl.uint64) * 0xCD9E8D57
        a, b = (q >> 32).to(tl.uint32) ^ b ^ low, q.to(tl.uint32)
        c, d = (p >> 32).to(tl.uint32) ^ d ^ high, p.to(tl.uint32)
        low, high = low + 0x9E3779B9, high + 0xBB67AE85
    return a, b, c, d


@triton.jit
def thresholds(first, seed, step, at, LANES: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, COMPUTE):
    """2 U - 1 for the elements `at` after position `first`, (LANES, WIDTH).

    WHOLE: `at` is a whole tile, and it begins at a multiple of 4. Then all four words of every counter are used.
    """
    if WHOLE:
        calls: tl.constexpr = WIDTH // 4
        counters = (first >> 2) + offsets(LANES, calls)
        a, b, c, d = philox(counters, seed, step)
        words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(LANES, WIDTH)
    else:
        position = first + at
        a, b, c, d = philox(position >> 2, seed, step)
        word = position & 3
        words = tl.where(word < 2, tl.where(word == 0, a, b), tl.where(word == 2, c, d))
    return ((words >> 8).to(tl.int32) * 2 + 1 - (1 << 24)).to(COMPUTE) * (1.0 / (1 << 24))


@triton.jit
def _signs(grads, leaks, EACH: tl.constexpr):
    """(LANES, WIDTH) each: the sums of the positive and of the other gradients, and both with the leaks as weights."""
    up = tl.zeros(grads[0].shape, grads[0].dtype)
    down = up
    leaked_up = up
    leaked_down = up
    for n in tl.static_range(EACH):
        above = grads[n] > 0  # not for NaN, which therefore gets into `negative`
        positive = tl.where(above, grads[n], 0.0)
        negative = tl.where(above, 0.0, grads[n])
        leak = leaks[n][:, None, None]
        up += positive
        down += negative
        leaked_up += positive * leak
        leaked_down += negative * leak
    return tl.sum(up, axis=0), tl.sum(down, axis=0), tl.sum(leaked_up, axis=0), tl.sum(leaked_down, axis=0)


@triton.jit
def _tile(
    firsts, present, leaks, out, position, seed, step, begin, length,
    EACH: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, MASKED: tl.constexpr,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Writes the result of one tile."""
    grads = load_tasks(firsts, present, begin, length, EACH, LANES, WIDTH, MASKED, COMPUTE)
    inner = offsets(LANES, WIDTH)
    up, down, leaked_up, leaked_down = _signs(grads, leaks, EACH)
    size = up - down
    threshold = thresholds(position + begin, seed, step, inner, LANES, WIDTH, WHOLE, COMPUTE)
    # The second comparison is for subnormal numbers: threshold * size may be rounded to size.
    chosen = (up + down > threshold * size) | (up + down == size)
    kept = tl.where(chosen, up + leaked_down, down + leaked_up)
    # NaN if a gradient, or the sum of their sizes, is not finite.
    store(out, begin + inner, length, kept + (size - size), MASKED, DTYPE)


@triton.jit(do_not_specialize=["base"])
def graddrop_kernel(
    table, chunks, base, leak, words,
    TASKS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, SLOTS: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, RUN: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """One chunk. words: seed, step, and the position of the first element of every row of the table.

    WHOLE: all these positions are multiples of 4.
    """
    row, start, length = locate(chunks, tl.program_id(0) + base)
    columns: tl.constexpr = TASKS + 1
    firsts, present = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
    out = other_pointer(table, row, start, columns, TASKS, DTYPE, ALIGNED)
    leaks = load_weights(leak, present, TASKS, GROUPS, EACH, COMPUTE)
    seed, step = tl.load(words), tl.load(words + 1)
    position = tl.load(words + 2 + row) + start
    size: tl.constexpr = LANES * WIDTH
    full = length // size
    for tile in tl.range(0, full, num_stages=STAGES):
        _tile(
            firsts, present, leaks, out, position, seed, step, tl.cast(tile, tl.int64) * size, length,
            EACH, LANES, WIDTH, WHOLE, False, DTYPE, COMPUTE,
        )  # fmt: skip
    for rest in range(full * size, length, LANES):
        again = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
        _tile(
            again[0], again[1], leaks, out, position, seed, step, tl.cast(rest, tl.int64), length,
            EACH, LANES, 1, False, True, DTYPE, COMPUTE,
        )  # fmt: skip


def options(tasks: int, dtype: torch.dtype, aligned: bool, fours: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of graddrop_kernel and the launch options. fours: positions are multiples of 4."""
    constants, launch = common.constants(tasks, [dtype], aligned, busy=True)
    return {**constants, "WHOLE": fours and constants["WIDTH"] % 4 == 0}, launch


def graddrop(pieces: DevicePieces, leak: Tensor, draws: Draws) -> None:
    """Writes the gradients' sums of one sign. leak: (1, K)."""
    table, geometry, device, tasks, _, params = pieces
    chosen = draws.select(params)
    leak, words = common.to_device(leak, device), common.upload(chosen.words(), device)
    fours = all(position % 4 == 0 for position in chosen.positions)
    for dtypes, aligned, base, chunks in geometry.launches:
        constants, launch = options(tasks, dtypes[0], aligned, fours)
        arguments = (table, geometry.chunks, base, leak, words)
        common.launch(graddrop_kernel, (chunks,), device, *arguments, **constants, **launch)
