"""The public operators: what they take, what they return and what they promise.

This holds for all of them; `row_dots` takes two matrices instead of gradients and weights:

* `grads`: K sequences (one per task) of N gradients (one per parameter), as autograd returned them. Any strides; dtype
  float32, bfloat16, float16 or float64. Shape and dtype of a parameter are the same for all tasks. All gradients are
  on one device. None means that the task does not use the parameter.
* `weights`: K numbers, or a tensor of shape (K,), or (R, K) for R combinations in one pass. Weights are not rounded to
  the gradients' dtype. Products and sums are computed in float32 or better (for float64 gradients in float64), and a
  combination is rounded once, at the end. A tensor of weights is on the CPU or on the gradients' device; the host
  does not wait for it. With a finite weight beyond float32's normal range (1.2e-38 to 3.4e38), float64 is used for
  all products; but a weight on a GPU is rounded to float32 then.
* `groups`: N ints that assign the parameters to groups. Statistics are then computed per group: they have a leading
  axis of length G = max(groups) + 1.
* `backend`: the name of a backend. If it cannot be used or lacks the operator, the call raises. What it does not take
  (too many tasks, some dtypes, gradients with gaps, weights beyond float32), the reference computes, without a warning.
  None: the environment variable CATS_BACKEND, as if it were this argument; else on the CPU native, reference, and on a
  GPU cuda, triton, reference, in this order. Such a default is compared with float64 on small data at its first use,
  unless CATS_SELF_CHECK is 0. If it is wrong, there is one warning and the next one computes.

Statistics (dot products, squared norms, Gram matrices) are float64 tensors on the gradients' device. They have the same
bits on every run and for every number of threads. If a gradient has a NaN or an infinity, its statistics do too.

The operators are not differentiable: they run without autograd, no result requires grad, and to torch.func results are
constants. torch.compile sees each of them as one custom operator, torch.ops.cats.*, which is there once cats.ops is
imported.

A tensor with torch's negative bit (x.conj().imag) is read and written as torch does. Tensors whose numbers are not in
memory are refused: a FakeTensor among real ones, a storage that was freed. So is memory that would be written twice.
That a tensor to write into shares memory with the gradient of another parameter is not checked: then the results are
undefined.

Raises ValueError or TypeError for invalid arguments, with one line that names the task and the parameter, counted from
0; and RuntimeError if the backend that was asked for cannot be used. Nothing has been written then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .checks import Grads, RowMatrices, Tasks, Weights
from .interface import AdamW
from .library import call

__all__ = ["combine", "combine_adamw_", "combine_dots", "dots", "graddrop", "gram", "row_dots"]


def combine(
    grads: Grads, weights: Weights, *, out: Sequence[Any] | None = None, backend: str | None = None
) -> list[Any]:
    """The weighted sum of the tasks' gradients, per parameter: sum_n w_n g_n.

    For float32, the error of an element is at most (K + 1) 2^-24 sum_n |w_n g_n|.

    Args:
        grads, weights, backend: as for all operators.
        out: the result of an earlier call, to be overwritten; None in it means a new tensor. It must not share memory
            with the gradients.

    Returns:
        N tensors with the parameters' shapes and dtypes, None where no task has a gradient. For (R, K) weights: R such
        lists.
    """
    tasks = Tasks(grads)
    matrix, single = tasks.weights(weights)
    combined = tasks.out(out, len(matrix), single)
    call("combine", tasks.direct, grads=tasks.rows, weights=matrix, out=combined, backend=backend)
    return combined[0] if single else combined


def combine_dots(
    grads: Grads,
    weights: Weights,
    *,
    out: Sequence[Any] | None = None,
    groups: Sequence[int] | None = None,
    backend: str | None = None,
) -> tuple[list[Any], Tensor, Tensor]:
    """`combine` and the statistics that CATS needs, in one read of the gradients.

    If no square of an element overflows or underflows in float32, |error of dots[n]| <= 2e-6 |g_n| |combined| and
    |error of sqnorms[n]| <= 2e-6 |g_n|^2.

    Args:
        grads, weights, groups, backend: as for all operators.
        out: as in `combine`.

    Returns:
        (combined, dots, sqnorms):

        * combined: as from `combine`.
        * dots: (K,) or (R, K): <g_n, combined> over all parameters, with combined before it is rounded. With groups:
          (G, K) or (G, R, K).
        * sqnorms: (K,): <g_n, g_n>. With groups: (G, K).
    """
    tasks = Tasks(grads)
    matrix, single = tasks.weights(weights)
    combined = tasks.out(out, len(matrix), single)
    index = tasks.groups(groups)
    dots, sqnorms = call(
        "combine_dots", tasks.direct, grads=tasks.rows, weights=matrix, out=combined, groups=index, backend=backend
    )
    if groups is None:
        sqnorms = sqnorms.view(tasks.count)
        dots = dots.view(tasks.count) if single else dots[0]
    elif single:
        dots = dots.squeeze(1)
    return (combined[0] if single else combined), dots, sqnorms


def dots(
    grads: Grads,
    direction: Iterable[Tensor | None],
    *,
    groups: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """The inner product of each task's gradient with one direction: <g_n, direction>, (K,), or (G, K) with groups.

    |error| <= 2e-6 |g_n| |direction| if no square of an element overflows or underflows in float32.

    Args:
        grads, groups, backend: as for all operators.
        direction: N tensors with the parameters' shapes, of any of the four dtypes; None is zero.
    """
    tasks = Tasks(grads)
    vector = tasks.direction(direction)
    index = tasks.groups(groups)
    if tasks.device is None:
        dispatch.check_asked("dots", backend)
        result = torch.zeros(max(index) + 1, tasks.count, dtype=torch.float64, device="cpu")
    else:
        result = call("dots", tasks.direct, grads=tasks.rows, direction=vector, groups=index, backend=backend)
    return result[0] if groups is None else result


def gram(grads: Grads, *, groups: Sequence[int] | None = None, backend: str | None = None) -> Tensor:
    """The Gram matrix of the tasks' gradients: <g_i, g_j>, (K, K), or (G, K, K) with groups. It is exactly symmetric.

    |error| <= 2e-6 |g_i| |g_j| if no square of an element overflows or underflows in float32.
    """
    tasks = Tasks(grads)
    index = tasks.groups(groups)
    if tasks.device is None:
        dispatch.check_asked("gram", backend)
        result = torch.zeros(max(index) + 1, tasks.count, tasks.count, dtype=torch.float64, device="cpu")
    else:
        result = call("gram", tasks.direct, grads=tasks.rows, groups=index, backend=backend)
    return result[0] if groups is None else result


def combine_adamw_(
    params: Iterable[Tensor],
    grads: Grads,
    weights: Weights,
    exp_avgs: Iterable[Tensor],
    exp_avg_sqs: Iterable[Tensor],
    *,
    step: float | Tensor,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    found_inf: Tensor | None = None,
    grad_scale: Tensor | None = None,
    groups: Sequence[int] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One AdamW update (Loshchilov and Hutter, ICLR 2019, Algorithm 2) with the combined gradient, in the same pass.

    If step, lr, found_inf or grad_scale are on a GPU, the host does not wait for them.

    Args:
        params, exp_avgs, exp_avg_sqs: N tensors each, updated in place as by torch.optim.AdamW. They do not change
            where no task has a gradient. Moments are float32, for float64 parameters float64. bfloat16 and float16
            parameters are updated in float32 with the unrounded combined gradient, and rounded once.
        grads, groups, backend: as for all operators.
        weights: (K,).
        step, lr: numbers or tensors of one element. step is the number of this update, which the caller counts from 1.
            A step below 1 or a negative lr is a ValueError. On a GPU they are not looked at: a step of 0 or less makes
            the parameters NaN.
        beta1, beta2, eps, weight_decay: as in torch.optim.AdamW.
        found_inf, grad_scale: tensors of one element, as in torch's fused optimizers. The combined gradient is divided
            by grad_scale. If found_inf is not 0, nothing is updated.

    Returns:
        (dots, sqnorms) as from `combine_dots`, for the gradients as given, before the division by grad_scale.
    """
    tasks = Tasks(grads)
    matrix, single = tasks.weights(weights)
    if not single:
        raise ValueError(
            f"weights has shape {tuple(matrix.shape)}, but an update takes one combination, ({tasks.count},)"
        )
    targets = tasks.tensors("params", params)
    averages = tasks.tensors("exp_avgs", exp_avgs, moments=True)
    squares = tasks.tensors("exp_avg_sqs", exp_avg_sqs, moments=True)
    tasks.check_shared([targets, averages, squares], ["params", "exp_avgs", "exp_avg_sqs"])
    settings = AdamW(
        tasks.scalar("step", step),
        tasks.scalar("lr", lr),
        float(beta1),
        float(beta2),
        float(eps),
        float(weight_decay),
        None if found_inf is None else tasks.scalar("found_inf", found_inf),
        None if grad_scale is None else tasks.scalar("grad_scale", grad_scale),
    )
    dots, sqnorms = call(
        "combine_adamw_",
        tasks.direct,
        params=targets,
        grads=tasks.rows,
        weights=matrix,
        exp_avgs=averages,
        exp_avg_sqs=squares,
        settings=settings,
        groups=tasks.groups(groups),
        backend=backend,
    )
    dots = dots[:, 0]
    return (dots[0], sqnorms[0]) if groups is None else (dots, sqnorms)


