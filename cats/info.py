"""What ``cats info`` shows: versions, devices, usable backends, and which optional packages are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

# {extra: {module to import: package to install}}, the same as in pyproject.toml.
EXTRAS = {
    "nmt": {
        "babel": "babel",
        "matplotlib": "matplotlib",
        "sacrebleu": "sacrebleu",
        "safetensors": "safetensors",
        "sentencepiece": "sentencepiece",
        "tqdm": "tqdm",
    },
    "triton": {"triton": "triton"},
    "bench": {"matplotlib": "matplotlib", "torchjd": "torchjd"},
}


def missing(extra: str) -> list[str]:
    """The packages of an optional extra, such as "nmt", that are not installed."""
    return [package for module, package in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]


def describe() -> str:
    """The text of ``cats info``. For a backend that cannot be used, it says why."""
    import torch

    import cats

    sections = {
        "Versions": [
            ("cats", f"{cats.__version__}  ({Path(cats.__file__).parent})"),
            ("python", f"{platform.python_version()}  ({platform.platform()})"),
            *((name, _version(name)) for name in ("torch", "numpy", "triton")),
        ],
        "Devices": [("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"), *_gpus()],
        "Backends of cats.ops": [
            (name, _backend(name) if reason is None else f"not usable: {reason}")
            for name, reason in cats.ops.backends().items()
        ],
        "Choice if no backend is named": _choices(),
        "Extras": [(f"[{extra}]", _state(extra)) for extra in EXTRAS],
    }
    width = max(len(name) for rows in sections.values() for name, _ in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows)]) for title, rows in sections.items()
    )


def _backend(name: str) -> str:
    import torch

    if name != "native":
        return "usable"
    from cats.ops.backends import native

    threads = f"{torch.get_num_threads()} threads"
    whose = f"torch's ({native.openmp})" if native.openmp else "its own"
    return f"usable: {native.instructions()} instructions, {threads} of {whose}"


def _choices() -> list[tuple[str, str]]:
    from cats.ops import dispatch

    forced = os.environ.get("CATS_BACKEND")
    if forced:
        return [("all devices", f"{forced}, from the environment variable CATS_BACKEND")]
    return [(device, dispatch.explain_default(device)) for device in ("cpu", "cuda")]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> list[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        built = "no device found" if torch.version.cuda else "this torch is built without CUDA"
        return [("cuda", f"not usable: {built}")]
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        (f"cuda:{i}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}")
        for i, device in enumerate(devices)
    ]


def _state(extra: str) -> str:
    packages = missing(extra)
    if not packages:
        return "complete"
    return f"missing {', '.join(packages)}; install with: pip install 'cats-optim[{extra}]'"
