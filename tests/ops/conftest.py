"""The backends as fixtures. The CUDA kernels run without a GPU, too: compiled for the CPU, in an emulator.

The emulator (cuda_emulator.h) gives a C++ compiler the few names that the kernels need of a device. It cannot show what
only the device has: the exact rounding of its matrix units (the emulator's is close), its caches, its speed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import pybind11
import pytest
import torch

import cats
from cats.ops import device_table, dispatch, nvidia
from tests.ops.common import Backend, parameters, reasons, use_instructions


@pytest.fixture(params=parameters())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every backend on every device that it works on."""
    name, device, *instructions = request.param.split("-")
    if device == "emulated":
        request.getfixturevalue("emulated")
        return Backend(name, "cpu", interpreted=True)
    if reason := reasons()[name]:
        pytest.skip(reason)
    if instructions:
        use_instructions(instructions[0], request)
    if name == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    found = Backend(name, device, interpreted=name == "triton" and device == "cpu")
    if found.interpreted:  # short chunks, so that there are several
        monkeypatch.setattr(device_table, "MIN_CHUNK", 2048)
    return found


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulator(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """csrc/*.cu compiled for this machine's processor: the functions of cats._native that the backend cuda calls."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("emulator") / "cuda_emulator.so"
    flags = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-fPIC", "-shared", "-w"]
    folders = [root / "tests" / "ops", root / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    done = subprocess.run(
        [compiler, *flags, *(f"-I{f}" for f in folders), root / "tests" / "ops" / "cuda_emulator.cpp", "-o", library],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load("cuda_emulator", library)


@pytest.fixture(scope="session")
def emulated_module(emulator: Any) -> Any:
    """cats/ops/backends/cuda.py with the emulator for its kernels, for tensors on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cats._native", emulator)
        patch.setattr(cats, "_native", emulator, raising=False)
        patch.setattr(nvidia, "why_no_device", lambda: None)
        module = load("cats.ops.backends.emulated", Path(cats.ops.__file__).parent / "backends" / "cuda.py")
    module.LIMITS = dataclasses.replace(module.LIMITS, devices=("cpu",))
    return module


@pytest.fixture
def emulated(emulated_module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """This module as backend "cuda"."""
    monkeypatch.setitem(sys.modules, "cats.ops.backends.emulated", emulated_module)
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", "cats.ops.backends.emulated")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return emulated_module
