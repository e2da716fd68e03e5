"""The roofline picture of the operators."""

from __future__ import annotations

from pathlib import Path

from bench.common.results import Provenance
from cats.nmt.files import atomic_file

from .contender import BACKEND, COMPILED, EAGER, TORCHJD
from .records import OperatorResults

# The marker of each kind.
MARKS = {BACKEND: "o", EAGER: "v", COMPILED: "s", TORCHJD: "D"}


def draw(source: Provenance, results: OperatorResults, path: Path) -> None:
    """Draws operations per second against operations per byte, with the roofline of this run. Writes a PNG file.

    Shows flat float32 cases, and nothing is written if there are none.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [c for c in results.cases if c.dtype == "float32" and c.layout == "flat"]
    if not cases:
        return
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    operators = list(dict.fromkeys(c.operator for c in cases))
    colours = dict(zip(operators, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    seen: set[str] = set()
    intensities = []
    for case in cases:
        intensity = case.operations / (case.bytes_read + case.bytes_written)
        intensities.append(intensity)
        for kind, mark in MARKS.items():
            c = case.best(kind)
            if c is None:
                continue
            axes.plot(
                intensity,
                case.operations / c.seconds.median / 1e9,
                mark,
                color=colours[case.operator],
                markerfacecolor=colours[case.operator] if kind == BACKEND else "none",
                markersize=7 if kind == BACKEND else 5,
            )
            seen.add(kind)
    # The roofline is for reads and writes at different addresses. In-place updates (combine_adamw_) can be faster.
    streams = [c for c in cases if c.operator != "combine_adamw_"] or cases
    beyond_caches = [c for c in streams if c.bytes_read >= 10**8] or streams
    speed, peak = max(c.limit.memory_gb_per_s for c in beyond_caches), results.peaks["float32"] / 1e9
    low, high = min(intensities) / 2, max(*intensities, peak / speed) * 2
    axes.plot([low, peak / speed, high], [low * speed, peak, peak], color="black", linewidth=1)
    axes.text(low * 1.05, low * speed * 2, f"{speed:.3g} GB/s")
    axes.text(high / 1.1, peak * 1.1, f"{peak:.3g} GFLOP/s", ha="right")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=peak * 2)
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("GFLOP/s")
    backends = sorted({c.name for case in cases for c in case.contenders if c.kind == BACKEND} - {"reference"})
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
    name = source.machine.gpu if results.device == "cuda" else source.machine.cpu
    axes.set_title(f"{name}, float32, {source.date}", fontsize=10)
    try:
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=120)
    finally:
        plt.close(figure)
