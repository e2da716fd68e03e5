"""The physical limit of a case: the time its bytes need at the memory's measured speed, or its operations at the peak.

The memory's speed is no constant of the machine: it depends on the mix of reads and writes and on the moment. So every
case has a probe that moves exactly its bytes, and runs interleaved with the contenders.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.operators.cases import TWO_PASSES, Problem, Work

try:
    _native: Any = importlib.import_module("cats._native")
except ImportError:
    _native = None

MATMUL = {"cpu": 1024, "cuda": 8192}  # a product of this size reaches the peak


def probe(operator: str, problem: Problem, work: Work) -> tuple[str, Callable[[], object]]:
    """A name, and a function that reads `work.read` bytes and writes `work.written`, and computes nothing.

    What an operator updates in place, cats._native.traffic reads and writes in place: that is another speed.
    """
    passes = 2 if operator == TWO_PASSES else 1
    read, written = work.read // passes, work.written
    source, target = problem.source, problem.target
    addresses = source.data_ptr(), target.data_ptr()
    if problem.device.type == "cuda" and hasattr(_native, "cuda_traffic"):

        def on_gpu() -> None:
            stream = torch.cuda.current_stream().cuda_stream  # asked for each time: a capture has a stream of its own
            for n in range(passes):
                _native.cuda_traffic(addresses[0], read, addresses[1], written if n == 0 else 0, stream)

        return "cats._native.cuda_traffic", on_gpu
    if problem.device.type == "cpu" and hasattr(_native, "traffic"):
        threads = torch.get_num_threads()
        in_place = operator == "combine_adamw_"
        apart = read - written if in_place else read

        def on_cpu() -> None:
            for n in range(passes):
                _native.traffic(addresses[0], apart, addresses[1], written if n == 0 else 0, in_place, threads)

        return "cats._native.traffic", on_cpu
    # A copy of as many bytes as are written, and a sum over the rest, from the next multiple of 64 bytes on.
    copied, place = source[:written], target[:written]
    rests = [source[-(-start // 64) * 64 : read // 64 * 64].view(torch.float32) for start in (written, 0)[:passes]]

    def by_torch() -> None:
        place.copy_(copied)
        for rest in rests:
            rest.sum()

    return "torch copy_ and sum", by_torch


def peaks(device: torch.device) -> dict[str, float]:
    """Operations per second of the arithmetic units, by matrix products: float32, float64, and on a GPU those of the
    matrix units, tf32, bfloat16 and float16."""
    size = MATMUL[device.type]
    found = {
        "float32": _matmul_rate(size, torch.float32, device),
        "float64": _matmul_rate(size // 2, torch.float64, device),
    }
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32"] = _matmul_rate(size, torch.float32, device)
        torch.backends.cuda.matmul.allow_tf32 = before
        found["bfloat16"] = _matmul_rate(size, torch.bfloat16, device)
        found["float16"] = _matmul_rate(size, torch.float16, device)
    return found


def _matmul_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    for _ in range(12):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[2:])


def operation_seconds(operator: str, problem: Problem, work: Work, peak: dict[str, float]) -> float:
    """The time the operations need on the unit that needs the least.

    Vector units: float32, float64 for float64. Gram matrices also on matrix units, which compute the whole square:
    bfloat16 and float16 as they are, float32 in three products of TF32.
    """
    dtype = problem.dtype
    vector = work.operations / peak["float64" if dtype is torch.float64 else "float32"]
    if operator not in ("gram", TWO_PASSES):
        return vector
    square = 2 * problem.tasks**2 * problem.elements
    name = str(dtype).removeprefix("torch.")
    if dtype is torch.float32 and "tf32" in peak:
        return min(vector, 3 * square / peak["tf32"])
    if dtype in (torch.bfloat16, torch.float16) and name in peak:
        return min(vector, square / peak[name])
    return vector
