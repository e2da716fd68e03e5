"""Curvature Aware Task Scaling (CATS) for PyTorch: a multi-task optimizer and the fused operators it uses.

The names are imported when they are first used: importing torch takes seconds, and the command ``cats`` has something
to say before that.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cats import curvature, engines, ops, weighting
    from cats.multitask import MultiTask, NonFiniteError
    from cats.optim import CATS

__version__ = "0.1.0"
__all__ = ["CATS", "MultiTask", "NonFiniteError", "__version__", "curvature", "engines", "ops", "weighting"]

# {public name: the module that has it}; the other public names are modules, and so are these values.
_MODULES = {"CATS": "optim", "MultiTask": "multitask", "NonFiniteError": "multitask"}

if not TYPE_CHECKING:  # a type checker would take every name for one of cats

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            value = getattr(import_module(f"cats.{_MODULES[name]}"), name)
        elif name in __all__ or name in _MODULES.values():
            value = import_module(f"cats.{name}")
        else:
            raise AttributeError(f"module 'cats' has no attribute {name!r}")
        globals()[name] = value  # __getattr__ is called for names that are not there
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES.values()})


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
