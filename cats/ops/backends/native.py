"""The operators in C++ (csrc/*.cpp) for tensors on the CPU, with AVX-512, AVX2 or the baseline instructions.

Every operator reads the gradients once. Sums have the same bits on every run and for every number of threads; the last
bits depend on the instruction set. The error bounds of `cats.ops` hold for gradients of any magnitude: a block whose
squares do not fit into float32's range is summed again in float64. The kernels run on torch.get_num_threads() of
torch's own threads; a forked process uses one thread.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ..compiled import why_missing
from ..interface import AdamW, Draws, Limits
from ..layout import TYPES, HostPieces, RowPieces, host_pieces

try:
    from cats import _native
except ImportError as error:
    raise ImportError(why_missing("NATIVE", error)) from None

LIMITS = Limits(
    devices=("cpu",),
    directions={
        torch.float32: (torch.float32,),
        torch.bfloat16: (torch.bfloat16, torch.float32),
        torch.float16: (torch.float16, torch.float32),
        torch.float64: (torch.float64,),
    },
)
split = host_pieces


def combine(pieces: HostPieces, weights: Tensor) -> None:
    """Writes the R combinations for (R, K) weights."""
    weights = weights.contiguous()
    for work, _, _ in pieces.works:
        _native.combine(work, len(weights), weights.data_ptr(), 0, 0)


def combine_dots(pieces: HostPieces, weights: Tensor) -> tuple[Tensor, Tensor]:
    """`combine`; returns dots (G, R, K) with the combinations before rounding, and squared norms (G, K)."""
    weights = weights.contiguous()
    dots, sqnorms = _zeros(pieces, *weights.shape), _zeros(pieces, pieces.tasks)
    for work, _, _ in pieces.works:
        _native.combine(work, len(weights), weights.data_ptr(), dots.data_ptr(), sqnorms.data_ptr())
    return dots, sqnorms


def dots(pieces: HostPieces) -> tuple[Tensor]:
    """(G, K): the gradients' inner products with the direction."""
    result = _zeros(pieces, pieces.tasks)
    for work, (gradient, direction), _ in pieces.works:
        wide = direction is (torch.float64 if gradient is torch.float64 else torch.float32)
        _native.dots(work, wide, result.data_ptr())
    return (result,)


def gram(pieces: HostPieces) -> tuple[Tensor]:
    """(G, K, K), symmetric bit for bit."""
    result = _zeros(pieces, pieces.tasks, pieces.tasks)
    for work, _, _ in pieces.works:
        _native.gram(work, result.data_ptr())
    return (result,)


def combine_adamw_(pieces: HostPieces, weights: Tensor, settings: AdamW) -> tuple[Tensor, Tensor]:
    """AdamW with the combined gradient, computed in the moments' dtype and rounded once into the parameters.

    Returns dots (G, 1, K) and squared norms (G, K) of the gradients before grad_scale.
    """
    weights = weights.contiguous()
    dots, sqnorms = _zeros(pieces, *weights.shape), _zeros(pieces, pieces.tasks)
    step, lr, beta1, beta2, eps, weight_decay, found_inf, grad_scale = settings
    count, rate = step.item(), lr.item()
    options = (
        rate / (1 - beta1**count),
        1 - rate * weight_decay,
        beta1,
        beta2,
        eps,
        (1 - beta2**count) ** 0.5,
        1.0 if grad_scale is None else grad_scale.item(),
        found_inf is not None and found_inf.item() != 0,
    )
    for work, _, _ in pieces.works:
        _native.combine_adamw(work, weights.data_ptr(), *options, dots.data_ptr(), sqnorms.data_ptr())
    return dots, sqnorms


def graddrop(pieces: HostPieces, leak: Tensor, draws: Draws) -> None:
    """Writes the gradients' sums of one sign. leak: (1, K)."""
    for work, _, params in pieces.works:
        _native.graddrop(work, leak.data_ptr(), draws.seed, draws.step, [draws.positions[i] for i in params])


if not hasattr(_native, "graddrop"):  # a module that was built from older sources
    del graddrop


def row_dots(pieces: RowPieces) -> Tensor:
    """(K,): the inner products of the rows of two matrices, added by task."""
    x, y, rows, tasks = pieces
    result = torch.zeros(tasks, dtype=torch.float64, device="cpu")
    count, width = x.shape
    left, right = (x.data_ptr(), x.stride(0)), (y.data_ptr(), y.stride(0))
    kind = TYPES[x.dtype], y.dtype is torch.float32
    sizes = count, width, tasks
    _native.row_dots(*left, *right, rows.data_ptr(), *sizes, *kind, torch.get_num_threads(), result.data_ptr())
    return result


def _zeros(pieces: HostPieces, *shape: int) -> Tensor:
    """Statistics by group. The kernels add to them."""
    return torch.zeros(pieces.groups, *shape, dtype=torch.float64, device="cpu")


def instructions() -> str:
    """The instruction set that the kernels use on this processor."""
    return str(_native.instructions().name)


def _find_openmp() -> str | None:
    """The file of the OpenMP runtime that torch has loaded, if the kernels can use its threads; else None.

    A second OpenMP runtime in the process would start as many threads again, which compete with torch's. torch does not
    say which runtime it has loaded, and the file has another name in every wheel. So this looks for it among the files
    that are mapped into the process. /proc exists on Linux only; elsewhere the kernels use threads of their own.
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = sorted(set(re.findall(r"(/\S*/lib(?:gomp|iomp5|omp)[-.]\S*)$", maps, re.MULTILINE)))
    with_torch = [path for path in found if "/torch" in path]
    return next((path for path in [*with_torch, *found] if _native.use_openmp(path)), None)


openmp = _find_openmp()
