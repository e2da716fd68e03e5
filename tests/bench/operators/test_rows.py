"""The cases of row_dots: exact results, contenders, and one case from end to end."""

from __future__ import annotations

import pytest
import torch

from bench.operators import rows, run
from bench.operators.cases import ROW_DOTS, RowsWorkload
from bench.operators.contender import BACKEND, COMPILED, EAGER, Contender
from bench.operators.oracle import Outcome

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_contender_passes_the_check(uncompiled: None, dtype: torch.dtype, mixed: bool) -> None:
    problem, oracle = run.prepare(RowsWorkload(3, 50, 70, dtype, mixed), CPU)
    assert isinstance(problem, rows.RowsProblem) and isinstance(oracle, rows.RowsOracle)
    kinds, names = [], []
    for contender in run.contenders(ROW_DOTS, problem, []):
        error, _ = run.check(ROW_DOTS, contender, problem, oracle)
        assert contender.kind != BACKEND or error <= 1
        kinds.append(contender.kind)
        names.append(contender.name)
    assert set(kinds) == {BACKEND, EAGER, COMPILED} and len(names) == len(set(names))
    wrong = Contender("wrong", BACKEND, lambda: Outcome(dots=oracle.dots + 1.5 * oracle.bound))
    with pytest.raises(run.WrongResult, match="dots is wrong by"):
        run.check(ROW_DOTS, wrong, problem, oracle)


def test_rows_of_a_task_are_neighbours_unless_mixed() -> None:
    together, mixed = (rows.RowsProblem(RowsWorkload(4, 40, 2, mixed=m), CPU).rows for m in (False, True))
    assert together.tolist() == sorted(together.tolist()) and together.bincount().tolist() == [10] * 4
    assert mixed.tolist() != sorted(mixed.tolist()) and set(mixed.tolist()) == set(range(4))


def test_a_case_from_end_to_end(uncompiled: None) -> None:
    (case,) = run.run_suite([RowsWorkload(2, 30, 40)], CPU, "rows", 0.01, {"float32": 1e12})
    assert case.name == "row_dots K=2 30x40 float32 rows" and case.limit.set_by == "memory" and not case.refused
    assert (case.bytes_read, case.bytes_written, case.operations) == (2 * 30 * 40 * 4 + 30 * 8, 0, 2 * 30 * 40)
