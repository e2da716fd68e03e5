"""From losses to gradients, and to the numbers <g_n, ḡ>. See ``engine`` of :class:`cats.MultiTask`."""

from .rows import rows

__all__ = ["rows"]
