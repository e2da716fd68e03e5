"""The roofline of a computation: the shortest time that memory and arithmetic units of this machine allow.

The memory's speed is not a constant of the machine: it depends on the mix of reads and writes, and on what else runs.
So every case has a probe that moves exactly the same bytes, and the probe runs interleaved with what is measured.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

try:
    _native: Any = importlib.import_module("cats._native")
except ImportError:
    _native = None

MATMUL = {"cpu": 1024, "cuda": 8192}  # a matrix product of this size reaches the peak


@dataclass(frozen=True)
class Work:
    """The least that a computation must do.

    read, written: bytes, over all passes. operations: floating-point operations. passes: how often the input is read.
    in_place: what is written was read before, at the same address. matrix_operations: operations if a matrix product
    does the work; 0 if none can.
    """

    read: int
    written: int
    operations: int
    passes: int = 1
    in_place: bool = False
    matrix_operations: int = 0

    @property
    def moved(self) -> int:
        return self.read + self.written


def probe(work: Work, source: Tensor, target: Tensor) -> tuple[str, Callable[[], object]]:
    """The name of a probe, and a function that moves the bytes of `work` and computes nothing.

    source, target: buffers of bytes, large enough for one pass. cats._native.traffic also updates in place, which has
    another speed than reading and writing at different addresses.
    """
    passes = work.passes
    read, written = work.read // passes, work.written
    addresses = source.data_ptr(), target.data_ptr()
    if source.device.type == "cuda" and hasattr(_native, "cuda_traffic"):

        def on_gpu() -> None:
            stream = torch.cuda.current_stream().cuda_stream  # looked up in each call: a capture uses another stream
            for n in range(passes):
                _native.cuda_traffic(addresses[0], read, addresses[1], written if n == 0 else 0, stream)

        return "cats._native.cuda_traffic", on_gpu
    if source.device.type == "cpu" and hasattr(_native, "traffic"):
        threads = torch.get_num_threads()
        apart = read - written if work.in_place else read  # in place, the target is read too

        def on_cpu() -> None:
            for n in range(passes):
                _native.traffic(addresses[0], apart, addresses[1], written if n == 0 else 0, work.in_place, threads)

        return "cats._native.traffic", on_cpu
    # Copy as many bytes as are written, and sum the rest, which starts at the next multiple of 64 bytes.
    copied, place = source[:written], target[:written]
    rests = [source[-(-start // 64) * 64 : read // 64 * 64].view(torch.float32) for start in (written, 0)[:passes]]

    def by_torch() -> None:
        place.copy_(copied)
        for rest in rests:
            rest.sum()

    return "torch copy_ and sum", by_torch


def peaks(device: torch.device) -> dict[str, float]:
    """Operations per second of large matrix products: float32 and float64; on a GPU also tf32, bfloat16 and float16."""
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
    # Random numbers: a GPU multiplies constants faster, because fewer bits change.
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
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


def operation_seconds(work: Work, dtype: torch.dtype, peak: dict[str, float]) -> float:
    """The time of the operations on the unit that is fastest for them.

    Vector units compute in float32, for float64 in float64. Matrix units take bfloat16 and float16 directly, and
    float32 as three products of TF32.
    """
    vector = work.operations / peak["float64" if dtype is torch.float64 else "float32"]
    if not work.matrix_operations:
        return vector
    name = str(dtype).removeprefix("torch.")
    if dtype is torch.float32 and "tf32" in peak:
        return min(vector, 3 * work.matrix_operations / peak["tf32"])
    if dtype in (torch.bfloat16, torch.float16) and name in peak:
        return min(vector, work.matrix_operations / peak[name])
    return vector
