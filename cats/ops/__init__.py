"""The operators over per-task gradients: their public names. The contracts are in cats/ops/api.py."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from . import dispatch
from .api import combine, combine_adamw_, combine_dots, dots, graddrop, gram, row_dots

if TYPE_CHECKING:
    from .dispatch import backends
else:

    class _Backends(ModuleType):
        """The package cats.ops.backends, which can also be called."""

        def __call__(self) -> dict[str, str | None]:
            return dispatch.backends()

    # One name for two things: `cats.ops.backends()` says which backends can be used, and `cats.ops.backends` is the
    # package of their modules.
    from . import backends

    _Backends.__call__.__doc__ = dispatch.backends.__doc__
    sys.modules[backends.__name__].__class__ = _Backends

__all__ = ["backends", "combine", "combine_adamw_", "combine_dots", "dots", "graddrop", "gram", "row_dots"]
