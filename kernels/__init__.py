"""Triton kernels for the operators of cats.ops, one file an operator; installed as the package cats.kernels.

This is the backend `triton`, with the functions of cats.reference; it is imported only when that backend is asked for,
so that triton is loaded only where it is used. A file here holds kernels and the functions that launch them; checking
arguments, registering operators and choosing between backends is cats/ops.py's.

Gradients are read once where autograd left them, through the device table of cats/table.py, and statistics are summed
in a fixed order. What that table leaves out as odd, and more than 128 tasks, are for cats.reference.

Import these modules as cats.kernels, never as kernels: that top-level name belongs to another package.
"""

import torch

try:
    import triton as _triton  # noqa: F401
except ImportError as error:
    raise ImportError(f"triton cannot be imported ({error}); pip install triton") from error

from .common import INTERPRETED as _INTERPRETED

if not (_INTERPRETED.value or torch.cuda.is_available()):
    raise ImportError("no GPU (with TRITON_INTERPRET=1 in the environment, the kernels run in Triton's interpreter)")

from .adamw import combine_adamw_
from .combine import combine, combine_dots
from .dots import dots
from .gram import gram

__all__ = ["combine", "combine_adamw_", "combine_dots", "dots", "gram"]
