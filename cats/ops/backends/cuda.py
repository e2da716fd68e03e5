"""The operators in CUDA C++ (csrc/*.cu), for tensors on NVIDIA GPUs with compute capability 8.0 (A100) or later.

Every operator reads the gradients once. Only combinations with more rows of weights read them again: for every MAX_ROWS
rows, or with more than MAX_ROWS_TASKS tasks for every row. All kernels are launched on the current stream of the
gradients' device, and nothing waits for the device, so calls can be captured in a CUDA graph. Numbers of the host
(addresses, weights, settings) reach the device as arguments of kernels that write them to its memory. After these, each
reading of the gradients launches one kernel for every combination of dtypes and alignments among the parameters, which
reads the addresses and the chunks of cats/ops/device_table.py, and one kernel that adds the chunks' sums in a fixed
order. If the sums need more than WORKSPACE bytes, there are several ranges of chunks, each with kernels of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import nvidia
from ..compiled import why_missing
from ..device_table import DevicePieces, Launch, device_pieces
from ..interface import AdamW, Draws, Limits
from ..layout import TYPES, RowPieces

try:
    from cats import _native
except ImportError as error:
    raise ImportError(why_missing("CUDA", error)) from None
if not _native.cuda:
    raise ImportError(why_missing("CUDA", "the compiled module has no CUDA kernels"))
if not hasattr(_native, "cuda_toolkit"):
    raise ImportError("the compiled module is older than this source; install cats again")
if reason := nvidia.why_no_device() or nvidia.why_too_old(_native.cuda_toolkit(), "cats was built with"):
    raise ImportError(reason)

LIMITS = Limits(
    devices=("cuda",),
    tasks=128,
    gram_tasks={torch.float64: 8},
    directions={dtype: (dtype, torch.float32) for dtype in TYPES},
)
# A pass computes at most MAX_ROWS combinations, or one with more than MAX_ROWS_TASKS tasks. See csrc/combine.cuh.
MAX_ROWS, MAX_ROWS_TASKS = 4, 64
WORKSPACE = 48 << 20  # bytes of partial sums at most; if more are needed, the chunks are processed in several ranges

_kernels: Any = _native


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a contiguous tensor of 8-byte elements from the CPU to the device: an `Upload` of device_table.py."""
    copy = torch.empty_like(tensor, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    _kernels.cuda_write(copy.data_ptr(), tensor.data_ptr(), tensor.numel(), stream)
    return copy


split = functools.partial(device_pieces, upload=upload)


@functools.cache
def lacks(device: torch.device) -> str | None:
    """Why this GPU cannot run the kernels; None if it can."""
    return nvidia.why_no_machine_code(torch.cuda.get_device_capability(device), _native.cuda_toolkit())


def combine(pieces: DevicePieces, weights: Tensor) -> None:
    """Writes the R combinations for (R, K) weights."""
    with torch.cuda.device(pieces.device):
        _combine(_Pass(pieces), weights, statistics=False)


def combine_dots(pieces: DevicePieces, weights: Tensor) -> tuple[Tensor, Tensor]:
    """`combine`; returns dots (G, R, K) with the combinations before rounding, and squared norms (G, K)."""
    with torch.cuda.device(pieces.device):
        return _combine(_Pass(pieces), weights, statistics=True)


def dots(pieces: DevicePieces) -> tuple[Tensor]:
    """(G, K): the gradients' inner products with the direction."""
    with torch.cuda.device(pieces.device):
        work = _Pass(pieces)
        total = work.sums(work.tasks)
        for launch, common, partials in work.launches(work.tasks, total, total):
            is_float = launch.dtypes[1] is torch.float32
            _kernels.cuda_dots(*common, is_float, partials, work.stream)
    return (total,)


def gram(pieces: DevicePieces) -> tuple[Tensor]:
    """(G, K, K), symmetric bit for bit."""
    tasks = pieces.tasks
    with torch.cuda.device(pieces.device):
        work = _Pass(pieces)
        total = work.sums(tasks, tasks)
        for _, common, partials in work.launches(tasks * (tasks + 1) // 2, total):
            _kernels.cuda_gram(*common, partials, work.stream)
    return (total,)


def combine_adamw_(pieces: DevicePieces, weights: Tensor, settings: AdamW) -> tuple[Tensor, Tensor]:
    """AdamW with the combined gradient; returns dots (G, 1, K) and squared norms (G, K) before grad_scale."""
    step, lr, beta1, beta2, eps, weight_decay, found_inf, grad_scale = settings
    tasks, device = pieces.tasks, pieces.device
    with torch.cuda.device(device):
        work = _Pass(pieces)
        weights = _on_device(weights, device)
        scale, skip = 1.0 if grad_scale is None else grad_scale, 0.0 if found_inf is None else found_inf
        # The last zero is room for one more number, which the kernel below computes.
        numbers = _numbers(device, step, lr, scale, skip, 0.0)
        constants = numbers.data_ptr()
        _kernels.cuda_prepare_adamw(constants, beta1, beta2, weight_decay, work.stream)
        statistics = work.sums(1, tasks), work.sums(tasks)
        for _, common, partials in work.launches(2 * tasks, *statistics):
            arguments = weights.data_ptr(), constants, beta1, beta2, eps
            _kernels.cuda_combine_adamw(*common, *arguments, partials, work.stream)
    return statistics


def graddrop(pieces: DevicePieces, leak: Tensor, draws: Draws) -> None:
    """Writes the gradients' sums of one sign. leak: (1, K)."""
    with torch.cuda.device(pieces.device):
        work = _Pass(pieces)
        leak, words = _on_device(leak, work.device), upload(draws.select(pieces.params).words(), work.device)
        for _, common, _ in work.launches(0, leak):
            _kernels.cuda_graddrop(*common, leak.data_ptr(), words.data_ptr(), work.stream)


if not hasattr(_native, "cuda_graddrop"):  # a module that was built from older sources
    del graddrop


def row_dots(pieces: RowPieces) -> Tensor:
    """(K,): the inner products of the rows of two matrices, added by task."""
    x, y, rows, tasks = pieces
    count, width = x.shape
    together = rows_together(count, width)
    with torch.cuda.device(x.device):
        # The sums of every block of threads. torch adds them in an order that depends on the shape alone.
        partials = torch.empty(-(-count // together), tasks, dtype=torch.float64, device=x.device)
        left, right = (x.data_ptr(), x.stride(0)), (y.data_ptr(), y.stride(0))
        sizes, kind = (count, width, together), (TYPES[x.dtype], y.dtype is torch.float32, pieces.aligned)
        stream = torch.cuda.current_stream(x.device).cuda_stream
        _kernels.cuda_row_dots(*left, *right, rows.data_ptr(), *sizes, *kind, tasks, partials.data_ptr(), stream)
        return partials.sum(0)


def rows_together(count: int, width: int) -> int:
    """How many rows a block of threads takes: enough to keep it busy, and so few that there are blocks for a large GPU.

    It depends on the sizes alone, so the order of the sums does.
    """
    least = max(1, min(4, 8192 // width))
    most = max(least, min(64, 131_072 // width))
    return max(least, min(most, count // 1024))


def _combine(work: _Pass, weights: Tensor, statistics: bool) -> tuple[Tensor, Tensor]:
    """`combine_dots`; without statistics, the sums that it returns are not written."""
    tasks = work.tasks
    at_once = MAX_ROWS if tasks <= MAX_ROWS_TASKS else 1
    weights = _on_device(weights, work.device)
    sqnorms = work.sums(tasks)
    parts = []
    for row in range(0, len(weights), at_once):
        rows = min(at_once, len(weights) - row)
        parts.append(work.sums(rows, tasks))
        for _, common, partials in work.launches((rows + 1) * tasks if statistics else 0, parts[-1], sqnorms):
            address = weights[row].data_ptr()
            _kernels.cuda_combine(*common, row, rows, address, partials, work.stream)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1), sqnorms


class _Pass:
    """The launches that process every chunk once."""

    def __init__(self, pieces: DevicePieces) -> None:
        self.table, self.geometry, self.device, self.tasks, self.groups, _ = pieces
        self.stream = torch.cuda.current_stream(self.device).cuda_stream

    def sums(self, *shape: int) -> Tensor:
        """Memory for sums by group. The kernels write all of it if there is a chunk; otherwise it holds zeros."""
        make = torch.empty if self.geometry.chunk_count else torch.zeros
        return make(self.groups, *shape, dtype=torch.float64, device=self.device)

    def launches(
        self, values: int, left: Tensor, right: Tensor | None = None
    ) -> Iterator[tuple[Launch, tuple[int, ...], int]]:
        """For each launch: its description, its first arguments, and the address for its chunks' sums.

        values: the number of sums per chunk. After the caller has launched a range of chunks, their sums are added to
        left and right. Without right, the sums are triangles of Gram matrices. Without values, neither is used.
        """
        chunks, order, bounds, launches = self.geometry
        table = self.table.data_ptr(), self.table.shape[1], chunks.data_ptr()
        count = len(order)
        batch = max(1, WORKSPACE // (8 * values)) if values else max(1, count)
        partials = torch.empty(min(batch, count) * values, dtype=torch.float64, device=self.device)
        for begin in range(0, count, batch):
            end = min(begin + batch, count)
            for launch in launches:
                first, last = max(begin, launch.first), min(end, launch.first + launch.chunks)
                if first < last:
                    kind = TYPES[launch.dtypes[0]], launch.aligned, self.tasks
                    sums = partials.data_ptr() + (first - begin) * values * 8 if values else 0
                    yield launch, (*table, first, last - first, *kind), sums
            if values:
                where = order.data_ptr(), bounds.data_ptr(), self.groups, begin, end - begin, partials.data_ptr()
                if right is None:
                    _kernels.cuda_reduce_gram(*where, self.tasks, left.data_ptr(), begin > 0, self.stream)
                else:
                    split = left[0].numel()
                    targets = left.data_ptr(), right.data_ptr()
                    _kernels.cuda_reduce(*where, values, split, *targets, begin > 0, self.stream)


def _on_device(weights: Tensor, device: torch.device) -> Tensor:
    """The weights on the device, contiguous. Those on the device are not copied."""
    weights = weights.contiguous()
    return upload(weights, device) if weights.device.type == "cpu" and device.type != "cpu" else weights


def _numbers(device: torch.device, *numbers: Tensor | float) -> Tensor:
    """The numbers as one float64 tensor on the device. The host does not wait for those that are there."""
    here = [0.0 if isinstance(x, Tensor) and x.device.type != "cpu" else float(x) for x in numbers]
    copy = upload(torch.tensor(here, dtype=torch.float64, device="cpu"), device)
    for place, x in zip(copy.unbind(), numbers, strict=True):
        if isinstance(x, Tensor) and x.device.type != "cpu":
            place.copy_(x, non_blocking=True)
    return copy
