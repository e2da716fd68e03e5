"""The results as a JSON file, as Markdown tables, and as a roofline picture."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cats.nmt.files import atomic_file, atomic_write, finite

from .baselines import BACKEND, COMPILED, COMPOSED, EAGER, TORCHJD
from .run import best, ratio

Record = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]


def machine() -> Record:
    """The processor, its cores that this process may use, the memory and the GPU."""
    found: Record = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found["gpu"] = device.name
        found["gpu_memory_gib"] = round(device.total_memory / 2**30, 1)
        found["gpu_processors"] = device.multi_processor_count
    return found


def _cpu() -> str:
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = []
    return models[0].strip() if models else platform.processor() or platform.machine()


def versions() -> Record:
    found: Record = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in ("cats-optim", "torch", "numpy", "triton", "torchjd"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> Record:
    """The commit that was measured, and whether files differed from it; None outside a clone."""
    try:
        head, status = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", "cats", "csrc", "kernels", "bench/*.py"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
    return {"commit": head, "modified": bool(status)}


def file_stem(device: str, date: str, kind: str = "") -> str:
    """<machine>-<date>, and the kind of run if it was not the whole suite."""
    found = machine()
    name = found["gpu"] if device == "cuda" else f"{found['cpu']} {found['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b", "", name).lower()).strip("-")
    return "-".join(filter(None, (slug, date, kind)))


def write_json(path: Path, results: Record) -> None:
    """Whole or not at all. Numbers that JSON does not know (NaN, infinities) become null."""
    atomic_write(path, json.dumps(finite(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def heading(results: Record, device: str) -> str:
    """What was measured, where and when."""
    commit = (results["commit"] or "unknown")[:10] + (" with changes" if results["modified"] else "")
    about = f"{device}; torch {results['versions']['torch']}; commit {commit}"
    return f"{about}; `{results['command']}`, {results['date']}."


def markdown(results: Record) -> str:
    """The tables of a run, and what is needed to judge them."""
    m = results["machine"]
    device = m["gpu"] if results["device"] == "cuda" else f"{m['cpu']}, {m['threads']} threads"
    lines = [heading(results, device), ""]
    rows: list[tuple[Any, ...]]
    lines += _cases(results["cases"])
    lines += ["", *_rivals(results["cases"])]
    if refused := [(c["name"], r) for c in results["cases"] for r in c["refused"]]:
        reasons: dict[tuple[str, str], list[str]] = {}
        for case, r in refused:
            reasons.setdefault((r["contender"], r["reason"]), []).append(case)
        lines += ["", "Without a number:", ""]
        lines += [
            f"- {contender}: {reason} ({cases[0] if len(cases) == 1 else f'{len(cases)} cases'})"
            for (contender, reason), cases in reasons.items()
        ]
    if results["fits"]:
        rows = [
            (
                f["operator"],
                f["backend"],
                f["points"],
                f"{f['ns_per_element']:.3f}",
                f"{f['intercept_us']:.0f}",
                f"{f['r2']:.4f}",
            )
            for f in results["fits"]
        ]
        lines += ["", *table(("time against K P", "backend", "cases", "ns per K P", "intercept, µs", "R²"), rows)]
    if calls := results["call_lines"]:
        rows = [
            (c["backend"], c["addresses"], *(f"{us:.3g}" for us in c["us"].values()), f"{c['us_per_tensor']:.2f}")
            for c in calls
        ]
        sizes = (f"{n} tensors, µs" for n in calls[0]["us"])
        lines += ["", *table(("tiny combine_dots", "addresses", *sizes, "+ µs per tensor"), rows)]
    if results["compilations"]:
        rows = [
            (f"K={c['tasks']} P={c['elements']}", f"{c['seconds']:.2f}", "yes" if c["compiled"] else "no")
            for c in results["compilations"]
        ]
        lines += ["", *table(("unrolled combine_dots under torch.compile", "first call, s", "compiled"), rows)]
    if results["targets"]:
        lines += ["", *targets(results["targets"])]
    return "\n".join(lines) + "\n"


def targets(results: list[Record]) -> list[str]:
    rows = [
        (
            t["target"],
            t["backend"],
            f"{t['value']:.3g}",
            f"{'≤' if t['at_most'] else '≥'} {t['bound']:g}",
            "met" if t["met"] else "missed",
            t["worst"],
        )
        for t in results
    ]
    return table(("target", "backend", "reached", "asked", "", "worst case"), rows)


def _cases(cases: list[Record]) -> list[str]:
    rows = []
    for case in cases:
        for c in case["contenders"]:
            if c["kind"] in (BACKEND, COMPOSED):
                names = [r["name"] for kind in (EAGER, COMPILED, TORCHJD) if (r := best(case, kind))]
                rows.append(
                    (
                        case["name"],
                        c["name"],
                        _spread(c["seconds"]),
                        f"{c['gb_per_s']:.3g}",
                        f"{c['fraction_of_limit']:.2f}",
                        *(_times(ratio(case, c, kind)) for kind in (EAGER, COMPILED, TORCHJD)),
                        names[0] if names else "",
                        "" if c["extra_bytes"] is None else f"{c['extra_bytes'] / 1e6:.1f}",
                        f"{c['error_in_bounds']:.2g}",
                    )
                )
    head = ("case", "backend", "ms (20–80 %)", "GB/s", "of limit", "× eager", "× compiled", "× TorchJD", "best eager")
    return table((*head, "extra MB", "error / bound"), rows)


def _rivals(cases: list[Record]) -> list[str]:
    rows = [
        (
            case["name"],
            c["name"],
            _spread(c["seconds"]),
            f"{c['fraction_of_limit']:.2f}",
            "" if c["extra_bytes"] is None else f"{c['extra_bytes'] / 1e6:.1f}",
            f"{c['error_in_bounds']:.2g}",
            f"{c['first_call_seconds']:.1f}" if c["kind"] == COMPILED else "",
        )
        for case in cases
        for c in case["contenders"]
        if c["kind"] in (EAGER, COMPILED, TORCHJD)
    ]
    head = ("case", "rival", "ms (20–80 %)", "of limit", "extra MB", "error / bound", "compiled in, s")
    return table(head, rows)


def _spread(seconds: Record) -> str:
    return f"{seconds['median'] * 1e3:.3g} ({seconds['low'] * 1e3:.3g}–{seconds['high'] * 1e3:.3g})"


def _times(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """A Markdown table; columns of numbers lean right."""
    numeric = [
        all(re.match(r"^[≤≥]?\s?-?[\d.]*(e[+-]?\d+)?( \(|$)", str(row[i])) for row in rows) for i in range(len(head))
    ]
    marks = ["---:" if right else "---" for right in numeric]
    return [f"| {' | '.join(map(str, cells))} |" for cells in (head, marks, *rows)]


# What is drawn: kind -> (marker, filled).
MARKS = {BACKEND: "o", EAGER: "v", COMPILED: "s", TORCHJD: "D"}


def roofline(results: Record, path: Path) -> None:
    """Operations per second against operations per byte: the roofs measured in this run, and each case's contenders."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [c for c in results["cases"] if c["dtype"] == "float32" and c["layout"] == "flat"]
    if not cases:
        return
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    operators = list(dict.fromkeys(c["operator"] for c in cases))
    colours = dict(zip(operators, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    seen: set[str] = set()
    intensities = []
    for case in cases:
        intensity = case["operations"] / (case["bytes_read"] + case["bytes_written"])
        intensities.append(intensity)
        for kind, mark in MARKS.items():
            c = best(case, kind)
            if c is None:
                continue
            axes.plot(
                intensity,
                case["operations"] / c["seconds"]["median"] / 1e9,
                mark,
                color=colours[case["operator"]],
                markerfacecolor=colours[case["operator"]] if kind == BACKEND else "none",
                markersize=7 if kind == BACKEND else 5,
            )
            seen.add(kind)
    # The roof is for reading and writing apart: in place, as combine_adamw_, memory can be faster.
    streams = [c for c in cases if c["operator"] != "combine_adamw_"] or cases
    beyond_caches = [c for c in streams if c["bytes_read"] >= 10**8] or streams
    speed, peak = max(c["limit"]["memory_gb_per_s"] for c in beyond_caches), results["peaks"]["float32"] / 1e9
    low, high = min(intensities) / 2, max(*intensities, peak / speed) * 2
    axes.plot([low, peak / speed, high], [low * speed, peak, peak], color="black", linewidth=1)
    axes.text(low * 1.05, low * speed * 2, f"{speed:.3g} GB/s")
    axes.text(high / 1.1, peak * 1.1, f"{peak:.3g} GFLOP/s", ha="right")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=peak * 2)
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("GFLOP/s")
    backends = sorted({c["name"] for case in cases for c in case["contenders"] if c["kind"] == BACKEND} - {"reference"})
    labels = {
        BACKEND: "/".join(backends) or "reference",
        EAGER: "best eager",
        COMPILED: "best compiled",
        TORCHJD: "TorchJD",
    }
    handles = [plt.Line2D([], [], color=colour, linewidth=3, label=op) for op, colour in colours.items()]
    handles += [
        plt.Line2D(
            [],
            [],
            color="black",
            marker=mark,
            linestyle="",
            fillstyle="full" if k == BACKEND else "none",
            label=labels[k],
        )
        for k, mark in MARKS.items()
        if k in seen
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside right upper")
    name = results["machine"]["gpu"] if results["device"] == "cuda" else results["machine"]["cpu"]
    axes.set_title(f"{name}, float32, {results['date']}", fontsize=10)
    try:
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=120)
    finally:
        plt.close(figure)
