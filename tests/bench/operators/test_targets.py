"""Targets, linear fits, and what counts as the best baseline."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bench.common.measure import Summary
from bench.operators import overhead, run, targets
from bench.operators.contender import COMPILED, EAGER
from bench.operators.records import Case, Measured, Roofline, TinyCall


def case_of(operator: str, tasks: int, elements: int, times: dict[str, tuple[str, float]], **more: Any) -> Case:
    """A case whose contenders took these seconds; the time of the roofline is one second."""

    def seconds(value: float) -> Summary:
        return Summary(value, value, value, 1)

    case = Case(
        name=f"{operator} K={tasks}",
        operator=operator,
        tasks=tasks,
        elements=elements,
        tensors=1,
        dtype="float32",
        layout="flat",
        bytes_read=0,
        bytes_written=0,
        operations=0,
        limit=Roofline(1.0, "memory", "probe", seconds(1.0), 10.0, 0.0),
        contenders=[
            Measured(
                name=name,
                kind=kind,
                counts="already" not in name,
                seconds=seconds(value),
                gb_per_s=10 / value,
                fraction_of_limit=1 / value,
                error_in_bounds=0.0,
                extra_bytes=0,
                first_call_seconds=value,
            )
            for name, (kind, value) in times.items()
        ],
        refused=[],
    )
    return dataclasses.replace(case, **more)


def test_targets_take_the_worst_case() -> None:
    found = [
        case_of(
            "combine_dots", 8, 10**7, {"native": ("backend", 1.0), "loop": ("eager", 4.0), "jit": ("compiled", 0.9)}
        ),
        case_of("combine_dots", 2, 10**7, {"native": ("backend", 1.25), "loop": ("eager", 4.0)}),
        case_of("combine_dots", 8, 10**5, {"native": ("backend", 9.0), "loop": ("eager", 1.0)}),  # too small to count
        case_of("gram", 8, 10**7, {"native": ("backend", 1.0), "G @ G.T, stacked already": ("eager", 4.5)}),
        case_of(
            "combine_adamw_",
            8,
            10**7,
            {"native": ("backend", 1.0), "native combine + AdamW(fused)": ("backend + torch", 64 / 56)},
        ),
    ]
    results = {t.target: t for t in targets.evaluate("cpu", found, [], [])}
    of_roofline, eager, compiled = (t for name, t in results.items() if name.startswith("combine_dots"))
    assert (of_roofline.value, of_roofline.met, of_roofline.worst) == (0.8, False, "combine_dots K=2")
    assert (eager.value, eager.met) == (3.2, True)
    assert (compiled.value, compiled.met) == (0.9, False)
    assert next(t for name, t in results.items() if name.startswith("gram")).value == 4.5
    assert next(t for name, t in results.items() if name.startswith("combine_adamw_")).value == pytest.approx(1)
    assert not any(name.startswith("combine, dots") for name in results)  # not measured, so not listed


def test_stacked_forms_do_not_count_as_the_best_eager_baseline() -> None:
    case = case_of(
        "gram", 8, 10, {"native": ("backend", 1.0), "mm, stacked already": ("eager", 2.0), "stack": ("eager", 5.0)}
    )
    assert case.ratio(case.contenders[0], EAGER) == 5
    assert math.isnan(case.ratio(case.contenders[0], COMPILED))


def test_list_is_compared_with_the_flat_case() -> None:
    flat_case = case_of("combine", 8, 100, {"triton": ("backend", 1.0)})
    other_dtype = case_of("combine", 8, 1000, {"triton": ("backend", 0.1)}, dtype="bfloat16")
    listed = case_of("combine", 8, 90, {"triton": ("backend", 1.25)}, layout="transformer-base")
    results = targets.evaluate("cuda", [flat_case, other_dtype, listed], [], [])
    found = next(t for t in results if t.target.startswith("list of"))
    assert found.value == pytest.approx(0.8) and not found.met


def test_overhead_and_linear_cost() -> None:
    calls = [TinyCall("native", tasks=2, tensors=n, kept_us=10 + 0.25 * n, new_us=20 + 0.75 * n) for n in (2, 8, 1600)]
    kept, new = overhead.lines(calls)
    assert (kept.us_per_tensor, new.us_per_tensor) == pytest.approx((0.25, 0.75))
    assert kept.us == {2: 10.5, 8: 12.0, 1600: 410.0}
    cost = [case_of("combine", k, 1000, {"native": ("backend", 1e-6 * k * 1000 + 1)}) for k in (2, 8, 32)]
    fits = run.linear_fits([*cost, case_of("gram", 64, 1000, {"native": ("backend", 1.0)})])
    assert [(f.operator, f.points) for f in fits] == [("combine", 3)]
    assert (fits[0].ns_per_element, fits[0].intercept_us) == pytest.approx((1000, 1e6))
    results = targets.evaluate("cpu", cost, fits, calls)
    assert next(t for t in results if "R²" in t.target).met
    python = next(t for t in results if t.target.startswith("Python"))
    assert python.value == pytest.approx((20 + 0.75 * 1600) / (30 + 0.5 * 1600)) and not python.met
