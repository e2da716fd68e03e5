"""What keeps this machine from running GPU kernels, found out without initialising CUDA.

A process that has initialised CUDA holds memory on the GPU and cannot fork workers that use it. So asking which
backends are usable must not do it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch


@functools.cache
def driver() -> int | None:
    """The newest CUDA version that the driver supports, as 1000 major + 10 minor; None if there is no driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            version = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0:
                return version.value
        except (OSError, AttributeError):
            continue
    return None


def version(number: int) -> str:
    """13020 as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def why_no_device() -> str | None:
    """Why torch has no GPU here; None if it has one."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    if torch.version.cuda is not None and driver() is None:
        return "no NVIDIA driver was found (libcuda.so.1)"
    # This asks the driver's management library, not CUDA.
    if torch.cuda.device_count() == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return "no CUDA device was found" + ("" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})")
    return None


def why_too_old(toolkit: int, what: str) -> str | None:
    """Why the driver cannot load machine code of this CUDA version; None if it can.

    A driver loads code of every toolkit with the same major version: NVIDIA's minor version compatibility.
    """
    found = driver()
    if found is None or found // 1000 >= toolkit // 1000:
        return None
    return (
        f"the driver supports CUDA {version(found)}, but {what} CUDA {version(toolkit)}: update the driver to one for "
        f"CUDA {toolkit // 1000}"
    )


def why_no_machine_code(capability: tuple[int, int], toolkit: int) -> str | None:
    """Why a GPU cannot run the module's kernels; None if it can. toolkit: the CUDA version that compiled them.

    The module has machine code for capabilities 8.0 and 9.0, which runs on all GPUs with the same major number, and PTX
    (setup.py). The driver compiles PTX for newer GPUs, unless it is older than the toolkit that made it.
    """
    if capability < (8, 0):
        has = ".".join(map(str, capability))
        return f"the CUDA kernels need compute capability 8.0 (A100) or later, this GPU has {has}"
    found = driver()
    if capability[0] > 9 and found is not None and found < toolkit:
        return (
            f"this GPU needs PTX code, but the driver supports CUDA {version(found)} and cannot read the PTX of CUDA "
            f"{version(toolkit)}: update the driver, or build cats with CUDA {version(found)}"
        )
    return None


def why_no_compiler() -> str | None:
    """Why Triton cannot compile the C code with which it starts kernels; None if it can.

    On Windows, Triton brings a compiler and the headers.
    """
    if sys.platform == "win32":
        return None
    if os.environ.get("CC") is None and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton needs a C compiler to start kernels, and there is no gcc and no clang: install one, or set CC"
    scheme = sysconfig.get_default_scheme()
    folder = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    if not Path(folder, "Python.h").is_file():
        return f"Triton needs Python's C headers, and there is no {folder}/Python.h: install python3-dev"
    return None
