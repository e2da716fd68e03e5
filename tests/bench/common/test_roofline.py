"""The roofline: bytes that a probe moves, and the time of the operations."""

from __future__ import annotations

import pytest
import torch

from bench.common import roofline
from bench.operators import cases
from bench.operators.cases import Problem, flat, work

CPU = torch.device("cpu")


def test_operations_run_on_the_fastest_unit() -> None:
    peak = {"float32": 1e9, "float64": 1e8, "tf32": 1e12}
    combine, gram = work("combine", 32, 1000, torch.float32), work("gram", 32, 1000, torch.float32)
    assert roofline.operation_seconds(combine, torch.float32, peak) == pytest.approx(2 * 32 * 1000 / 1e9)
    # Vector units compute the triangle: 32 · 33 operations a column. Matrix units compute three squares of 2 · 32².
    assert roofline.operation_seconds(gram, torch.float32, peak) == pytest.approx(6 * 32**2 * 1000 / 1e12)
    assert roofline.operation_seconds(gram, torch.float32, {"float32": 1e9}) == pytest.approx(32 * 33 * 1000 / 1e9)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probes_stay_inside_their_memory(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    """The probe moves the operator's bytes: in one part, or in two parts for two passes."""
    operators = (*cases.OPERATORS, cases.GRADDROP, cases.TWO_PASSES)
    problem = Problem(flat(3, 1001, dtype=dtype, operators=operators), CPU)
    moved = []

    class Native:
        @staticmethod
        def traffic(source: int, read: int, target: int, written: int, in_place: bool, threads: int) -> None:
            assert source == problem.source.data_ptr() and read <= problem.source.numel()
            assert target == problem.target.data_ptr() and written <= problem.target.numel()
            assert in_place == (operator == "combine_adamw_")
            moved.append((read + written if in_place else read, written))

    monkeypatch.setattr(roofline, "_native", Native if native else None)
    for operator in operators:
        moved.clear()
        least = problem.work(operator)
        name, call = roofline.probe(least, problem.source, problem.target)
        call()
        assert name == ("cats._native.traffic" if native else "torch copy_ and sum")
        if native:
            assert (sum(r for r, _ in moved), sum(w for _, w in moved)) == (least.read, least.written)
