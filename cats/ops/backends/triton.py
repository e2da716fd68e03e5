"""The operators in Triton, on GPUs, or on the CPU in Triton's interpreter. The kernels are in cats.kernels.

This module and the kernels are imported only when this backend is asked for, because they import triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .. import nvidia
from ..device_table import DevicePieces, device_pieces
from ..interface import Dtypes, Limits, Row

try:
    import triton
except ImportError as error:
    raise ImportError(f"triton cannot be imported ({error}); pip install triton") from error

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):  # as in pyproject.toml: it does not compile the kernels
    raise ImportError(f"triton {triton.__version__} is too old: 3.6 or later is needed")

from cats.kernels import common
from cats.kernels.adamw import combine_adamw_
from cats.kernels.combine import MAX_COMBINATIONS, combine, combine_dots
from cats.kernels.dots import dots
from cats.kernels.graddrop import graddrop
from cats.kernels.gram import gram
from cats.kernels.row_dots import row_dots


def _too_old() -> str | None:
    """Why the driver cannot load what Triton's assembler writes. None also if Triton does not tell its version."""
    try:
        major, minor = map(int, triton.knobs.nvidia.ptxas.version.split("."))
    except (AttributeError, RuntimeError, ValueError):
        return None
    return nvidia.why_too_old(1000 * major + 10 * minor, "Triton compiles with")


def _no_compiler() -> str | None:
    """Why Triton cannot compile C code. None also if the user has given it a function of their own for that."""
    try:
        if triton.knobs.build.impl is not None:
            return None
    except AttributeError:  # an older Triton
        pass
    return nvidia.why_no_compiler()


if not common.INTERPRETED.value:
    if lack := nvidia.why_no_device():
        raise ImportError(f"{lack} (with TRITON_INTERPRET=1 in the environment, kernels run in Triton's interpreter)")
    if lack := _no_compiler() or _too_old():
        raise ImportError(lack)

__all__ = ["LIMITS", "combine", "combine_adamw_", "combine_dots", "dots", "graddrop", "gram", "row_dots", "split"]

LIMITS = Limits(
    tasks=common.MAX_TASKS,
    combinations=MAX_COMBINATIONS,
    gram_tasks={torch.float64: 0},  # a matrix of float64 sums does not fit into a program's registers
)


def split(
    grads: Sequence[Row], others: Sequence[Row], groups: Sequence[int], takes: Callable[[Dtypes], bool] | None
) -> tuple[DevicePieces, list[int]]:
    """`device_pieces`, with the fallback in the order of the parameters, which is the order of its sums."""
    pieces, fallback = device_pieces(grads, others, groups, takes, common.upload)
    return pieces, sorted(fallback)
