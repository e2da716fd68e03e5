"""The printed tables of the operators' benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.common.measure import Summary
from bench.common.results import Provenance
from bench.common.tables import table
from bench.common.targets import targets_table

from .contender import BACKEND, COMPILED, COMPOSED, EAGER, TORCHJD
from .records import Case, HostResults, OperatorResults, StepResults

BASELINES = (EAGER, COMPILED, TORCHJD)


def markdown(source: Provenance, results: OperatorResults) -> str:
    """All tables of `python -m bench`."""
    lines = [source.heading(results.device), "", *_backends(results.cases), "", *_baselines(results.cases)]
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in results.cases:
        for r in case.refused:
            reasons.setdefault((r.contender, r.reason), []).append(case.name)
    if reasons:
        lines += ["", "Not measured:", ""]
        lines += [
            f"- {contender}: {reason} ({names[0] if len(names) == 1 else f'{len(names)} cases'})"
            for (contender, reason), names in reasons.items()
        ]
    if results.fits:
        fits = [
            (f.operator, f.backend, f.points, f"{f.ns_per_element:.3f}", f"{f.intercept_us:.0f}", f"{f.r2:.4f}")
            for f in results.fits
        ]
        head = ("time against K P", "backend", "cases", "ns per K P", "intercept, µs", "R²")
        lines += ["", *table(head, fits)]
    if calls := results.call_lines:
        tiny = [
            (c.backend, c.addresses, *(f"{us:.3g}" for us in c.us.values()), f"{c.us_per_tensor:.2f}") for c in calls
        ]
        sizes = (f"{n} tensors, µs" for n in calls[0].us)
        lines += ["", *table(("tiny combine_dots", "addresses", *sizes, "+ µs per tensor"), tiny)]
    if results.compilations:
        first_calls = [
            (f"K={c.tasks} P={c.elements}", f"{c.seconds:.2f}", "yes" if c.compiled else "no")
            for c in results.compilations
        ]
        lines += ["", *table(("unrolled combine_dots under torch.compile", "first call, s", "compiled"), first_calls)]
    if results.targets:
        lines += ["", *targets_table(results.targets)]
    return "\n".join(lines) + "\n"


def host_markdown(source: Provenance, results: HostResults) -> str:
    """The tables of `python -m bench --overhead`."""
    rows = [
        (
            str(c.tasks),
            str(c.tensors),
            f"{c.chunks:,}",
            *(f"{ms:.3g}" for ms in (c.cpu_ms, c.wall_ms, c.reading_ms, c.first_ms)),
        )
        for c in results.host_calls
    ]
    times = ("ms on a core", "ms of wall-clock time", "of these, reading the gradients", "first call, ms")
    about = "The host's part of combine_dots on a GPU, without the launches; all addresses are new at every call:"
    lines = [source.heading(results.device), "", about, "", *table(("K", "tensors", "chunks", *times), rows)]
    return "\n".join([*lines, "", *targets_table(results.targets)]) + "\n"


def step_markdown(source: Provenance, results: StepResults) -> str:
    """The table of `python -m bench --step`."""
    step = results.step
    rows = [
        (
            b.name,
            f"{b.step_seconds.median * 1e3:.1f} ({b.step_seconds.low * 1e3:.1f}–{b.step_seconds.high * 1e3:.1f})",
            f"{b.operators_seconds.median * 1e3:.2f}",
        )
        for b in step.backends
    ]
    head = ("backend", "backward + step, ms (20–80 %)", "combine_dots alone, ms")
    model = f"K = {step.tasks}, {step.tensors} tensors, P = {step.elements:,}, {step.steps} steps each"
    about = f"Steps of cats.CATS that also update α, demo model, {model}:"
    return "\n".join([source.heading(results.device), "", about, "", *table(head, rows)]) + "\n"


def _backends(cases: Sequence[Case]) -> list[str]:
    rows = []
    for case in cases:
        eager = case.best(EAGER)
        for c in case.contenders:
            if c.kind in (BACKEND, COMPOSED):
                rows.append(
                    (
                        case.name,
                        c.name,
                        _milliseconds(c.seconds),
                        f"{c.gb_per_s:.3g}",
                        f"{c.fraction_of_limit:.2f}",
                        *(_times(case.ratio(c, kind)) for kind in BASELINES),
                        eager.name if eager else "",
                        _megabytes(c.extra_bytes),
                        f"{c.error_in_bounds:.2g}",
                    )
                )
    speed = ("× best eager", "× best compiled", "× TorchJD", "best eager baseline")
    head = ("case", "backend", "ms (20–80 %)", "GB/s", "of the roofline", *speed, "extra MB", "error / bound")
    return table(head, rows)


def _baselines(cases: Sequence[Case]) -> list[str]:
    rows = [
        (
            case.name,
            c.name,
            _milliseconds(c.seconds),
            f"{c.fraction_of_limit:.2f}",
            _megabytes(c.extra_bytes),
            f"{c.error_in_bounds:.2g}",
            f"{c.first_call_seconds:.1f}" if c.kind == COMPILED else "",
        )
        for case in cases
        for c in case.contenders
        if c.kind in BASELINES
    ]
    head = ("case", "baseline", "ms (20–80 %)", "of the roofline", "extra MB", "error / bound", "compile time, s")
    return table(head, rows)


def _milliseconds(seconds: Summary) -> str:
    return f"{seconds.median * 1e3:.3g} ({seconds.low * 1e3:.3g}–{seconds.high * 1e3:.3g})"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"


def _times(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
