"""Curvature Aware Task Scaling (CATS) for PyTorch, and the operators it stands on."""

from __future__ import annotations

from pathlib import Path

from cats import ops, weighting
from cats.optim import CATS, MultiTask, NonFiniteError

__version__ = "0.1.0"
__all__ = ["CATS", "MultiTask", "NonFiniteError", "__version__", "ops", "weighting"]

# In a clone the Triton kernels lie beside this folder; an install has them inside it, as cats.kernels. With
# the clone as working directory `import cats` means the clone, installed or not: its kernels/ is found here.
_clone = Path(__file__).resolve().parent.parent
if (_clone / "setup.py").is_file() and (_clone / "kernels" / "__init__.py").is_file():
    __path__.append(str(_clone))
