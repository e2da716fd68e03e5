"""What ``cats info`` shows: versions, devices, usable backends, and which optional packages are missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from cats.extras import install

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
    "torchjd": {
        "clarabel": "clarabel",
        "cvxpy": "cvxpy",
        "ecos": "ecos",
        "qpsolvers": "qpsolvers",
        "quadprog": "quadprog",
        "scipy": "scipy",
        "torchjd": "torchjd",
    },
    "integrations": {"accelerate": "accelerate", "lightning": "lightning", "transformers": "transformers"},
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


def check() -> Iterator[tuple[str, bool]]:
    """The lines of ``cats info --check``, while the checks run, and whether a line says that something is wrong.

    Every usable backend is compared with float64. See :mod:`cats.ops.check_all`.
    """
    from cats.ops import check_all

    pending = check_all.checks()
    yield f"Checks of cats.ops against float64: {len(pending)}", False
    yield (
        f"  {'backend':<8} {'device':<8} {'operator':<15} {'checks':>6} {'ms (median)':>12} {'ms (longest)':>12}",
        False,
    )
    results = check_all.run(pending)
    for (backend, device, operator), each in groupby(results, key=lambda c: (c.backend, c.device, c.operator)):
        group = list(each)
        if reason := group[0].unsuited:
            yield f"  {backend:<8} {device:<8} {operator:<15} not usable: {reason}", False
            continue
        times = [1e3 * c.seconds for c in group]
        cells = f"{len(group):>6} {statistics.median(times):>12.1f} {max(times):>12.1f}"
        yield f"  {backend:<8} {device:<8} {operator:<15} {cells}", False
        for c in group:
            if c.reason is not None:
                aligned = "" if c.aligned else ", not aligned"
                yield f"    wrong: {c.dtype}, {c.tasks} tasks{aligned}: {c.reason}", True


def _choices() -> list[tuple[str, str]]:
    from cats.ops import dispatch, self_check

    forced = os.environ.get("CATS_BACKEND")
    if forced:
        return [("all devices", f"{forced}, from the environment variable CATS_BACKEND")]
    rows = [(device, dispatch.explain_default(device)) for device in ("cpu", "cuda")]
    return rows + [(f"not {k.backend}", f"for {k}: {reason}") for k, reason in self_check.failures().items()]


def _version(package: str) -> str:
    import importlib.metadata  # slow to import

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> list[tuple[str, str]]:
    """The GPUs. Their names are known only if CUDA is initialised, which this does not do."""
    import torch

    from cats.ops import nvidia

    if reason := nvidia.why_no_device():
        return [("cuda", f"not usable: {reason}")]
    count = torch.cuda.device_count()
    if not torch.cuda.is_initialized():
        driver = nvidia.driver()
        supports = "" if driver is None else f"; the driver supports CUDA {nvidia.version(driver)}"
        return [("cuda", f"{count} {'device' if count == 1 else 'devices'}{supports}")]
    devices = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [
        (f"cuda:{i}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}")
        for i, device in enumerate(devices)
    ]


def _state(extra: str) -> str:
    packages = missing(extra)
    if not packages:
        return "complete"
    return f"missing {', '.join(packages)}; install with: {install(extra)}"
