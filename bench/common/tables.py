"""Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table. Columns of numbers are right-aligned."""
    number = re.compile(r"^[≤≥]?\s?-?[\d.,]*(e[+-]?\d+)?( \(|$)")
    numeric = [all(number.match(str(row[i])) for row in rows) for i in range(len(head))]
    marks = ["---:" if right else "---" for right in numeric]
    return [f"| {' | '.join(map(str, cells))} |" for cells in (head, marks, *rows)]
