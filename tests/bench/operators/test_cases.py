"""The suites, and the bytes that each operator must move."""

from __future__ import annotations

import math

import pytest
import torch

from bench.operators import cases
from bench.operators.cases import work


def test_transformer_base_is_the_published_model() -> None:
    shapes = cases.transformer_base()
    attention, ffn, norm = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512, 2 * 512
    assert len(shapes) == 1 + 6 * 16 + 6 * 26
    assert sum(map(math.prod, shapes)) == 32_000 * 512 + 6 * (3 * attention + 2 * ffn + 5 * norm)


@pytest.mark.parametrize(
    ("operator", "read", "written"),
    [
        ("combine", 4 * 8, 4),
        ("combine_dots", 4 * 8, 4),
        ("dots", 4 * 9, 0),
        ("gram", 4 * 8, 0),
        ("gram, combine", 2 * 4 * 8, 4),
        ("combine_adamw_", 4 * 8 + 12, 12),
    ],
)
def test_bytes_that_must_move(operator: str, read: int, written: int) -> None:
    least = work(operator, 8, 1000, torch.float32)
    assert (least.read, least.written, least.moved) == (1000 * read, 1000 * written, 1000 * (read + written))


def test_bytes_of_other_dtypes() -> None:
    assert work("combine_adamw_", 8, 1, torch.bfloat16).moved == 16 + 2 * 2 + 4 * 4
    assert work("combine_adamw_", 8, 1, torch.float64).moved == 64 + 2 * 8 + 4 * 8
    assert work("gram", 3, 1, torch.float16).read == 6
    with pytest.raises(ValueError, match="no operator 'sum'"):
        work("sum", 1, 1, torch.float32)


def test_every_suite_has_every_operator_and_distinct_names() -> None:
    for suite in (cases.quick(), cases.cpu(), cases.gpu()):
        names = [f"{op} {w.name}" for w in suite for op in w.operators]
        assert len(set(names)) == len(names)
        assert {op for w in suite for op in w.operators} >= {*cases.OPERATORS, cases.GRADDROP, cases.ROW_DOTS}
        assert all(set(w.compiled) <= set(w.operators) for w in suite)
    assert all(w.tasks * w.elements * w.dtype.itemsize > 0.8 * 2**30 for w in cases.gpu() if w.layout == "flat")
