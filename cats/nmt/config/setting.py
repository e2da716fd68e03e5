"""A setting: its default, its help line, and the values that it may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Condition:
    """What a value must satisfy, in addition to its type, and the words for it in an error message."""

    text: str
    test: Callable[[Any], bool]


def between(least: int, most: int) -> Condition:
    """A number within bounds. The upper one is far above useful values: beyond it, memory or time would run out."""
    return Condition(f"at least {least} and at most {most:,}", lambda value: least <= value <= most)


POSITIVE_COUNT = between(1, 10**9)
COUNT = between(0, 10**9)
PAIRS = between(0, 10**12)
WIDTH = Condition("even, at least 2 and at most 65,536", lambda value: 2 <= value <= 65_536 and value % 2 == 0)
LAYERS = between(1, 200)
TOKENS = between(1, 10**7)  # in one batch
THREADS = between(0, 1024)
LENGTH = between(1, 10**9)  # of a line, in tokens; a very large one is how to say "no limit"
FINITE = Condition("finite and at least 0", lambda value: 0 <= value < math.inf)
POSITIVE = Condition("finite and above 0", lambda value: 0 < value < math.inf)
POSITIVE_OR_INF = Condition("above 0 (inf is allowed)", lambda value: value > 0)
NOT_NEGATIVE = Condition("at least 0 (inf is allowed)", lambda value: value >= 0)
RATIOS = Condition("finite numbers above 0", lambda value: all(0 < ratio < math.inf for ratio in value))
FRACTION = Condition("at least 0 and below 1", lambda value: 0 <= value < 1)
SHARE = Condition("above 0 and at most 1", lambda value: 0 < value <= 1)
SEED = Condition("between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32)
RATE = Condition(
    "'auto', or a finite number of at least 0",
    lambda v: v == "auto" if isinstance(v, str) else 0 <= v < math.inf,
)
FLOOR = Condition(
    "'auto', or a number of at least 0 and below 1",
    lambda v: v == "auto" if isinstance(v, str) else 0 <= v < 1,
)
BETAS = Condition(
    "two numbers, each at least 0 and below 1",
    lambda v: len(v) == 2 and all(0 <= b < 1 for b in v),
)
WEIGHTS = Condition(
    "'tokens', 'uniform' or a list with one finite number of at least 0 per task, not all of them 0",
    lambda v: v in ("tokens", "uniform") if isinstance(v, str) else any(v) and all(0 <= w < math.inf for w in v),
)


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    need: Condition | None = None,
) -> Any:
    """A dataclass field with its help line and the values that it may have."""
    metadata = {"help": help, "choices": choices, "need": need}
    return field(default=default, metadata=metadata)
