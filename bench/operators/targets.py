"""The targets of the operators, and whether they were met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.common.targets import TargetResult, judge

from .contender import BACKEND, COMPILED, COMPOSED, EAGER, TORCHJD
from .records import Case, LinearFit, Measured, TinyCall

Value = Callable[[Sequence[Case], Case, Measured], float]  # all cases, one case, the backend in it -> value


def of_roofline(cases: Sequence[Case], case: Case, own: Measured) -> float:
    """Time of the roofline divided by time of the backend."""
    return own.fraction_of_limit


def against(kind: str) -> Value:
    """How many times as fast as the best baseline of a kind."""
    return lambda cases, case, own: case.ratio(own, kind)


def against_stacked(cases: Sequence[Case], case: Case, own: Measured) -> float:
    """How many times as fast as G @ G.T, without the time of stacking the gradients."""
    times = [c.seconds.median for c in case.contenders if c.name == "G @ G.T, stacked already"]
    return min(times) / own.seconds.median if times else math.nan


def of_traffic_ratio(cases: Sequence[Case], case: Case, own: Measured) -> float:
    """The speed-up over the backend's combine followed by torch's AdamW, as a share of the ratio of bytes moved."""
    times = [c.seconds.median for c in case.contenders if c.kind == COMPOSED and c.name.startswith(f"{own.name} ")]
    if not times:
        return math.nan
    return min(times) / own.seconds.median / ((4 * case.tasks + 32) / (4 * case.tasks + 24))


def of_flat(cases: Sequence[Case], case: Case, own: Measured) -> float:
    """GB/s on a list of tensors, as a share of those on one tensor: the largest flat case with the same K and dtype."""
    same = (case.operator, case.tasks, case.dtype)
    alike = [c for c in cases if c.layout == "flat" and (c.operator, c.tasks, c.dtype) == same]
    if not alike:
        return math.nan
    largest = max(alike, key=lambda c: c.elements)
    rates = [c.gb_per_s for c in largest.contenders if c.name == own.name]
    return own.gb_per_s / rates[0] if rates else math.nan


def extra_megabytes(cases: Sequence[Case], case: Case, own: Measured) -> float:
    return math.nan if own.extra_bytes is None else own.extra_bytes / 1e6


@dataclass(frozen=True)
class Target:
    """`value` should be at least `bound` in every case that fits; with `at_most`, at most."""

    device: str
    text: str
    bound: float
    value: Value
    operators: tuple[str, ...]
    tasks: tuple[int, int] = (1, 10**9)
    elements: float = 0
    dtypes: tuple[str, ...] = ("float32",)
    layout: str | None = "flat"
    at_most: bool = False

    def fits(self, case: Case) -> bool:
        return (
            case.operator in self.operators
            and self.tasks[0] <= case.tasks <= self.tasks[1]
            and case.elements >= self.elements
            and case.dtype in self.dtypes
            and self.layout in (None, case.layout)
        )


BOTH = ("float32", "bfloat16")
SINGLE_PASS = ("combine", "combine_dots", "dots", "combine_adamw_")
EVERY = (*SINGLE_PASS, "graddrop", "gram", "gram, combine", "row_dots")
ANY = ("float32", "bfloat16", "float16", "float64")

TARGETS = (
    Target("cpu", "combine_dots, K = 2…32: of the roofline", 0.9, of_roofline, ("combine_dots",), (2, 32), 1e7),
    Target("cpu", "combine_dots, K = 2…32: × best eager", 3, against(EAGER), ("combine_dots",), (2, 32), 1e7),
    Target("cpu", "combine_dots, K = 2…32: × best compiled", 1, against(COMPILED), ("combine_dots",), (2, 32), 1e7),
    Target("cpu", "combine, dots: of the roofline", 0.9, of_roofline, ("combine", "dots"), (2, 32), 1e7),
    Target("cpu", "combine, dots: × best compiled", 1, against(COMPILED), ("combine", "dots"), (2, 32), 1e7),
    Target(
        "cpu",
        "combine_adamw_ against combine + AdamW(fused): of the traffic ratio (4K+32)/(4K+24)",
        0.9,
        of_traffic_ratio,
        ("combine_adamw_",),
        (2, 32),
        1e7,
    ),
    Target("cpu", "graddrop: × best eager", 3, against(EAGER), ("graddrop",), (2, 32), 1e7, BOTH),
    Target("cpu", "graddrop: × best compiled", 1, against(COMPILED), ("graddrop",), (2, 32), 1e7, BOTH),
    Target("cpu", "row_dots: of the roofline", 0.9, of_roofline, ("row_dots",), elements=1e6, layout="rows"),
    Target("cpu", "row_dots: × best eager", 1, against(EAGER), ("row_dots",), dtypes=BOTH, layout=None),
    Target("cpu", "row_dots: × best compiled", 1, against(COMPILED), ("row_dots",), dtypes=BOTH, layout=None),
    Target("cpu", "gram, K = 8…32: × G @ G.T, stacked already", 4, against_stacked, ("gram",), (8, 32), 1e7),
    Target("cuda", "single passes, K = 2…64: of the roofline", 0.92, of_roofline, SINGLE_PASS, (2, 64), 0, BOTH),
    Target("cuda", "single passes, K = 92, 128: of the roofline", 0.85, of_roofline, SINGLE_PASS, (92, 128), 0, BOTH),
    Target("cuda", "gram, K ≤ 32: of the roofline", 0.85, of_roofline, ("gram",), (1, 32), 0, BOTH),
    Target("cuda", "gram, K = 128: of the roofline", 0.6, of_roofline, ("gram",), (128, 128), 0, BOTH),
    Target(
        "cuda",
        "list of Transformer-base: of the flat case's GB/s",
        0.85,
        of_flat,
        (*SINGLE_PASS, "gram"),
        dtypes=BOTH,
        layout="transformer-base",
    ),
    Target("cuda", "row_dots: of the roofline", 0.85, of_roofline, ("row_dots",), dtypes=BOTH, layout=None),
    Target("cuda", "row_dots: × best compiled", 1, against(COMPILED), ("row_dots",), dtypes=BOTH, layout=None),
    Target("cuda", "× best eager", 3, against(EAGER), (*SINGLE_PASS, "gram"), dtypes=BOTH),
    Target("cuda", "× best compiled", 1, against(COMPILED), (*SINGLE_PASS, "gram"), dtypes=BOTH),
    Target("cuda", "gradients to combined gradient: × TorchJD", 3, against(TORCHJD), EVERY, dtypes=BOTH),
    *(
        Target(
            d, "memory beyond inputs and outputs, MB", 64, extra_megabytes, EVERY, dtypes=ANY, layout=None, at_most=True
        )
        for d in ("cpu", "cuda")
    ),
)

LINEAR = 0.99  # R² of time against K P
CALL_US, TENSOR_US = 30.0, 0.5  # µs of Python for a call, and for each of its tensors


def evaluate(
    device: str, cases: Sequence[Case], fits: Sequence[LinearFit], calls: Sequence[TinyCall]
) -> list[TargetResult]:
    """The worst case's value for each target and backend; no entry where no case was measured.

    The reference backend has targets only if no other backend is usable.
    """
    present = dict.fromkeys(c.name for case in cases for c in case.contenders if c.kind == BACKEND)
    backends = [b for b in present if b != "reference"] or list(present)
    results = []
    for target in TARGETS:
        if target.device != device:
            continue
        for backend in backends:
            values = [
                (target.value(cases, case, own), case.name)
                for case in cases
                if target.fits(case)
                for own in case.contenders
                if own.name == backend and own.kind == BACKEND
            ]
            values = [pair for pair in values if not math.isnan(pair[0])]
            if values:
                value, worst = (max if target.at_most else min)(values)
                results.append(judge(target.text, backend, value, target.bound, target.at_most, worst))
    for line in fits:
        if line.backend in backends:
            text = f"{line.operator}: R² of time against K P"
            results.append(judge(text, line.backend, line.r2, LINEAR, False, f"{line.points} cases"))
    for backend in backends:
        shares = [
            (us / (CALL_US + TENSOR_US * r.tensors), f"{r.tensors} tensors, {kind} addresses")
            for r in calls
            if r.backend == backend
            for kind, us in (("kept", r.kept_us), ("new", r.new_us))
        ]
        if shares:
            value, worst = max(shares)
            text = f"Python per call: of {CALL_US:.0f} µs + {TENSOR_US} µs a tensor"
            results.append(judge(text, backend, value, 1.0, True, worst))
    return results
