"""The operators over per-task gradients: their public names. The contracts are in cats/ops/api.py."""

# The function `backends` hides the subpackage of that name, which api has imported by now: import a backend with
# `from cats.ops.backends import ...`.
from .api import backends, combine, combine_adamw_, combine_dots, dots, gram

__all__ = ["backends", "combine", "combine_adamw_", "combine_dots", "dots", "gram"]
