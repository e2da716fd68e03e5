"""Measures time and memory, and summarises samples."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Call = Callable[[], object]

SAMPLE_SECONDS = 2e-3  # CPU: the call is repeated until a sample lasts at least this long
SAMPLE_BYTES = 2**30  # GPU: the call is repeated until a sample moves at least this many bytes
MOST_AHEAD = 50e-3  # GPU: seconds that it is kept busy at most before a sample
FASTEST_CLOCK = 2.6e9  # GPU: cycles per second of the fastest ones
LEAST_ROUNDS, MOST_ROUNDS = 5, 50


class Unavailable(Exception):
    """A contender cannot be measured. The text says why."""


@dataclass(frozen=True)
class Summary:
    """Samples of a time (seconds per call) or of a rate (per second): median, 20th and 80th percentile.

    `clock` says how the samples were taken: "wall", "core" (the time of the process on a core), or on a GPU "graph" or
    "events".
    """

    median: float
    low: float
    high: float
    samples: int
    clock: str = "wall"


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of the values, interpolated linearly (Hyndman and Fan, 1996, definition 7). `share` is in [0, 1]."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summary(values: Sequence[float], clock: str = "wall") -> Summary:
    return Summary(statistics.median(values), quantile(values, 0.2), quantile(values, 0.8), len(values), clock)


@dataclass(frozen=True)
class Fit:
    """The line y = intercept + slope x, and R²: the share of the variance of y that the line explains."""

    slope: float
    intercept: float
    r2: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fits a line by least squares."""
    slope, intercept = statistics.linear_regression(x, y)
    mean = statistics.fmean(y)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean) ** 2 for b in y)
    return Fit(slope, intercept, 1 - rest / total if total else 1.0)


class WallClock:
    """Measures the wall-clock time of a call."""

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
    """Measures the GPU time of a call, between two CUDA events.

    The call is captured in a CUDA graph, so the host's time is not measured ("graph"). A call that cannot be captured
    runs directly ("events"); so does one of which nothing is captured. In both cases the GPU is kept busy before the
    first event until the host has queued the sample. Otherwise the GPU would pass the first event at once and wait for
    the first launch, and this wait would be part of the result. Only if the host needs longer than MOST_AHEAD, or more
    launches than the queue of the GPU holds, is the host's time a part of it.
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
        if (graph := self._capture(call)) is not None:
            self.run, self.name = graph.replay, "graph"
        self.run()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.cycles = 0
        self.cycles = busy_cycles(self._queue())
        torch.cuda.synchronize()

    def _capture(self, call: Call) -> torch.cuda.CUDAGraph | None:
        """A graph of the call; None if it cannot be captured, or runs where the graph does not see it."""
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph leaves its own stream as the current one if the capture fails.
        with torch.cuda.stream(torch.cuda.current_stream()), warnings.catch_warnings(record=True) as empty:
            warnings.simplefilter("ignore")  # the call has run before, so its warnings have been seen
            warnings.filterwarnings("always", message="The CUDA Graph is empty")
            try:
                with torch.cuda.graph(graph):
                    self.kept = call()  # the graph writes to these tensors at every replay
            except RuntimeError:
                torch.cuda.synchronize()
                return None
        return None if empty else graph

    def _queue(self) -> float:
        """Starts the calls between two events. Returns the seconds of the host."""
        begin = time.perf_counter()
        start, end = self.events
        if self.cycles:
            torch.cuda._sleep(self.cycles)
        start.record()
        for _ in range(self.repeats):
            self.run()
        end.record()
        return time.perf_counter() - begin

    def sample(self) -> float:
        self._queue()
        start, end = self.events
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.repeats


def busy_cycles(host_seconds: float) -> int:
    """For how many cycles a GPU must be busy until the host, which needs this long, has queued a sample: twice that."""
    return int(min(2 * host_seconds + 20e-6, MOST_AHEAD) * FASTEST_CLOCK)


Clock = WallClock | DeviceClock


def clock(call: Call, device: torch.device, moved: int) -> Clock:
    """The clock for a device. moved: bytes that one call moves."""
    return DeviceClock(call, moved) if device.type == "cuda" else WallClock(call)


def interleave(clocks: Mapping[str, Clock], budget: float) -> dict[str, Summary]:
    """Takes one sample of each clock per round, for about `budget` seconds. The order rotates from round to round.

    All clocks get the same share of the time, but at least 5 and at most 50 samples. A slow clock skips rounds; the
    rounds that it takes part in are spread evenly.
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
    """Peak memory of one call in bytes, beyond inputs and outputs; None if the system does not report it.

    GPU: memory of torch's allocator. CPU: resident memory of the process, after the C library has released free memory.
    """
    before = held_memory(device)
    if before is None:
        return None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return None
    call()
    return max(0, _status("VmHWM") - before)


def held_memory(device: torch.device) -> int | None:
    """Memory that this process holds now, in bytes, measured as in `extra_memory`."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")
    except (AttributeError, OSError, TypeError):
        return None


def _status(field: str) -> int:
    """A size that /proc/self/status reports, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
