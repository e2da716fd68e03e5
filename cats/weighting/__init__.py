"""Task weightings compute one weight per task, from losses, dots and norms or from a Gram matrix."""

from .cats import CATS
from .gramian import Gramian
from .protocol import Weighting
from .static import Static

__all__ = ["CATS", "Gramian", "Static", "Weighting"]
