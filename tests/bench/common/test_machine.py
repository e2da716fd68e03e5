"""The machine that a result names."""

from __future__ import annotations

import pytest

from bench.common.machine import Machine


@pytest.mark.parametrize(
    ("cores", "threads", "text"),
    [(1, 1, "1 core, 1 thread"), (2, 1, "2 cores, 1 thread"), (4, 2, "4 cores, 2 threads")],
)
def test_one_is_no_plural(cores: int, threads: int, text: str) -> None:
    assert Machine("CPU", cores, threads, 1.0, "Linux").device("cpu") == f"CPU, {text}"
