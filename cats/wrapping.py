"""How an optimizer takes part of its attributes from elsewhere, and keeps its methods out of torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def attribute_of(owner: str, name: str) -> Any:
    """A property that reads, writes and deletes the attribute ``name`` of the object that ``self.<owner>`` is."""
    return property(
        lambda self: getattr(getattr(self, owner), name),
        lambda self, value: setattr(getattr(self, owner), name, value),
        lambda self: delattr(getattr(self, owner), name),
    )


def not_compiled(method: Callable[..., Any]) -> Any:
    """torch.compile does not compile the method: in a compiled training step it is a graph break.

    ``torch.compiler.disable`` as a decorator would do the same, but it imports the compiler, which is slow.
    """

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(method)(*args, **kwargs)
        return method(*args, **kwargs)

    return wrapper
