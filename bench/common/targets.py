"""Targets: what a measurement should reach, and whether it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .tables import table


@dataclass(frozen=True)
class TargetResult:
    """`worst` names the case with the worst value. `at_most`: the value should not exceed the bound."""

    target: str
    backend: str
    value: float
    bound: float
    at_most: bool
    met: bool
    worst: str


def judge(target: str, backend: str, value: float, bound: float, at_most: bool, worst: str) -> TargetResult:
    """Compares a value with its bound."""
    met = value <= bound if at_most else value >= bound
    return TargetResult(target, backend, value, bound, at_most, met, worst)


def targets_table(results: Sequence[TargetResult], of: str = "backend") -> list[str]:
    """The lines of a Markdown table, one row a target. of: what was measured; the head of the second column."""
    rows = [
        (
            t.target,
            t.backend,
            f"{t.value:.3g}",
            f"{'≤' if t.at_most else '≥'} {t.bound:g}",
            "met" if t.met else "missed",
            t.worst,
        )
        for t in results
    ]
    return table(("target", of, "reached", "target value", "", "worst case"), rows)
