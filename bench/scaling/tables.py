"""The printed tables: the measured constants, and measured against predicted times."""

from __future__ import annotations

import statistics

from bench.common.measure import Summary
from bench.common.results import Provenance
from bench.common.tables import table

from .model import Traffic, seconds, step_of
from .records import MeasuredStep, ScalingResults


def markdown(source: Provenance, results: ScalingResults) -> str:
    """All tables of a measurement."""
    constants = [
        (
            n,
            f"{on.operations / 1e9:.1f}",
            f"{1e3 * on.call:.1f}",
            f"{on.memory_rate / 1e9:.1f}",
            *((f"{1e3 * on.near.latency:.3f}", f"{on.near.bandwidth / 1e9:.2f}") if n > 1 else ("", "")),
        )
        for n in results.processes
        for on in (results.hardware(n),)
    ]
    about = (
        f"{results.parameters:,} parameters, {results.tasks} tasks, {results.tokens} target tokens per process and step"
    )
    lines = [
        source.heading("cpu"),
        "",
        f"{about}, {results.threads} thread per process, {results.cores} cores.",
        "",
        "Constants of one process, measured in all processes at the same time:",
        "",
        *table(
            ("processes", "gigaflop/s", "pass without tokens, ms", "memory, GB/s", "latency, ms", "bandwidth, GB/s"),
            constants,
        ),
        "",
        *table(
            ("all-reduce, bytes", "processes", "measured, ms", "predicted, ms", "error"),
            [
                (
                    f"{a.size:,}",
                    a.processes,
                    _spread(a.seconds),
                    f"{1e3 * predicted:.3g}",
                    f"{100 * _error(a.seconds, predicted):+.0f} %",
                )
                for a in results.all_reduces
                for predicted in (_all_reduce(results, a.processes, a.size),)
            ],
        ),
        "",
        "Steps: measured time in ms, as a multiple of plain training, error of the predicted time:",
        "",
        *table(
            ("step", *(f"{n} process{'es' * (n > 1)}" for n in results.processes)),
            [
                (
                    f"{method}, FSDP2" if sharded else method,
                    *(_step(results, n, method, sharded) for n in results.processes),
                )
                for method, sharded in dict.fromkeys((s.method, s.sharded) for s in results.steps)
            ],
        ),
    ]
    errors = [abs(_error(s.seconds, _predicted(results, s))) for s in results.steps]
    lines += ["", f"Median error of the predicted steps: {100 * statistics.median(errors):.0f} %."]
    return "\n".join(lines) + "\n"


def _step(results: ScalingResults, processes: int, method: str, sharded: bool) -> str:
    """The cell of a step; empty if it was not measured."""
    same = {s.method: s for s in results.steps if (s.processes, s.sharded) == (processes, sharded)}
    if method not in same:
        return ""
    taken = same[method].seconds
    ratio = taken.median / same["plain"].seconds.median
    error = _error(taken, _predicted(results, same[method]))
    return f"{1e3 * taken.median:,.0f} · {ratio:.2f} · {100 * error:+.0f} %"


def _predicted(results: ScalingResults, s: MeasuredStep) -> float:
    job = results.job(s.processes)
    step = step_of("plain" if s.method == "inner" else s.method, job, sharded=s.sharded)
    return seconds(step, job, results.hardware(s.processes))


def _all_reduce(results: ScalingResults, processes: int, size: int) -> float:
    return results.hardware(processes).sending(Traffic(size, 2), processes)


def _error(measured: Summary, predicted: float) -> float:
    return predicted / measured.median - 1


def _spread(times: Summary) -> str:
    return f"{1e3 * times.median:.3g} ({1e3 * times.low:.3g} to {1e3 * times.high:.3g})"