def graddrop(
    grads: Grads,
    *,
    seed: int,
    step: int = 0,
    leak: float | Sequence[float] = 0.0,
    positions: Sequence[int] | None = None,
    out: Sequence[Any] | None = None,
    backend: str | None = None,
) -> list[Any]:
    """The sum of the tasks' gradients with one of their two signs, chosen at random for every element.

    Gradient Sign Dropout (Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout",
    NeurIPS 2020, Algorithm 1). For an element with the gradients g_n,

        P = (1 + sum_n g_n / sum_n |g_n|) / 2        the share of the positive ones
        M_n = 1 if g_n > 0 and P > U, or g_n < 0 and P <= U; else 0
        result = sum_n (l_n + (1 - l_n) M_n) g_n     with l_n the leak

    The paper masks the gradients of activations. Here, as in TorchJD, they are those of parameters. The paper leaves
    open what happens if P = U: here that counts as P < U. If all gradients of an element are 0, the result is 0.

    The gradients are read once, and the result is written once. If gradients of an element have one sign only, all of
    them are kept. If one of them is not finite, the result is NaN; so it may be if the sum of their sizes overflows.
    For float32, the error of an element is at most (K + 1) 2^-24 sum_n |c_n g_n|, with c_n = l_n + (1 - l_n) M_n and
    the M_n that were chosen. P is computed in float32 or better (for float64 gradients in float64). So if P differs
    from U by less than (K + 4) 2^-24, backends may choose different signs.

    Parameters whose gradients are not contiguous are computed by the reference. A CUDA graph that captures a call
    repeats its random numbers.

    Args:
        grads, backend: as for all operators.
        seed, step: ints up to 2^62; only the seed may be negative. U depends on them and on the element's position, and
            on nothing else: neither on the backend, nor on the number of threads, nor on how memory is laid out. It has
            24 bits: U = (k + 1/2) 2^-24 with k from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
            1, 2, 3", SC 2011). The key is seed, the counter is (position // 4, step), each as two words of 32 bits, the
            low one first; and k are the upper bits of word number position % 4.
        leak: l_n, a number from 0 to 1 for all tasks, or K of them. 1 keeps all gradients of a task.
        positions: N ints of at least 0, the position of each parameter's first element. The others follow in row-major
            order. None: 2^40 i for parameter i. Give them if a tensor is only a part of a parameter.
        out: the result of an earlier call, as in `combine`.

    Returns:
        N tensors with the parameters' shapes and dtypes, None where no task has a gradient.
    """
    tasks = Tasks(grads)
    leaks = tasks.leak(leak)
    combined = tasks.out(out, 1, True)
    draws = tasks.draws(seed, step, positions)
    call("graddrop", tasks.direct, grads=tasks.rows, leak=leaks, out=combined, draws=draws, backend=backend)
    return combined[0]


