"""What a call costs beside the memory: Python and launches on tiny tensors, and how often compiled code compiles."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from bench.common import measure
from cats import ops

from .baselines import unrolled_combine_dots, usable

Record = dict[str, Any]

SIZES = ((2, 1), (8, 1), (8, 25), (8, 100), (8, 200))  # (K, N): up to 1,600 tensors
SETS = 20  # of gradients with addresses of their own, more than the device tables that are kept
COMPILED_CALLS = ((8, 100_000), (8, 200_000), (8, 300_000), (9, 300_000), (10, 300_000))  # (K, P), in this order


def calls(device: torch.device, rounds: int = 25) -> list[Record]:
    """Microseconds of one combine_dots on tensors of 8 elements: with the same gradients as before ("kept"), and with
    gradients at other addresses than in the calls before ("new"), as autograd may leave them."""
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
            records.append(
                {
                    "backend": backend,
                    "tasks": tasks,
                    "tensors": tasks * count,
                    **{f"{kind}_us": statistics.median(found) * 1e6 for kind, found in times.items()},
                }
            )
    return records


def lines(records: list[Record]) -> list[Record]:
    """Per backend and kind of addresses: microseconds of a call by the number of tensors, and those of each further
    tensor, by least squares."""
    found = []
    for backend in dict.fromkeys(r["backend"] for r in records):
        own = [r for r in records if r["backend"] == backend]
        for kind in ("kept", "new"):
            times = {r["tensors"]: r[f"{kind}_us"] for r in own}
            slope = measure.fit(list(times), list(times.values())).slope
            found.append({"backend": backend, "addresses": kind, "us": times, "us_per_tensor": slope})
    return found


def compilations(device: torch.device) -> list[Record]:
    """Seconds of the first call of the compiled K-unrolled combine_dots for each (K, P), and whether it compiled."""
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
        records.append(
            {
                "tasks": tasks,
                "elements": elements,
                "seconds": time.perf_counter() - start,
                "compiled": counters["stats"]["unique_graphs"] > before,
            }
        )
    return records
