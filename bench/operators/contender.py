"""What is measured: a function that computes an operator, and what kind of implementation it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .oracle import Outcome

# The values are part of the JSON files.
BACKEND, COMPOSED, EAGER, COMPILED, TORCHJD = "backend", "backend + torch", "eager", "compiled", "torchjd"


@dataclass
class Contender:
    """`run` computes the operator and returns where the results are.

    `counts`: whether it is considered when the best of its kind is chosen.
    """

    name: str
    kind: str
    run: Callable[[], Outcome]
    counts: bool = True
