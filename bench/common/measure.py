"""Time, memory, and the arithmetic on samples of them."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Call = Callable[[], object]

SAMPLE_SECONDS = 2e-3  # a sample on the CPU lasts at least so long, by repeating the call
SAMPLE_BYTES = 2**30  # a sample on the GPU moves at least so many bytes, by repeating the call
LEAST_ROUNDS, MOST_ROUNDS = 5, 50


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the samples and their 20th and 80th percentiles."""

    median: float
    low: float
    high: float
    samples: int
    clock: str = "wall"


def quantile(values: Sequence[float], share: float) -> float:
    """The share-quantile of the values, linear between the two neighbours (Hyndman and Fan, 1996, definition 7)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summary(values: Sequence[float], clock: str) -> Timing:
    return Timing(statistics.median(values), quantile(values, 0.2), quantile(values, 0.8), len(values), clock)


@dataclass(frozen=True)
class Fit:
    """y = intercept + slope x by least squares, and the share of y's variance that it explains."""

    slope: float
    intercept: float
    r2: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    slope, intercept = statistics.linear_regression(x, y)
    mean = statistics.fmean(y)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean) ** 2 for b in y)
    return Fit(slope, intercept, 1 - rest / total if total else 1.0)


class WallClock:
    """Samples of a call's wall-clock time."""

    name = "wall"

    def __init__(self, call: Call) -> None:
        self.call, self.repeats = call, 1
        self.call()
        once = self.sample()
        self.repeats = max(1, math.ceil(SAMPLE_SECONDS / once))

    def sample(self) -> float:
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.call()
        return (time.perf_counter() - start) / self.repeats


class DeviceClock:
    """Samples of a call's time on the GPU, between two events: of a CUDA graph of it, without the host's part.

    What cannot be captured is called as it is ("events"): that includes the host's time where the host is slower.
    """

    def __init__(self, call: Call, moved: int) -> None:
        self.repeats = max(1, math.ceil(SAMPLE_BYTES / moved))
        self.run: Call = call
        self.name = "events"
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.kept = call()
        except RuntimeError:
            torch.cuda.synchronize()
        else:
            self.run, self.name = graph.replay, "graph"
        self.run()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def sample(self) -> float:
        start, end = self.events
        start.record()
        for _ in range(self.repeats):
            self.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.repeats


Clock = WallClock | DeviceClock


def clock(call: Call, device: torch.device, moved: int) -> Clock:
    return DeviceClock(call, moved) if device.type == "cuda" else WallClock(call)


def interleave(clocks: Mapping[str, Clock], budget: float) -> dict[str, Timing]:
    """One sample of each in turn, in an order that rotates from round to round, for about `budget` seconds.

    Each gets the same share of the time, 5 samples at least and 50 at most; a slow one sits out some of the rounds,
    spread evenly over all of them.
    """
    samples: dict[str, list[float]] = {name: [] for name in clocks}
    quota = {}
    for name, c in clocks.items():
        start = time.perf_counter()
        c.sample()
        cost = time.perf_counter() - start
        quota[name] = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(budget / len(clocks) / cost)))
    rounds = max(quota.values())
    names = list(clocks)
    for r in range(rounds):
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            if (r + 1) * quota[name] // rounds > r * quota[name] // rounds:
                samples[name].append(clocks[name].sample())
    return {name: summary(values, clocks[name].name) for name, values in samples.items()}


def extra_memory(call: Call, device: torch.device) -> int | None:
    """Bytes beyond inputs and outputs at the peak of one call; None where the system does not tell.

    GPU: of torch's allocator. CPU: of the process's resident memory, after the C library has given back what is free.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        call()
        return max(0, _status("VmHWM") - before)
    except (AttributeError, OSError, TypeError):
        return None


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
