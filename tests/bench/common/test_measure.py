"""Samples of time and memory. Speed itself is not tested."""

from __future__ import annotations

import contextlib
import itertools
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bench.common import measure


def test_quantiles_and_summary() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 9.0, 7.0]
    for share in (0, 0.2, 0.5, 0.8, 1):
        assert measure.quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-15)
    found = measure.summary(values)
    assert (found.median, found.low, found.high, found.samples) == (4.5, 2.0, 7.0, 6)


def test_fit_is_least_squares() -> None:
    x, y = [1.0, 2.0, 4.0, 7.0], [3.1, 4.9, 9.2, 14.8]
    line = measure.fit(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), rel=1e-12)
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-12)
    assert measure.fit([1, 2, 3], [5, 7, 9]) == measure.Fit(2, 3, 1)


class FakeClock(measure.WallClock):
    """Reports a fixed time, and logs each call."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.label, self.seconds, self.log = name, seconds, log

    def sample(self) -> float:
        self.log.append(self.label)
        return self.seconds


class FakeCuda:
    """The parts of torch.cuda that DeviceClock uses, with a log of what is queued."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None: ...
            def record(self) -> None:
                fake.log.append("event")

            def synchronize(self) -> None: ...
            def elapsed_time(self, other: Event) -> float:
                return 3.0

        class Graph:
            def replay(self) -> None:
                fake.log.append("replay")

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        context: Any = lambda *arguments: contextlib.nullcontext()  # noqa: E731
        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": context,
            "graph": context,
            "synchronize": lambda: None,
            "_sleep": lambda cycles: fake.log.append("busy"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_the_gpu_is_busy_until_a_sample_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without work before it, the first event passes at once, and the first launch is waited for within the sample.
    cuda = FakeCuda(monkeypatch)
    clock = measure.DeviceClock(lambda: None, moved=measure.SAMPLE_BYTES // 2)
    assert clock.name == "graph" and clock.cycles > 0
    cuda.log.clear()
    assert clock.sample() == pytest.approx(1.5e-3)
    assert cuda.log == ["busy", "event", "replay", "replay", "event"]


@pytest.mark.parametrize("fails", [True, False])
def test_a_call_that_is_not_captured_runs_directly(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    # torch warns that the graph is empty: after an error in the call, and if the call runs on another stream.
    cuda = FakeCuda(monkeypatch)
    capturing: list[bool] = []

    @contextlib.contextmanager
    def capture(graph: object) -> Iterator[None]:
        capturing.append(True)
        try:
            yield
        finally:
            capturing.clear()
            warnings.warn("The CUDA Graph is empty. This usually means that ...", stacklevel=2)

    def call() -> None:
        if capturing and fails:
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
        cuda.log.append("call")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clock = measure.DeviceClock(call, moved=measure.SAMPLE_BYTES)
    assert clock.name == "events"
    cuda.log.clear()
    clock.sample()
    assert cuda.log == ["busy", "event", "call", "event"]


def test_how_long_the_gpu_is_kept_busy() -> None:
    assert measure.busy_cycles(1e-3) >= 2e-3 * measure.FASTEST_CLOCK
    assert measure.busy_cycles(10.0) == measure.MOST_AHEAD * measure.FASTEST_CLOCK


def test_interleaving_rotates_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(np.arange(1000.0))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))  # each sample appears to take a second
    log: list[str] = []
    found = measure.interleave({name: FakeClock(name, 0.5, log) for name in "abc"}, budget=18.0)
    rounds = "".join(log[3:])  # the first three samples estimate the cost
    assert rounds == "abcbcacab" * 2
    assert {name: (t.median, t.samples) for name, t in found.items()} == dict.fromkeys("abc", (0.5, 6))


def test_slow_contenders_skip_rounds_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.1, 1.0, 3.0])  # fast takes 0.1 s, slow 2 s
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    log: list[str] = []
    clocks = {"f": FakeClock("f", 0.1, log), "s": FakeClock("s", 2.0, log)}
    found = measure.interleave(clocks, budget=4.0)
    assert (found["f"].samples, found["s"].samples) == (20, measure.LEAST_ROUNDS)
    places = [i for i, name in enumerate(log[2:]) if name == "s"]
    assert max(b - a for a, b in itertools.pairwise(places)) <= 6


def test_extra_memory_sees_a_temporary() -> None:
    size = 1 << 26
    kept = torch.zeros(size, dtype=torch.uint8)
    used = measure.extra_memory(lambda: torch.ones(size, dtype=torch.uint8), torch.device("cpu"))
    if used is None:
        pytest.skip("the system does not report the peak of the resident memory")
    # Other threads of the process may allocate or free some memory at the same time.
    assert used == pytest.approx(size, rel=0.05)
    assert (measure.extra_memory(lambda: kept.fill_(1), torch.device("cpu")) or 0) < size / 16
