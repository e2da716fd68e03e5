"""Measures what a call costs besides memory traffic: Python, kernel launches and compilation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from bench.common import measure
from cats import ops

from .backends import usable
from .baselines.compiled import unrolled_combine_dots
from .records import Compilation, TinyCall, TinyCallLine

SIZES = ((2, 1), (8, 1), (8, 25), (8, 100), (8, 200))  # (K, N): up to 1,600 tensors
SETS = 20  # sets of gradients at different addresses; more than the device tables that are kept
COMPILED_CALLS = ((8, 100_000), (8, 200_000), (8, 300_000), (9, 300_000), (10, 300_000))  # (K, P), in this order


def calls(device: torch.device, rounds: int = 25) -> list[TinyCall]:
    """Times combine_dots on tensors of 8 elements.

    "kept" is a call with the gradients of the call before, "new" a call with gradients at other addresses, as autograd
    may leave them.
    """
    records = []
    for tasks, count in SIZES:
        sets = [[[torch.ones(8, device=device) for _ in range(count)] for _ in range(tasks)] for _ in range(SETS)]
        out = [torch.zeros(8, device=device) for _ in range(count)]
        weights = torch.full((tasks,), 1 / tasks, dtype=torch.float64, device=device)
        for backend in usable(device):
            times: dict[str, list[float]] = {"kept": [], "new": []}
            for r in range(rounds):
                for kind, grads in (("new", sets[r % SETS]), ("kept", sets[r % SETS])):
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    start = time.perf_counter()
                    ops.combine_dots(grads, weights, out=out, backend=backend)
                    times[kind].append(time.perf_counter() - start)
            kept, new = (statistics.median(times[kind]) * 1e6 for kind in ("kept", "new"))
            records.append(TinyCall(backend, tasks, tasks * count, kept, new))
    return records


def lines(records: Sequence[TinyCall]) -> list[TinyCallLine]:
    """Microseconds against the number of tensors, per backend and kind of addresses, with a least-squares slope."""
    found = []
    for backend in dict.fromkeys(r.backend for r in records):
        own = [r for r in records if r.backend == backend]
        for kind, times in (
            ("kept", {r.tensors: r.kept_us for r in own}),
            ("new", {r.tensors: r.new_us for r in own}),
        ):
            slope = measure.fit(list(times), list(times.values())).slope
            found.append(TinyCallLine(backend, kind, times, slope))
    return found


def compilations(device: torch.device) -> list[Compilation]:
    """Times the first call of the compiled, K-unrolled combine_dots for each (K, P), and tells whether it compiled."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    function = torch.compile(unrolled_combine_dots, fullgraph=True)
    records = []
    for tasks, elements in COMPILED_CALLS:
        grads = [torch.ones(elements, device=device) for _ in range(tasks)]
        weights = torch.full((tasks,), 1 / tasks, device=device)
        out = torch.zeros(elements, device=device)
        before = counters["stats"]["unique_graphs"]
        start = time.perf_counter()
        function(grads, weights, out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        records.append(Compilation(tasks, elements, seconds, counters["stats"]["unique_graphs"] > before))
    return records
