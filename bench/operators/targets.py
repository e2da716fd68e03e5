"""What the operators are to reach, as data, and whether they did."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .baselines import BACKEND, COMPILED, COMPOSED, EAGER, TORCHJD
from .run import ratio

Record = dict[str, Any]
Value = Callable[[list[Record], Record, Record], float]  # all cases, the case, the backend's entry in it -> value


def of_limit(cases: list[Record], case: Record, own: Record) -> float:
    return float(own["fraction_of_limit"])


def against(kind: str) -> Value:
    return lambda cases, case, own: ratio(case, own, kind)


def against_stacked(cases: list[Record], case: Record, own: Record) -> float:
    """Against G @ G.T on a matrix that is there already."""
    times = [c["seconds"]["median"] for c in case["contenders"] if c["name"] == "G @ G.T, stacked already"]
    return min(times) / own["seconds"]["median"] if times else math.nan


def of_traffic_ratio(cases: list[Record], case: Record, own: Record) -> float:
    """Against the same backend's combine and then torch's AdamW, as a share of the ratio of the bytes they move."""
    times = [
        c["seconds"]["median"]
        for c in case["contenders"]
        if c["kind"] == COMPOSED and c["name"].startswith(f"{own['name']} ")
    ]
    if not times:
        return math.nan
    return min(times) / own["seconds"]["median"] / ((4 * case["tasks"] + 32) / (4 * case["tasks"] + 24))


def of_flat(cases: list[Record], case: Record, own: Record) -> float:
    """The list's GB/s against those of one tensor: the largest flat case with the same operator, K and dtype."""
    keys = ("operator", "tasks", "dtype")
    alike = [c for c in cases if c["layout"] == "flat" and all(c[k] == case[k] for k in keys)]
    if not alike:
        return math.nan
    largest = max(alike, key=lambda c: c["elements"])
    rates = [c["gb_per_s"] for c in largest["contenders"] if c["name"] == own["name"]]
    return own["gb_per_s"] / rates[0] if rates else math.nan


def extra_megabytes(cases: list[Record], case: Record, own: Record) -> float:
    return math.nan if own["extra_bytes"] is None else own["extra_bytes"] / 1e6


@dataclass(frozen=True)
class Target:
    """`value` of every case that fits must reach `bound`, or stay below it."""

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

    def fits(self, case: Record) -> bool:
        return (
            case["operator"] in self.operators
            and self.tasks[0] <= case["tasks"] <= self.tasks[1]
            and case["elements"] >= self.elements
            and case["dtype"] in self.dtypes
            and self.layout in (None, case["layout"])
        )


BOTH = ("float32", "bfloat16")
SINGLE_PASS = ("combine", "combine_dots", "dots", "combine_adamw_")
EVERY = (*SINGLE_PASS, "gram", "gram, combine")
ANY = ("float32", "bfloat16", "float16", "float64")

TARGETS = (
    Target("cpu", "combine_dots, K = 2…32: of the limit", 0.9, of_limit, ("combine_dots",), (2, 32), 1e7),
    Target("cpu", "combine_dots, K = 2…32: × best eager", 3, against(EAGER), ("combine_dots",), (2, 32), 1e7),
    Target("cpu", "combine_dots, K = 2…32: × best compiled", 1, against(COMPILED), ("combine_dots",), (2, 32), 1e7),
    Target("cpu", "combine, dots: of the limit", 0.9, of_limit, ("combine", "dots"), (2, 32), 1e7),
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
    Target("cpu", "gram, K = 8…32: × G @ G.T, stacked already", 4, against_stacked, ("gram",), (8, 32), 1e7),
    Target("cuda", "single passes, K = 2…64: of the limit", 0.92, of_limit, SINGLE_PASS, (2, 64), 0, BOTH),
    Target("cuda", "single passes, K = 92, 128: of the limit", 0.85, of_limit, SINGLE_PASS, (92, 128), 0, BOTH),
    Target("cuda", "gram, K ≤ 32: of the limit", 0.85, of_limit, ("gram",), (1, 32), 0, BOTH),
    Target("cuda", "gram, K = 128: of the limit", 0.6, of_limit, ("gram",), (128, 128), 0, BOTH),
    Target(
        "cuda",
        "list of Transformer-base: of the flat case's GB/s",
        0.85,
        of_flat,
        (*SINGLE_PASS, "gram"),
        dtypes=BOTH,
        layout="transformer-base",
    ),
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
CALL_US, TENSOR_US = 30.0, 0.5  # of Python for a call and for each of its tensors


def evaluate(device: str, cases: list[Record], fits: list[Record], calls: list[Record]) -> list[Record]:
    """For each target and backend the value of the worst case; nothing where no case was measured.

    The reference is what the others are measured against: it has no targets where another backend is usable.
    """
    present = dict.fromkeys(c["name"] for case in cases for c in case["contenders"] if c["kind"] == BACKEND)
    backends = [b for b in present if b != "reference"] or list(present)
    results = []
    for target in TARGETS:
        if target.device != device:
            continue
        for backend in backends:
            values = [
                (target.value(cases, case, own), case["name"])
                for case in cases
                if target.fits(case)
                for own in case["contenders"]
                if own["name"] == backend and own["kind"] == BACKEND
            ]
            values = [pair for pair in values if not math.isnan(pair[0])]
            if values:
                value, worst = (max if target.at_most else min)(values)
                results.append(_result(target.text, backend, value, target.bound, target.at_most, worst))
    for line in fits:
        if line["backend"] in backends:
            text = f"{line['operator']}: R² of time against K P"
            results.append(_result(text, line["backend"], line["r2"], LINEAR, False, f"{line['points']} cases"))
    for backend in backends:
        shares = [
            (r[f"{kind}_us"] / (CALL_US + TENSOR_US * r["tensors"]), f"{r['tensors']} tensors, {kind} addresses")
            for r in calls
            if r["backend"] == backend
            for kind in ("kept", "new")
        ]
        if shares:
            text = f"Python per call: of {CALL_US:.0f} µs + {TENSOR_US} µs a tensor"
            results.append(_result(text, backend, *max(shares)[:1], 1.0, True, max(shares)[1]))
    return results


def _result(text: str, backend: str, value: float, bound: float, at_most: bool, worst: str) -> Record:
    met = value <= bound if at_most else value >= bound
    return {
        "target": text,
        "backend": backend,
        "value": value,
        "bound": bound,
        "at_most": at_most,
        "met": met,
        "worst": worst,
    }
