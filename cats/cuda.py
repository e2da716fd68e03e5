"""The operators in CUDA C++ (csrc/*.cu), for tensors on NVIDIA GPUs from A100 on; one pass over memory.

The functions are those of `cats.reference`. Everything is launched on the current stream of the gradients' device and
nothing waits for it, so that calls can be captured in a CUDA graph. A call has one launch for every combination of
dtypes and alignments among the parameters, over the table of `cats.table`, and one that adds the chunks' sums in a
fixed order. Left to `cats.reference`: parameters that are not flat memory, more than 128 tasks, float64 Gram matrices
of more than 8, and directions of a dtype that is neither the gradients' nor float32.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference, table

try:
    from . import _native
except ImportError as error:
    try:
        from . import _build
    except ImportError:
        raise ImportError(f"cats was not installed with its compiled module ({error})") from None
    raise ImportError(_build.CUDA or str(error)) from None
if not _native.cuda:
    from . import _build

    raise ImportError(_build.CUDA or "the compiled module has no CUDA kernels")
if not torch.cuda.is_available():
    raise ImportError("no CUDA device was found" if torch.version.cuda else "this torch is built without CUDA")
if torch.cuda.get_device_capability() < (8, 0):
    raise ImportError("the CUDA kernels need compute capability 8.0 (A100) or later")

DEVICES = ("cuda",)
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # as csrc/device.cuh numbers them
MAX_TASKS = 128
MAX_TASKS_GRAM_FLOAT64 = 8
MAX_ROWS, MAX_ROWS_TASKS = 4, 64  # in one pass, and up to how many tasks; as in csrc/combine.cuh
WORKSPACE = 48 << 20  # bytes of partial sums at most; what would need more goes chunk range by chunk range

_kernels: Any = _native

Row = Sequence[Tensor | None]


def combine(grads: Sequence[Row], weights: Tensor, out: Sequence[Row]) -> None:
    """out[r][i] = sum_n weights[r, n] * grads[n][i]."""
    device = _device(grads)
    if len(grads) > MAX_TASKS or device is None:
        reference.combine(grads, weights, out)
        return
    flat = table.flatten(grads, out)
    with torch.cuda.device(device):
        _combine(_Pass(flat, [0] * len(grads[0]), device, len(grads)), weights, statistics=False)
        if flat.odd:
            reference.combine(table.select(grads, flat.odd), weights, table.select(out, flat.odd))


def combine_dots(
    grads: Sequence[Row], weights: Tensor, out: Sequence[Row], groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`combine`, and dots (G, R, K) with the combinations before rounding, and squared norms (G, K), both float64."""
    device = _device(grads)
    if len(grads) > MAX_TASKS or device is None:
        return reference.combine_dots(grads, weights, out, groups)
    flat = table.flatten(grads, out)
    with torch.cuda.device(device):
        statistics = _combine(_Pass(flat, groups, device, len(grads)), weights, statistics=True)
        if flat.odd:
            rest = [table.select(rows, flat.odd) for rows in (grads, out)]
            found = reference.combine_dots(rest[0], weights, rest[1], [groups[i] for i in flat.odd])
            table.add_statistics(statistics, found)
    return statistics


def dots(grads: Sequence[Row], direction: Row, groups: Sequence[int]) -> Tensor:
    """(G, K) float64: <grads[n], direction>; a None in the direction is zero."""
    tasks, device = len(grads), _device(grads)
    if tasks > MAX_TASKS or device is None:
        return reference.dots(grads, direction, groups)
    flat = _fitting(
        table.flatten(grads, [direction]), tasks + 1, lambda dtypes: dtypes[1] in (dtypes[0], torch.float32)
    )
    with torch.cuda.device(device):
        work = _Pass(flat, groups, device, tasks)
        total = work.sums(tasks)
        for launch, common, partials in work.launches(tasks, total, total):
            is_float = launch.dtypes[1] is torch.float32
            _kernels.cuda_dots(*common, is_float, partials, work.stream)
        if flat.odd:
            rest = [table.select(rows, flat.odd) for rows in (grads, [direction])]
            found = reference.dots(rest[0], rest[1][0], [groups[i] for i in flat.odd])
            table.add_statistics([total], [found])
    return total