def row_dots(x: Tensor, y: Tensor, rows: Tensor, tasks: int, *, backend: str | None = None) -> Tensor:
    """The inner products of the rows of two matrices, added by task: (K,), sum of <x_r, y_r> over the rows r of a task.

    If x holds the output gradients of a linear layer and y the outputs of that layer with a direction in place of its
    weight, this is the inner product of each task's weight gradient with the direction, and no gradient is formed. The
    elementwise product of x and y is not written; each of them is read once. Rows of one task that follow each other
    are fastest.

    A task without rows gets 0. |error of a task's sum| <= 2e-6 |x_n| |y_n|, with the norms of all its rows, if no
    product of two elements overflows or underflows in float32.

    Args:
        x, y: (R, W), each float32, bfloat16, float16 or float64, on one device. The rows may have gaps between them.
            Copied first: a matrix whose elements have gaps within a row (a transposed one), and both if their dtypes
            differ, except a 16-bit one with a float32 one.
        rows: (R,), int64 or int32, on the same device: the task of every row. A row with -1 belongs to no task and is
            left out. Other numbers outside 0 ... K - 1 are a ValueError on the CPU. On a GPU, where the host does not
            look at them, their rows are left out too.
        tasks: K, at least 1.
        backend: as for all operators.
    """
    matrices = RowMatrices(x, y, rows, tasks)
    result: Tensor = call("row_dots", matrices.direct, x=x, y=y, rows=matrices.rows, tasks=tasks, backend=backend)
    return result
