"""One case after the other: the gate, the memory, the interleaved times, and what follows from them."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from bench.common import measure, roofline

from . import baselines
from .baselines import BACKEND, COMPILED, TORCHJD, Absent, Contender
from .cases import Problem, Workload
from .oracle import COMPLETE, Oracle

Record = dict[str, Any]  # as it goes into the JSON file

PROBE = "limit"


class Wrong(Exception):
    """A result that is not right; the text says by how much."""


class Checked(NamedTuple):
    contender: Contender
    error: float  # the largest, in bounds
    first_seconds: float  # of the first call: with compilation where there is one
    extra_bytes: int | None


def gate(operator: str, contender: Contender, problem: Problem, oracle: Oracle) -> tuple[float, float]:
    """The largest error of a contender's first result, in bounds, and the seconds of that call.

    Raises:
        Wrong: a backend's result misses its bound or lacks a part; a rival's is not the same computation.
    """
    problem.poison()
    if operator == "combine_adamw_":
        problem.reset_state()
    start = time.perf_counter()
    outcome = contender.run()
    if problem.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    errors = oracle.errors(operator, outcome)
    allowed = 1.0 if contender.kind == BACKEND else oracle.allowance()
    missing = [part for part in COMPLETE[operator] if part not in errors]
    if contender.kind == BACKEND and missing:
        raise Wrong(f"no {', '.join(missing)}")
    for part, error in errors.items():
        if not error <= allowed:
            raise Wrong(f"{part} is wrong by {error:.3g} times its bound")
    return max(errors.values()), seconds


def run_case(operator: str, problem: Problem, oracle: Oracle, peak: dict[str, float], budget: float) -> Record:
    """All contenders of an operator on a problem."""
    workload, device = problem.workload, problem.device
    least = problem.work(operator)
    refused: list[Record] = []
    checked: list[Checked] = []
    for contender in _contenders(operator, problem, refused):
        try:
            error, seconds = gate(operator, contender, problem, oracle)
        except Exception as reason:  # a rival that fails is a fact to report, not the end of the run
            text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
            refused.append({"contender": contender.name, "kind": contender.kind, "reason": text})
            continue
        checked.append(Checked(contender, error, seconds, measure.extra_memory(contender.run, device)))
    probe_name, probe = roofline.probe(operator, problem, least)
    clocks = {PROBE: measure.clock(probe, device, least.moved)}
    clocks |= {c.contender.name: measure.clock(c.contender.run, device, least.moved) for c in checked}
    timings = measure.interleave(clocks, budget)
    clocks.clear()

    traffic = timings.pop(PROBE)
    compute = roofline.operation_seconds(operator, problem, least, peak)
    bound = max(traffic.median, compute)
    return {
        "name": f"{operator} {workload.name}",
        "operator": operator,
        "tasks": problem.tasks,
        "elements": problem.elements,
        "tensors": len(problem.out),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "layout": workload.layout,
        "bytes_read": least.read,
        "bytes_written": least.written,
        "operations": least.operations,
        "limit": {
            "seconds": bound,
            "set_by": "memory" if traffic.median >= compute else "arithmetic",
            "probe": probe_name,
            "memory": vars(traffic),
            "memory_gb_per_s": least.moved / traffic.median / 1e9,
            "arithmetic_seconds": compute,
        },
        "contenders": [
            {
                "name": c.contender.name,
                "kind": c.contender.kind,
                "counts": c.contender.counts,
                "seconds": vars(timings[c.contender.name]),
                "gb_per_s": least.moved / timings[c.contender.name].median / 1e9,
                "fraction_of_limit": bound / timings[c.contender.name].median,
                "error_in_bounds": c.error,
                "extra_bytes": c.extra_bytes,
                "first_call_seconds": c.first_seconds,
            }
            for c in checked
        ],
        "refused": refused,
    }


def _contenders(operator: str, problem: Problem, refused: list[Record]) -> Iterator[Contender]:
    """Backends, eager forms, compiled forms and TorchJD; a reason in `refused` for who cannot take part."""
    yield from baselines.contenders(operator, problem)
    if operator in problem.workload.compiled:
        torch.compiler.reset()
        try:
            yield baselines.compiled(operator, problem)
        except Absent as reason:
            refused.append({"contender": "unrolled", "kind": COMPILED, "reason": str(reason)})
    try:
        yield from baselines.torchjd(operator, problem)
    except Absent as reason:
        refused.append({"contender": "TorchJD", "kind": TORCHJD, "reason": str(reason)})


def best(case: Record, kind: str) -> Record | None:
    """The fastest contender of a kind that counts."""
    able = [c for c in case["contenders"] if c["kind"] == kind and c["counts"]]
    return min(able, key=lambda c: c["seconds"]["median"], default=None)


def ratio(case: Record, contender: Record, kind: str) -> float:
    """How many times as fast a contender is as the best of a kind; NaN if there is none."""
    rival = best(case, kind)
    return rival["seconds"]["median"] / contender["seconds"]["median"] if rival else math.nan


def run_suite(
    suite: list[Workload], device: torch.device, only: str, budget: float, peak: dict[str, float]
) -> list[Record]:
    """The cases whose name contains `only`, with a line on standard error for each."""
    cases = []
    for workload in suite:
        operators = [op for op in workload.operators if only in f"{op} {workload.name}"]
        if not operators:
            continue
        problem = Problem(workload, device)
        with torch.no_grad():
            oracle = Oracle(problem)
        for operator in operators:
            start = time.perf_counter()
            with torch.no_grad():
                case = run_case(operator, problem, oracle, peak, budget)
            cases.append(case)
            fastest = best(case, BACKEND)
            said = f"{fastest['name']} {fastest['fraction_of_limit']:.2f} of the limit" if fastest else "no backend"
            print(f"{case['name']}: {said} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
        del problem, oracle
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return cases


def linear_fits(cases: list[Record]) -> list[Record]:
    """Time against K P, per operator and backend, over the flat float32 cases of operators that move memory only."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for case in cases:
        if case["layout"] != "flat" or case["dtype"] != "float32" or case["operator"].startswith("gram"):
            continue
        for c in case["contenders"]:
            if c["kind"] == BACKEND:
                place = points.setdefault((case["operator"], c["name"]), [])
                place.append((case["tasks"] * case["elements"], c["seconds"]["median"]))
    fits = []
    for (operator, backend), found in points.items():
        if len({x for x, _ in found}) >= 3:
            line = measure.fit(*zip(*found, strict=True))
            fits.append(
                {
                    "operator": operator,
                    "backend": backend,
                    "points": len(found),
                    "ns_per_element": line.slope * 1e9,
                    "intercept_us": line.intercept * 1e6,
                    "r2": line.r2,
                }
            )
    return fits
