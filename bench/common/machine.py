"""Facts that a result needs: the machine, the versions of packages, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Machine:
    """cores: how many this process may use. threads: how many torch uses. Without a GPU, the gpu fields are None."""

    cpu: str
    cores: int
    threads: int
    memory_gib: float
    system: str
    gpu: str | None = None
    gpu_memory_gib: float | None = None
    gpu_processors: int | None = None

    def device(self, kind: str) -> str:
        """The name of the device that was measured; kind: "cpu" or "cuda"."""
        if kind == "cuda":
            return self.gpu or "unknown GPU"
        return f"{self.cpu}, {_counted(self.cores, 'core')}, {_counted(self.threads, 'thread')}"


def machine() -> Machine:
    """This machine."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Machine(
        cpu=_cpu(),
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=platform.platform(),
        gpu=gpu.name if gpu else None,
        gpu_memory_gib=round(gpu.total_memory / 2**30, 1) if gpu else None,
        gpu_processors=gpu.multi_processor_count if gpu else None,
    )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cpu() -> str:
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = []
    return models[0].strip() if models else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of Python, CUDA and the packages that matter; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in ("cats-optim", "torch", "numpy", "triton", "torchjd"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> tuple[str | None, bool | None]:
    """The hash of the current commit, and whether source files differ from it. Both are None outside a clone."""
    try:
        head, status = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", "cats", "csrc", "kernels", "bench/*.py"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return head, bool(status)
