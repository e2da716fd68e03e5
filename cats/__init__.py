"""Curvature Aware Task Scaling (CATS) for PyTorch: a multi-task optimizer and the fused operators it uses."""

from __future__ import annotations

from pathlib import Path

from cats import curvature, engines, ops, weighting
from cats.multitask import MultiTask, NonFiniteError
from cats.optim import CATS

__version__ = "0.1.0"
__all__ = ["CATS", "MultiTask", "NonFiniteError", "__version__", "curvature", "engines", "ops", "weighting"]


def _find_kernels_of_a_clone() -> None:
    """Makes cats.kernels importable in a clone.

    The Triton kernels are in kernels/, beside cats/. An install puts them into the package, as cats.kernels. In a clone
    they stay outside, so the folder that holds both is added to the places where submodules of cats are searched. This
    also holds if the library is installed but the clone is the working directory: then ``import cats`` finds the clone.
    """
    clone = Path(__file__).resolve().parent.parent
    if (clone / "setup.py").is_file() and (clone / "kernels" / "__init__.py").is_file():
        __path__.append(str(clone))


_find_kernels_of_a_clone()
