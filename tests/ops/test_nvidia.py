"""Why a GPU cannot be used is known before the first use, and without initialising CUDA."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import cats
from cats.ops import nvidia
from tests.ops.conftest import load


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the driver's CUDA version and the number of GPUs. CUDA must not be initialised."""

    def forbidden(*arguments: Any) -> None:
        raise AssertionError("CUDA was initialised")

    for name in ("init", "_lazy_init", "is_available", "get_device_capability", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, forbidden)

    def set_to(driver: int | None = 13000, gpus: int = 1) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(nvidia, "driver", lambda: driver)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return set_to


def test_why_there_is_no_device(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine()
    assert nvidia.why_no_device() is None
    machine(driver=None)
    assert nvidia.why_no_device() == "no NVIDIA driver was found (libcuda.so.1)"
    machine(gpus=0)
    assert nvidia.why_no_device() == "no CUDA device was found"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert nvidia.why_no_device() == "no CUDA device was found (CUDA_VISIBLE_DEVICES is '')"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert nvidia.why_no_device() == "this torch is built without CUDA"


def test_a_driver_loads_code_of_its_major_version(machine: Any) -> None:
    machine(driver=13000)
    assert nvidia.why_too_old(13020, "cats was built with") is None
    assert nvidia.why_too_old(12080, "cats was built with") is None
    machine(driver=12040)
    assert nvidia.why_too_old(13020, "cats was built with") == (
        "the driver supports CUDA 12.4, but cats was built with CUDA 13.2: update the driver to one for CUDA 13"
    )


def test_machine_code_and_ptx(machine: Any) -> None:
    machine(driver=13000)
    for capability in ((8, 0), (8, 9), (9, 0)):
        assert nvidia.why_no_machine_code(capability, 13020) is None
    assert "this GPU has 7.5" in str(nvidia.why_no_machine_code((7, 5), 13000))
    assert nvidia.why_no_machine_code((10, 0), 13000) is None
    reason = nvidia.why_no_machine_code((10, 0), 13020)
    assert reason is not None and "cannot read the PTX of CUDA 13.2" in reason


def test_triton_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    reason = nvidia.why_no_compiler()
    assert reason is not None and "there is no gcc and no clang" in reason
    monkeypatch.setenv("CC", "/opt/cc")
    assert nvidia.why_no_compiler() is None
    (tmp_path / "Python.h").unlink()
    reason = nvidia.why_no_compiler()
    assert reason is not None and "no " + str(tmp_path / "Python.h") in reason
    monkeypatch.setattr(sys, "platform", "win32")
    assert nvidia.why_no_compiler() is None  # Triton brings its own


def test_triton_may_be_given_a_compiler(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    triton, common = pytest.importorskip("triton"), importlib.import_module("cats.kernels.common")
    if not hasattr(triton, "knobs"):
        pytest.skip("this Triton takes no function that compiles")
    path = Path(cats.ops.__file__).parent / "backends" / "triton.py"
    machine()
    monkeypatch.setattr(common, "INTERPRETED", types.SimpleNamespace(value=False))
    monkeypatch.setattr(nvidia, "why_no_compiler", lambda: "there is no compiler")
    monkeypatch.setattr(nvidia, "why_too_old", lambda *arguments: None)
    with pytest.raises(ImportError, match="there is no compiler"):
        load("cats.ops.backends.tried", path)
    monkeypatch.setattr(triton.knobs.build, "impl", lambda *arguments: "")
    assert load("cats.ops.backends.tried", path).LIMITS.tasks == 128


def test_the_cuda_backend_says_why_and_does_not_initialise(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(cats.ops.__file__).parent / "backends" / "cuda.py"
    module = types.SimpleNamespace(cuda=True, cuda_toolkit=lambda: 13000)
    monkeypatch.setattr(cats, "_native", module, raising=False)
    machine(driver=12090)
    with pytest.raises(ImportError, match=r"supports CUDA 12\.9, but cats was built with CUDA 13\.0"):
        load("cats.ops.backends.tried", path)
    machine()
    loaded = load("cats.ops.backends.tried", path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert "this GPU has 7.0" in loaded.lacks(torch.device("cuda", 0))
    del module.cuda_toolkit
    with pytest.raises(ImportError, match="older than this source"):
        load("cats.ops.backends.tried", path)


@pytest.mark.gpu
def test_asking_for_backends_does_not_initialise_cuda(root: Path) -> None:
    import subprocess
    import sys

    code = (
        "import torch; from cats import info, ops; ops.backends(); info.describe(); print(torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.6 comes with Triton 3.2, which does not compile the kernels."""
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", "3.2.0")
    found = importlib.util.find_spec("cats.ops.backends.triton")
    assert found is not None and found.origin is not None
    spec = importlib.util.spec_from_file_location("cats.ops.backends.triton_once_more", found.origin)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"triton 3\.2\.0 is too old: 3\.6 or later is needed"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
