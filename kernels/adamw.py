"""combine_adamw_: the combined gradient, its statistics and the AdamW update in one pass.

The tile is that of combine (common.py), with the parameter and its moments as three more vectors of a lane. With more
than 32 tasks, a thread has registers for half a vector of 16 bits only.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.ops.device_table import DevicePieces
from cats.ops.interface import AdamW

from . import common
from .common import (
    STAGES,
    add_products,
    add_squares,
    combination,
    flush,
    load,
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


@triton.jit
def _divide(a, b):
    """a / b, rounded as IEEE 754 says. The operator / does this for float64 only."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _sqrt(a):
    return tl.sqrt(a) if a.dtype == tl.float64 else tl.sqrt_rn(a)


@triton.jit
def _tile(
    firsts, present, scale, state, settings, update, dots, norms, begin, length,
    SCALED: tl.constexpr, EACH: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PARAM: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Updates one tile of the parameter and its moments. Returns the accumulators with the tile's statistics added.

    All loads come first, so that none waits for the arithmetic on the others. Without `update` nothing is stored; a
    branch would keep the compiler from starting the loads of the next tiles.
    """
    at = begin + offsets(LANES, WIDTH)
    grads = load_tasks(firsts, present, begin, length, EACH, LANES, WIDTH, MASKED, COMPUTE)
    param = load(state[0], at, length, MASKED, COMPUTE)
    exp_avg = load(state[1], at, length, MASKED, COMPUTE)
    exp_avg_sq = load(state[2], at, length, MASKED, COMPUTE)
    combined = combination(grads, scale, EACH)
    if MASKED:
        combined = without_padding(combined, at, length)
    dots = add_products(dots, grads, combined, EACH)
    norms = add_squares(norms, grads, EACH)
    decay, step_size, correction, rate1, beta2, rate2, eps, grad_scale = settings
    ones = tl.full(combined.shape, 1, COMPUTE)
    grad = _divide(combined, ones * grad_scale) if SCALED else combined
    # As in torch.lerp: from the nearer end.
    difference = grad - exp_avg
    near = tl.fma(ones * rate1, difference, exp_avg)
    exp_avg = tl.where(rate1 < 0.5, near, tl.fma(ones * (rate1 - 1), difference, grad))
    exp_avg_sq = tl.fma(rate2 * grad, grad, beta2 * exp_avg_sq)
    denominator = _divide(_sqrt(exp_avg_sq), ones * correction) + eps
    param = param * decay + _divide(exp_avg * -step_size, denominator)
    store(state[0], at, length, param, MASKED, PARAM, update)
    store(state[1], at, length, exp_avg, MASKED, COMPUTE, update)
    store(state[2], at, length, exp_avg_sq, MASKED, COMPUTE, update)
    return dots, norms


@triton.jit(do_not_specialize=["base", "count"])
def adamw_kernel(
    table, chunks, base, count, weights, partials, scalars, found_inf, grad_scale,
    TASKS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, SLOTS: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, RUN: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One chunk: the update, unless found_inf is not 0, and dots and squared norms, which go to partials[:, chunk].

    scalars: float64, from `_scalars`. Parameters have the gradients' dtype DTYPE, moments have dtype COMPUTE.
    """
    index = tl.program_id(0) + base
    row, start, length = locate(chunks, index)
    columns: tl.constexpr = TASKS + 3
    _, present = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
    state = (
        other_pointer(table, row, start, columns, TASKS, DTYPE, ALIGNED),
        other_pointer(table, row, start, columns, TASKS + 1, COMPUTE, ALIGNED),
        other_pointer(table, row, start, columns, TASKS + 2, COMPUTE, ALIGNED),
    )
    settings = ()
    for i in tl.static_range(7):
        settings += (tl.load(scalars + i).to(COMPUTE),)
    scaled: tl.constexpr = grad_scale is not None
    settings += (tl.load(grad_scale).to(COMPUTE) if scaled else settings[0],)
    scale = load_weights(weights, present, TASKS, GROUPS, EACH, COMPUTE)
    update = True
    if found_inf is not None:
        update = tl.load(found_inf) == 0
    dot_sums = tl.zeros([GROUPS, SLOTS], tl.float64)
    norm_sums = dot_sums

    size: tl.constexpr = LANES * WIDTH
    full = length // size
    for run in range(0, tl.cdiv(length, size), RUN):
        firsts, present = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
        dots = zeros([GROUPS, LANES], EACH, COMPUTE)
        norms = dots
        for tile in tl.range(run, tl.minimum(run + RUN, full), num_stages=STAGES):
            dots, norms = _tile(
                firsts, present, scale, state, settings, update, dots, norms, tl.cast(tile, tl.int64) * size, length,
                scaled, EACH, LANES, WIDTH, False, DTYPE, COMPUTE,
            )  # fmt: skip
        for rest in range(full * size, tl.minimum(length, (run + RUN) * size), LANES):
            again = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
            dots, norms = _tile(
                again[0], again[1], scale, state, settings, update, dots, norms, tl.cast(rest, tl.int64), length,
                scaled, EACH, LANES, 1, True, DTYPE, COMPUTE,
            )  # fmt: skip
        again = task_pointers(table, row, start, columns, TASKS, GROUPS, EACH, DTYPE, ALIGNED)
        dot_sums = flush(dot_sums, dots, again[1], EACH)
        norm_sums = flush(norm_sums, norms, again[1], EACH)
    store_sums(partials, 0, count, index, dot_sums, TASKS, EACH)
    store_sums(partials, 1, count, index, norm_sums, TASKS, EACH)


def _scalars(
    step: Tensor, lr: Tensor, beta1: float, beta2: float, eps: float, weight_decay: float, device: torch.device
) -> Tensor:
    """Float64 on the device: decay, step size, correction of the second moment, 1 - beta1, beta2, 1 - beta2, eps.

    The device computes them wherever step and lr are, because its powers may differ in the last bit from the host's.
    """
    constant = common.to_device(torch.tensor([1 - beta1, beta2, 1 - beta2, eps], dtype=torch.float64), device)
    step, lr = common.to_device(step, device), common.to_device(lr, device)
    varying = (1 - lr * weight_decay, lr / (1 - beta1**step), (1 - beta2**step).sqrt())
    return torch.cat([torch.stack(varying), constant])


def combine_adamw_(pieces: DevicePieces, weights: Tensor, settings: AdamW) -> tuple[Tensor, Tensor]:
    """AdamW with the combined gradient, computed in the moments' dtype and rounded once into the parameters.

    Returns dots (G, 1, K) and squared norms (G, K), float64, of the gradients before grad_scale.
    """
    table, geometry, device, tasks, groups, _ = pieces
    step, lr, beta1, beta2, eps, weight_decay, found_inf, grad_scale = settings
    weights = common.to_device(weights, device)
    found_inf, grad_scale = (None if t is None else common.to_device(t, device) for t in (found_inf, grad_scale))
    partials = weights.new_empty(2 * tasks, geometry.chunk_count)
    scalars = _scalars(step, lr, beta1, beta2, eps, weight_decay, device)
    for dtypes, aligned, base, chunks in geometry.launches:
        constants, launch = options(tasks, dtypes[0], aligned)
        arguments = (
            table,
            geometry.chunks,
            base,
            geometry.chunk_count,
            weights,
            partials,
            scalars,
            found_inf,
            grad_scale,
        )
        common.launch(adamw_kernel, (chunks,), device, *arguments, **constants, **launch)
    dots, sqnorms = common.reduce(partials, geometry, groups, tasks)
    return dots.view(-1, 1, tasks), sqnorms


def options(tasks: int, dtype: torch.dtype, aligned: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """The constexpr arguments of adamw_kernel and the launch options."""
    return common.constants(tasks, [dtype], aligned, busy=True)
