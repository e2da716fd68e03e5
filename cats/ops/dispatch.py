"""Which backend computes a call, and what the reference computes instead.

A backend is a module in cats/ops/backends. It has some or all of the five operators; `LIMITS`, what it takes; and
`split`, which makes the dense pieces of memory that its operators take (from cats/ops/layout.py or device_table.py).
The reference has no `split`: its operators take the tensors themselves. A backend that cannot work here raises
ImportError with the reason when it is imported.

The choice: the argument `backend`, else the environment variable CATS_BACKEND, else the first usable one in `DEFAULTS`.
A backend asked for by name is never replaced. An operator that a default backend lacks goes to the next one.

A call goes to the reference as a whole if it has more tasks than the backend takes. Otherwise the backend gets the
dense parameters and the reference gets the rest (the fallback), and the statistics of both are added.

Arguments have been checked. grads: K lists of N tensors or None; weights: (R, K) float64; out: R lists of N tensors,
None where no task has a gradient; groups: N ints. Statistics always have a leading group axis.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import layout
from .backends import reference
from .interface import AdamW, Row

OPERATORS = ("combine", "combine_dots", "dots", "gram", "combine_adamw_")
BACKENDS = {name: f"{__package__}.backends.{name}" for name in ("reference", "native", "triton", "cuda")}
# Device type -> backends for calls that name none, in this order, then the reference. Only backends with committed
# benchmark results (bench/results) are listed; there are none for GPUs yet. The choice does not depend on timings, so
# that all ranks of a distributed run choose the same backend.
DEFAULTS: dict[str, tuple[str, ...]] = {"cpu": ("native",), "cuda": ()}


# The operators


def combine(grads: Sequence[Row], weights: Tensor, out: Sequence[Row], backend: str | None) -> None:
    """Writes the weighted sums of the gradients into out."""
    module = _choose("combine", backend, grads, weights)
    _run_in_passes(module, "combine", grads, out, [0] * len(grads[0]), weights)
    _mark_written(*out)


def combine_dots(
    grads: Sequence[Row], weights: Tensor, out: Sequence[Row], groups: Sequence[int], backend: str | None
) -> tuple[Tensor, Tensor]:
    """`combine`; returns dots (G, R, K) with the combinations before rounding, and squared norms (G, K)."""
    module = _choose("combine_dots", backend, grads, weights)
    statistics = _run_in_passes(module, "combine_dots", grads, out, groups, weights)
    _mark_written(*out)
    return statistics


def dots(grads: Sequence[Row], direction: Row, groups: Sequence[int], backend: str | None) -> Tensor:
    """(G, K): <grads[n], direction>; None in the direction is zero."""
    (result,) = _run(_choose("dots", backend, grads), "dots", grads, [direction], groups)
    return result


def gram(grads: Sequence[Row], groups: Sequence[int], backend: str | None) -> Tensor:
    """(G, K, K): <grads[i], grads[j]>."""
    (result,) = _run(_choose("gram", backend, grads), "gram", grads, [], groups)
    return result


def combine_adamw_(
    params: Row,
    grads: Sequence[Row],
    weights: Tensor,
    exp_avgs: Row,
    exp_avg_sqs: Row,
    settings: AdamW,
    groups: Sequence[int],
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """An AdamW update with the combination for (1, K) weights.

    Returns dots (G, 1, K) and squared norms (G, K) of the gradients before grad_scale.
    """
    module = _choose("combine_adamw_", backend, grads, weights)
    others = [params, exp_avgs, exp_avg_sqs]
    statistics = _run(module, "combine_adamw_", grads, others, groups, weights, settings)
    _mark_written(*others)
    return statistics


def _run_in_passes(
    module: ModuleType, operator: str, grads: Sequence[Row], out: Sequence[Row], groups: Sequence[int], weights: Tensor
) -> Any:
    """`_run` for combine and combine_dots, with at most as many rows of weights in a call as the backend takes."""
    most = module.LIMITS.combinations
    if most is None or len(weights) <= most:
        return _run(module, operator, grads, out, groups, weights)
    starts = range(0, len(weights), most)
    parts = [_run(module, operator, grads, out[r : r + most], groups, weights[r : r + most]) for r in starts]
    if parts[0] is None:
        return None
    return torch.cat([dots for dots, _ in parts], 1), parts[0][1]


def _run(
    module: ModuleType,
    operator: str,
    grads: Sequence[Row],
    others: Sequence[Row],
    groups: Sequence[int],
    *arguments: Any,
) -> Any:
    """The operator's statistics: of the dense pieces by the backend, plus those of the fallback by the reference.

    None for combine, which has no statistics.
    """
    tasks, limits = len(grads), module.LIMITS
    too_many = limits.tasks is not None and tasks > limits.tasks
    if module is reference or too_many:
        return getattr(reference, operator)(grads, others, groups, *arguments)
    pieces, fallback = module.split(grads, others, groups, limits.dtype_rule(operator, tasks))
    statistics = getattr(module, operator)(pieces, *arguments)
    if fallback:
        chosen = layout.select(grads, fallback), layout.select(others, fallback), [groups[i] for i in fallback]
        rest = getattr(reference, operator)(*chosen, *arguments)
        if statistics is not None:
            _add(statistics, rest)
    return statistics


def _add(totals: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    """Adds the statistics of some parameters, in place. The parts may have fewer groups than the totals."""
    for total, part in zip(totals, parts, strict=True):
        total[: len(part)] += part


def _mark_written(*rows: Row) -> None:
    """Tells autograd that these tensors have changed: kernels write to addresses, which autograd does not see."""
    torch.autograd.graph.increment_version([t for row in rows for t in row if t is not None])


# The choice


_modules: dict[str, ModuleType] = {}  # the backends that were imported, by path


def _load(name: str) -> ModuleType | str:
    """The backend's module, or the reason why it cannot be used here."""
    path = BACKENDS[name]
    known = _modules.get(path)
    if known is not None:
        return known
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == path):
            return str(error)
        lack = f"there is no module {path}"
    else:
        if any(hasattr(module, operator) for operator in OPERATORS):
            _modules[path] = module
            return module
        lack = f"module {path} has no {', '.join(OPERATORS)}"
    return f"this version of cats has no {name} backend ({lack})"