def gram(grads: Sequence[Row], groups: Sequence[int]) -> Tensor:
    """(G, K, K) float64, symmetric bit for bit."""
    tasks, device = len(grads), _device(grads)
    if tasks > MAX_TASKS or device is None:
        return reference.gram(grads, groups)
    few = tasks <= MAX_TASKS_GRAM_FLOAT64
    flat = _fitting(table.flatten(grads), tasks, lambda dtypes: few or dtypes[0] is not torch.float64)
    with torch.cuda.device(device):
        work = _Pass(flat, groups, device, tasks)
        total = work.sums(tasks, tasks)
        for _, common, partials in work.launches(tasks * (tasks + 1) // 2, total):
            _kernels.cuda_gram(*common, partials, work.stream)
        if flat.odd:
            found = reference.gram(table.select(grads, flat.odd), [groups[i] for i in flat.odd])
            table.add_statistics([total], [found])
    return total


def combine_adamw_(
    params: Row,
    grads: Sequence[Row],
    weights: Tensor,
    exp_avgs: Row,
    exp_avg_sqs: Row,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    found_inf: Tensor | None,
    grad_scale: Tensor | None,
    groups: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """AdamW on the combination of one row of weights; dots (G, 1, K) and squared norms (G, K) of the gradients."""
    tasks, device = len(grads), _device(grads)
    options = (step, lr, beta1, beta2, eps, weight_decay, found_inf, grad_scale)
    if tasks > MAX_TASKS or device is None:
        return reference.combine_adamw_(params, grads, weights, exp_avgs, exp_avg_sqs, *options, groups)
    others = [params, exp_avgs, exp_avg_sqs]
    flat = table.flatten(grads, others)
    with torch.cuda.device(device):
        work = _Pass(flat, groups, device, tasks)
        zero, one = torch.zeros((), device="cpu"), torch.ones((), device="cpu")
        found_inf = zero if found_inf is None else found_inf
        grad_scale = one if grad_scale is None else grad_scale
        numbers = _numbers(device, weights, step, lr, grad_scale, found_inf, zero)  # the kernels need one more place
        constants = numbers[tasks:].data_ptr()
        _kernels.cuda_prepare_adamw(constants, beta1, beta2, weight_decay, work.stream)
        statistics = work.sums(1, tasks), work.sums(tasks)
        for _, common, partials in work.launches(2 * tasks, *statistics):
            arguments = numbers.data_ptr(), constants, beta1, beta2, eps
            _kernels.cuda_combine_adamw(*common, *arguments, partials, work.stream)
        if flat.odd:
            targets, averages, squares = table.select(others, flat.odd)
            rest = table.select(grads, flat.odd)
            members = [groups[i] for i in flat.odd]
            found = reference.combine_adamw_(targets, rest, weights, averages, squares, *options, members)
            table.add_statistics(statistics, found)
    return statistics


def _combine(work: _Pass, weights: Tensor, statistics: bool) -> tuple[Tensor, Tensor]:
    """`combine_dots` of the parameters that are flat memory; the sums are not written if they are not wanted."""
    tasks = work.tasks
    at_once = MAX_ROWS if tasks <= MAX_ROWS_TASKS else 1
    numbers = _numbers(work.device, weights)
    sqnorms = work.sums(tasks)
    parts = []
    for row in range(0, len(weights), at_once):
        rows = min(at_once, len(weights) - row)
        parts.append(work.sums(rows, tasks))
        for _, common, partials in work.launches((rows + 1) * tasks if statistics else 0, parts[-1], sqnorms):
            address = numbers[row * tasks :].data_ptr()
            _kernels.cuda_combine(*common, row, rows, address, partials, work.stream)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1), sqnorms


class _Pass:
    """The launches that take every chunk of a table once."""

    def __init__(self, flat: table.Flat, groups: Sequence[int], device: torch.device, tasks: int) -> None:
        self.plan = table.plan(flat, groups, device)
        self.groups = max(groups) + 1
        self.device = device
        self.tasks = tasks
        self.stream = torch.cuda.current_stream(device).cuda_stream

    def sums(self, *shape: int) -> Tensor:
        """Sums by group: memory for the kernels, which write all of it if there is a chunk, or else zeros."""
        make = torch.empty if self.plan.count else torch.zeros
        return make(self.groups, *shape, dtype=torch.float64, device=self.device)

    def launches(
        self, values: int, left: Tensor, right: Tensor | None = None
    ) -> Iterator[tuple[table.Launch, tuple[int, ...], int]]:
        """For each launch what it is, its first arguments, and the address of its chunks' sums, `values` a chunk.

        When the caller has launched a range of chunks, their sums are added to left and right, without right as the
        triangles of Gram matrices.
        """
        plan, words = self.plan, self.plan.words.data_ptr()
        batch = max(1, WORKSPACE // (8 * values)) if values else max(1, plan.count)
        partials = torch.empty(min(batch, plan.count) * values, dtype=torch.float64, device=self.device)
        for begin in range(0, plan.count, batch):
            end = min(begin + batch, plan.count)
            for launch in plan.launches:
                first, last = max(begin, launch.first), min(end, launch.first + launch.chunks)
                if first < last:
                    kind = TYPES[launch.dtypes[0]], launch.aligned, self.tasks
                    sums = partials.data_ptr() + (first - begin) * values * 8 if values else 0
                    yield launch, (words, plan.width, plan.chunks, first, last - first, *kind), sums
            if values:
                where = words, plan.order, plan.bounds, self.groups, begin, end - begin, partials.data_ptr()
                if right is None:
                    _kernels.cuda_reduce_gram(*where, self.tasks, left.data_ptr(), begin > 0, self.stream)
                else:
                    split = left[0].numel()
                    targets = left.data_ptr(), right.data_ptr()
                    _kernels.cuda_reduce(*where, values, split, *targets, begin > 0, self.stream)


_captured: list[Tensor] = []  # pinned memory that a CUDA graph copies from whenever it is replayed


def _numbers(device: torch.device, *tensors: Tensor) -> Tensor:
    """The elements of all tensors as one float64 tensor on the device. Those on the CPU travel in one copy."""
    sizes = [t.numel() for t in tensors]
    host = torch.zeros(sum(sizes), dtype=torch.float64, pin_memory=device.type == "cuda")
    for part, t in zip(host.split(sizes), tensors, strict=True):
        if t.device.type == "cpu":
            part.copy_(t.reshape(-1))
    numbers = host.to(device, non_blocking=True)
    for part, t in zip(numbers.split(sizes), tensors, strict=True):
        if t.device.type != "cpu":
            part.copy_(t.reshape(-1), non_blocking=True)
    if torch.cuda.is_current_stream_capturing():
        _captured.append(host)
    return numbers


def _fitting(flat: table.Flat, width: int, fits: Callable[[tuple[torch.dtype, ...]], bool]) -> table.Flat:
    """The same with the parameters among the odd whose dtypes no kernel takes."""
    kept = [j for j, dtypes in enumerate(flat.dtypes) if fits(dtypes)]
    if len(kept) == len(flat.params):
        return flat
    pointers = array.array("q")
    for j in kept:
        pointers.extend(flat.pointers[j * width : (j + 1) * width])
    return flat._replace(
        params=[flat.params[j] for j in kept],
        numels=[flat.numels[j] for j in kept],
        dtypes=[flat.dtypes[j] for j in kept],
        aligned=[flat.aligned[j] for j in kept],
        pointers=pointers,
        odd=flat.odd + [i for j, i in enumerate(flat.params) if j not in kept],
    )


def _device(grads: Sequence[Row]) -> torch.device | None:
    return next((g.device for row in grads for g in row if g is not None), None)
