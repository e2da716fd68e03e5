"""The check of results before anything is timed, and the numbers of a case."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.operators import backends, cases, run
from bench.operators.cases import Problem, Workload, flat
from bench.operators.contender import BACKEND, COMPILED, TORCHJD, Contender
from bench.operators.oracle import SUM_BOUND, Oracle, Outcome
from bench.operators.records import Refused
from cats.ops import dispatch

CPU = torch.device("cpu")
SHAPES = [[40, 30], [7], [], [513]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shapes", [SHAPES, [[70_001]]])
def test_every_contender_passes_the_check(uncompiled: None, dtype: torch.dtype, shapes: list[list[int]]) -> None:
    """Every baseline computes what the oracle does, so a run refuses none of them by mistake."""
    operators = (*cases.OPERATORS, cases.GRADDROP, cases.TWO_PASSES)
    problem = Problem(Workload(3, shapes, dtype, operators, operators, "list"), CPU)
    oracle = Oracle(problem)
    for operator in operators:
        refused: list[Refused] = []
        names = []
        for contender in run.contenders(operator, problem, refused):
            error, _ = run.check(operator, contender, problem, oracle)
            assert contender.kind != BACKEND or error <= 1
            names.append(contender.name)
        assert "reference" in names and len(names) == len(set(names))
        assert {r.kind for r in refused} <= {TORCHJD, COMPILED}


CORRUPTIONS: dict[str, tuple[str, Callable[[Problem, Outcome], Outcome]]] = {
    # One of 1,721 elements is wrong by 8 float32 roundings of the sum; the bound is 4 roundings of the magnitudes.
    "combined": ("combine", lambda p, o: _scaled(o, 3, 1 + 2.0**-16)),
    "dots": ("combine_dots", lambda p, o: o._replace(dots=o.dots + _norms(p) * 3 * SUM_BOUND)),
    "sqnorms": ("combine_dots", lambda p, o: o._replace(sqnorms=o.sqnorms * (1 + 3 * SUM_BOUND))),
    "gram": ("gram", lambda p, o: o._replace(gram=o.gram + torch.outer(_norms(p), _norms(p)) * 3 * SUM_BOUND)),
    "signs": ("graddrop", lambda p, o: o._replace(signs=[t + 2.0**-16 * t.abs().max() for t in o.signs or ()])),
    "state": ("combine_adamw_", lambda p, o: _moved(p, o)),
}


def _norms(problem: Problem) -> torch.Tensor:
    return torch.stack([sum(g.double().square().sum() for g in grads) for grads in problem.grads]).sqrt()


def _scaled(outcome: Outcome, index: int, factor: float) -> Outcome:
    assert outcome.combined is not None
    outcome.combined[index].view(-1)[-1:].mul_(factor)
    return outcome


def _moved(problem: Problem, outcome: Outcome) -> Outcome:
    problem.state[0][0].view(-1)[5] += 1e-6
    return outcome


@pytest.mark.parametrize("part", CORRUPTIONS)
def test_the_check_refuses_a_wrong_result(part: str) -> None:
    operator, corrupt = CORRUPTIONS[part]
    problem = Problem(Workload(3, SHAPES), CPU)
    oracle = Oracle(problem)
    right = backends.call(operator, problem, "reference")
    wrong = Contender("wrong", BACKEND, lambda: corrupt(problem, right()))
    assert run.check(operator, Contender("right", BACKEND, right), problem, oracle)[0] <= 1
    with pytest.raises(run.WrongResult, match=f"{part} is wrong by"):
        run.check(operator, wrong, problem, oracle)


def test_the_check_refuses_old_outputs_and_missing_parts() -> None:
    problem = Problem(Workload(3, SHAPES), CPU)
    oracle = Oracle(problem)
    backends.call("combine", problem, "reference")()
    for outcome, said in ((Outcome(combined=problem.out), "wrong by inf"), (Outcome(), "no combined")):
        idle = Contender("idle", BACKEND, lambda outcome=outcome: outcome)
        with pytest.raises(run.WrongResult, match=said):
            run.check("combine", idle, problem, oracle)


def test_a_backend_that_lacks_the_operator_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reference" in backends.usable(CPU, "gram, combine")
    monkeypatch.delattr(dispatch.load("reference"), "gram")
    assert "reference" in backends.usable(CPU, "combine")
    assert "reference" not in backends.usable(CPU, "gram, combine")


def test_the_roofline_is_the_slower_of_memory_and_arithmetic() -> None:
    problem = Problem(flat(4, 10_000, operators=("gram",)), CPU)
    case = run.run_case("gram", problem, Oracle(problem), {"float32": 1.0, "float64": 1.0}, 0.01)
    assert case.limit.set_by == "arithmetic" and case.limit.seconds == 4 * 5 * 10_000
    case = run.run_case("gram", problem, Oracle(problem), {"float32": 1e30, "float64": 1e30}, 0.01)
    assert case.limit.set_by == "memory"
    for c in case.contenders:
        assert c.fraction_of_limit * c.seconds.median == pytest.approx(case.limit.seconds)
        assert c.gb_per_s * c.seconds.median == pytest.approx(4 * 4 * 10_000 / 1e9)