def _choose(operator: str, name: str | None, grads: Sequence[Row], weights: Tensor | None = None) -> ModuleType:
    """The backend for this call.

    If no task has a gradient, there is nothing to compute: the reference returns zeros on the weights' device. The
    backend that was asked for is checked all the same.
    """
    device = layout.device_of(grads)
    where = device or layout.device_of([[weights]])
    assert where is not None
    asked = name or os.environ.get("CATS_BACKEND")
    module = _default(where.type, operator)[1] if not asked else _asked_for(asked, where, operator)
    return reference if device is None else module


def _asked_for(name: str, device: torch.device, operator: str) -> ModuleType:
    if name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; the backends are {', '.join(BACKENDS)}")
    module = _load(name)
    if isinstance(module, str):
        raise RuntimeError(f"backend {name!r} cannot be used here: {module}")
    if (reason := _unsuited(module, device.type, operator)) is not None:
        raise RuntimeError(f"backend {name!r} cannot be used for gradients on {device}: {reason}")
    return module


def _default(device_type: str, operator: str | None = None) -> tuple[str, ModuleType]:
    """The first of DEFAULTS that can be used for tensors on this type of device (and for this operator)."""
    for name in DEFAULTS.get(device_type, ()):
        module = _load(name)
        if not isinstance(module, str) and _unsuited(module, device_type, operator) is None:
            return name, module
    return "reference", reference


def _unsuited(module: ModuleType | str, device_type: str, operator: str | None = None) -> str | None:
    """Why a backend cannot be used for tensors on this type of device. module: as `_load` returns it."""
    if isinstance(module, str):
        return module
    devices = module.LIMITS.devices
    if devices is not None and device_type not in devices:
        return f"it works only on {' and '.join(devices)}"
    return None if operator is None or hasattr(module, operator) else f"it has no {operator}"


def backends() -> dict[str, str | None]:
    """Every backend: None if it can be used here, else the reason why not."""
    found = {name: _load(name) for name in BACKENDS}
    return {name: module if isinstance(module, str) else None for name, module in found.items()}


def explain_default(device_type: str) -> str:
    """The backend for calls that name none, and why the backends that are preferred to it cannot be used."""
    name, _ = _default(device_type)
    preferred = DEFAULTS.get(device_type, ())
    before = preferred[: preferred.index(name)] if name in preferred else preferred
    return "; ".join([name, *(f"not {other}: {_unsuited(_load(other), device_type)}" for other in before)])
