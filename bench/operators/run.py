"""Measures one case after the other: check the results, then memory, then interleaved times."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.common import measure, roofline
from bench.common.measure import Unavailable

from . import backends, rows
from .baselines import compiled, eager, torchjd
from .cases import Problem, RowsWorkload, Suite, Workload
from .contender import BACKEND, COMPILED, TORCHJD, Contender
from .oracle import REQUIRED, Oracle
from .records import Case, LinearFit, Measured, Refused, Roofline
from .rows import RowsOracle, RowsProblem

PROBE = "roofline"  # the name of the memory probe among the clocks


class WrongResult(Exception):
    """A result is wrong. The text says by how much."""


@dataclass(frozen=True)
class _Checked:
    """A contender with a correct first result. error: the largest, in bounds."""

    contender: Contender
    error: float
    first_seconds: float
    extra_bytes: int | None


def check(
    operator: str, contender: Contender, problem: Problem | RowsProblem, oracle: Oracle | RowsOracle
) -> tuple[float, float]:
    """The largest error of a contender's first result, as a multiple of its bound, and the seconds of that call.

    Raises:
        WrongResult: a backend's result exceeds its bound or lacks a part, or a baseline computes something else.
    """
    problem.poison()
    if operator == "combine_adamw_" and isinstance(problem, Problem):
        problem.reset_state()
    start = time.perf_counter()
    outcome = contender.run()
    if problem.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    errors = oracle.errors(operator, outcome)
    allowed = 1.0 if contender.kind == BACKEND else oracle.baseline_allowance()
    missing = [part for part in REQUIRED[operator] if part not in errors]
    if contender.kind == BACKEND and missing:
        raise WrongResult(f"no {', '.join(missing)}")
    for part, error in errors.items():
        if not error <= allowed:
            raise WrongResult(f"{part} is wrong by {error:.3g} times its bound")
    return max(errors.values()), seconds


def run_case(
    operator: str,
    problem: Problem | RowsProblem,
    oracle: Oracle | RowsOracle,
    peak: dict[str, float],
    budget: float,
) -> Case:
    """Measures all contenders of an operator on a problem, for about `budget` seconds."""
    workload, device = problem.workload, problem.device
    least = problem.work(operator)
    refused: list[Refused] = []
    checked: list[_Checked] = []
    for contender in contenders(operator, problem, refused):
        try:
            error, seconds = check(operator, contender, problem, oracle)
        except Exception as reason:  # report a baseline that fails, and go on
            text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
            refused.append(Refused(contender.name, contender.kind, text))
            continue
        checked.append(_Checked(contender, error, seconds, measure.extra_memory(contender.run, device)))
    probe_name, probe = roofline.probe(least, problem.source, problem.target)
    clocks = {PROBE: measure.clock(probe, device, least.moved)}
    clocks |= {c.contender.name: measure.clock(c.contender.run, device, least.moved) for c in checked}
    times = measure.interleave(clocks, budget)
    clocks.clear()

    traffic = times.pop(PROBE)
    arithmetic = roofline.operation_seconds(least, problem.dtype, peak)
    bound = max(traffic.median, arithmetic)
    return Case(
        name=f"{operator} {workload.name}",
        operator=operator,
        tasks=problem.tasks,
        elements=problem.elements,
        tensors=len(problem.out),
        dtype=str(problem.dtype).removeprefix("torch."),
        layout=workload.layout,
        bytes_read=least.read,
        bytes_written=least.written,
        operations=least.operations,
        limit=Roofline(
            seconds=bound,
            set_by="memory" if traffic.median >= arithmetic else "arithmetic",
            probe=probe_name,
            memory=traffic,
            memory_gb_per_s=least.moved / traffic.median / 1e9,
            arithmetic_seconds=arithmetic,
        ),
        contenders=[
            Measured(
                name=c.contender.name,
                kind=c.contender.kind,
                counts=c.contender.counts,
                seconds=times[c.contender.name],
                gb_per_s=least.moved / times[c.contender.name].median / 1e9,
                fraction_of_limit=bound / times[c.contender.name].median,
                error_in_bounds=c.error,
                extra_bytes=c.extra_bytes,
                first_call_seconds=c.first_seconds,
            )
            for c in checked
        ],
        refused=refused,
    )


def contenders(operator: str, problem: Problem | RowsProblem, refused: list[Refused]) -> Iterator[Contender]:
    """Backends, then eager, compiled and TorchJD baselines. Appends to `refused` what is unavailable, and why."""
    if isinstance(problem, RowsProblem):
        yield from rows.contenders(problem)
        return
    yield from backends.contenders(operator, problem)
    yield from eager.contenders(operator, problem)
    if operator in problem.workload.compiled:
        torch.compiler.reset()
        try:
            yield compiled.contender(operator, problem)
        except Unavailable as reason:
            refused.append(Refused("unrolled", COMPILED, str(reason)))
    try:
        yield from torchjd.contenders(operator, problem)
    except Unavailable as reason:
        refused.append(Refused("TorchJD", TORCHJD, str(reason)))


@torch.no_grad()
def prepare(
    workload: Workload | RowsWorkload, device: torch.device
) -> tuple[Problem, Oracle] | tuple[RowsProblem, RowsOracle]:
    """The tensors of a workload, and its exact results."""
    if isinstance(workload, RowsWorkload):
        matrices = RowsProblem(workload, device)
        return matrices, RowsOracle(matrices)
    problem = Problem(workload, device)
    return problem, Oracle(problem)


def run_suite(suite: Suite, device: torch.device, only: str, budget: float, peak: dict[str, float]) -> Iterator[Case]:
    """Measures the cases with `only` in their name, one after the other. Prints a line for each on standard error."""
    for workload in suite:
        operators = [op for op in workload.operators if only in f"{op} {workload.name}"]
        if not operators:
            continue
        problem, oracle = prepare(workload, device)
        for operator in operators:
            start = time.perf_counter()
            with torch.no_grad():
                case = run_case(operator, problem, oracle, peak, budget)
            fastest = case.best(BACKEND)
            said = f"{fastest.name} {fastest.fraction_of_limit:.2f} of the roofline" if fastest else "no backend"
            print(f"{case.name}: {said} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
            yield case
        del problem, oracle
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def linear_fits(cases: Sequence[Case]) -> list[LinearFit]:
    """Fits time against K P, per memory-bound operator and backend, over the flat float32 cases."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for case in cases:
        if case.layout != "flat" or case.dtype != "float32" or case.operator.startswith("gram"):
            continue
        for c in case.contenders:
            if c.kind == BACKEND:
                place = points.setdefault((case.operator, c.name), [])
                place.append((case.tasks * case.elements, c.seconds.median))
    fits = []
    for (operator, backend), found in points.items():
        if len({x for x, _ in found}) >= 3:
            line = measure.fit(*zip(*found, strict=True))
            fits.append(LinearFit(operator, backend, len(found), line.slope * 1e9, line.intercept * 1e6, line.r2))
    return fits
