"""Which backend computes a call, and what the reference computes instead.

A backend is a module in cats/ops/backends. It has some or all of `OPERATORS`; `LIMITS`, what it takes; and
`split`, which makes the dense pieces of memory that its operators take (from cats/ops/layout.py or device_table.py).
row_dots alone takes two matrices, not gradients: its pieces are those of `layout.row_pieces` for every backend.
The reference has no `split`: its operators take the tensors themselves. A backend that cannot work here raises
ImportError with the reason when it is imported.

The choice: the argument `backend`, else the environment variable CATS_BACKEND, else the default order: for tensors on
the CPU native, reference; on a GPU cuda, triton, reference. The order does not depend on timings, so that all ranks of
a distributed run choose alike. A default backend proves itself first (cats/ops/self_check.py), and gives way if it
lacks the operator. A backend asked for by name is not checked. If it cannot be used or lacks the operator, the call
raises. A call without any gradient has no device, so there a backend for other devices will do: nothing is computed.

A call goes to the reference as a whole if it has more tasks than the backend takes, or weights on the CPU that float32
cannot hold. Otherwise the backend gets the dense parameters and the reference gets the rest (the fallback), and the
statistics of both are added. All this also holds for a backend that was asked for by name.

Arguments have been checked. grads: K lists of N tensors or None; weights: (R, K) float64; out: R lists of N tensors,
None where no task has a gradient; groups: N ints. Statistics always have a leading group axis.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import layout, self_check
from .backends import reference
from .interface import AdamW, Draws, Row

OPERATORS = ("combine", "combine_dots", "dots", "gram", "combine_adamw_", "graddrop", "row_dots")
BACKENDS = {name: f"{__package__}.backends.{name}" for name in ("reference", "native", "triton", "cuda")}
# Device type -> backends for calls that name none, in this order, then the reference.
DEFAULTS: dict[str, tuple[str, ...]] = {"cpu": ("native",), "cuda": ("cuda", "triton")}


# The operators


def combine(grads: Sequence[Row], weights: Tensor, out: Sequence[Row], backend: str | None) -> None:
    """Writes the weighted sums of the gradients into out."""
    _run("combine", backend, grads, out, [0] * len(grads[0]), weights)
    _mark_written(*out)


def combine_dots(
    grads: Sequence[Row], weights: Tensor, out: Sequence[Row], groups: Sequence[int], backend: str | None
) -> tuple[Tensor, Tensor]:
    """`combine`; returns dots (G, R, K) with the combinations before rounding, and squared norms (G, K)."""
    dots, sqnorms = _run("combine_dots", backend, grads, out, groups, weights)
    _mark_written(*out)
    return dots, sqnorms


def dots(grads: Sequence[Row], direction: Row, groups: Sequence[int], backend: str | None) -> Tensor:
    """(G, K): <grads[n], direction>; None in the direction is zero."""
    (result,) = _run("dots", backend, grads, [direction], groups)
    return result


def gram(grads: Sequence[Row], groups: Sequence[int], backend: str | None) -> Tensor:
    """(G, K, K): <grads[i], grads[j]>."""
    (result,) = _run("gram", backend, grads, [], groups)
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
    others = [params, exp_avgs, exp_avg_sqs]
    dots, sqnorms = _run("combine_adamw_", backend, grads, others, groups, weights, settings)
    _mark_written(*others)
    return dots, sqnorms


def graddrop(grads: Sequence[Row], leak: Tensor, out: Sequence[Row], draws: Draws, backend: str | None) -> None:
    """Writes the gradients' sums of one sign into out, one row. leak: (1, K) float64."""
    # Kernels number the elements in the order of their memory. Other orders than the row-major one are the reference's.
    first = [next((g for g in column if g is not None), None) for column in zip(*grads, strict=True)]
    others = [i for i, g in enumerate(first) if g is not None and not g.is_contiguous()]
    target: Sequence[Row] = out
    if others:
        check_asked("graddrop", backend)
        reference.graddrop(
            layout.select(grads, others), layout.select(out, others), [0] * len(others), leak, draws.select(others)
        )
        kept = [i for i in range(len(first)) if i not in set(others)]
        grads, target, draws = layout.select(grads, kept), layout.select(out, kept), draws.select(kept)
    if target[0]:
        _run("graddrop", backend, grads, target, [0] * len(grads[0]), leak, draws)
    _mark_written(*out)


def row_dots(x: Tensor, y: Tensor, rows: Tensor, tasks: int, backend: str | None) -> Tensor:
    """(tasks,): by task, the sum of the inner products of the rows of x and y, both (R, W). rows: (R,) int64.

    Raises:
        ValueError: an entry of `rows` on the CPU is neither -1 nor a task.
    """
    if rows.is_cpu and (r := layout.first_outside(rows, tasks)) >= 0:
        raise ValueError(f"rows[{r}] is {int(rows[r])}, but must be a task from 0 to {tasks - 1}, or -1 for none")
    for name, module in _candidates("row_dots", backend, x.device, tasks):
        if x.numel() == 0:
            continue
        pieces = layout.row_pieces(x, y, rows, tasks)
        # The kernels depend on the number of tasks at most by the power of two above it.
        if name is None or self_check.passes(module, name, "row_dots", 1 << (tasks - 1).bit_length(), pieces):
            result: Tensor = module.row_dots(pieces)
            return result
    return reference.row_dots(x, y, rows, tasks)


def _run(
    operator: str,
    backend: str | None,
    grads: Sequence[Row],
    others: Sequence[Row],
    groups: Sequence[int],
    *arguments: Any,
) -> Any:
    """The operator's statistics, by the first backend of the choice that can compute them; None if it has none.

    arguments: the weights or leaks, if the operator has them, and the settings of AdamW or the random numbers.
    """
    device = layout.device_of(grads)
    beyond = len(arguments) > 0 and _beyond_float32(arguments[0])
    for name, module in _candidates(operator, backend, device, len(grads)):
        # If no task has a gradient, there is nothing to compute: the reference returns zeros on the weights' device.
        if device is None or beyond:
            continue
        try:
            return _run_in_passes(module, name, operator, grads, others, groups, *arguments)
        except _Unproved:
            continue
    return getattr(reference, operator)(grads, others, groups, *arguments)


_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def _beyond_float32(weights: Tensor) -> bool:
    """Whether a weight is too large or too small to be a float32 as exact as others: backends multiply in float32.

    Weights on a GPU are not read: the host would wait.
    """
    for row in weights.tolist() if weights.is_cpu else ():
        for w in row:
            if not _SMALLEST <= abs(w) <= _LARGEST and w != 0 and math.isfinite(w):
                return True
    return False


class _Unproved(Exception):
    """The backend has not proved itself for this call. Nothing has been computed with it."""


def _takes(module: ModuleType, tasks: int) -> bool:
    most = module.LIMITS.tasks
    return most is None or tasks <= most


def _run_in_passes(
    module: ModuleType,
    name: str | None,
    operator: str,
    grads: Sequence[Row],
    others: Sequence[Row],
    groups: Sequence[int],
    *arguments: Any,
) -> Any:
    """`_run_dense`, with at most as many rows of weights in a call as the backend takes."""
    most = module.LIMITS.combinations
    if operator not in ("combine", "combine_dots") or most is None or len(others) <= most:
        return _run_dense(module, name, operator, grads, others, groups, *arguments)
    (weights,) = arguments
    starts = range(0, len(weights), most)
    passes = [(others[r : r + most], weights[r : r + most]) for r in starts]
    parts = [_run_dense(module, name, operator, grads, rows, groups, part) for rows, part in passes]
    if operator == "combine":
        return None
    return torch.cat([dots for dots, _ in parts], 1), parts[0][1]


def _run_dense(
    module: ModuleType,
    name: str | None,
    operator: str,
    grads: Sequence[Row],
    others: Sequence[Row],
    groups: Sequence[int],
    *arguments: Any,
) -> Any:
    """The statistics of the dense pieces by the backend, plus those of the fallback by the reference.

    name: of a backend that has to prove itself first; None for one that was asked for.
    """
    pieces, fallback = module.split(grads, others, groups, module.LIMITS.dtype_rule(operator, len(grads)))
    if name is not None and not self_check.passes(module, name, operator, len(grads), pieces):
        raise _Unproved
    statistics = getattr(module, operator)(pieces, *arguments)
    if fallback:
        chosen = layout.select(grads, fallback), layout.select(others, fallback), [groups[i] for i in fallback]
        arguments = tuple(each.select(fallback) if isinstance(each, Draws) else each for each in arguments)
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


def _asked(backend: str | None) -> str | None:
    return backend or os.environ.get("CATS_BACKEND") or None


def _candidates(
    operator: str, backend: str | None, device: torch.device | None, tasks: int
) -> Iterator[tuple[str | None, ModuleType]]:
    """The backends to try before the reference, in order. One that was asked for has no name: it proves nothing.

    device: of the gradients; None if there is none. Then there are no defaults.
    """
    if asked := _asked(backend):
        module = _asked_for(asked, device, operator)
        if module is not reference and _takes(module, tasks):
            yield None, module
        return
    if device is None:
        return
    for name in DEFAULTS.get(device.type, ()):
        found = _load(name)
        if not isinstance(found, str) and unsuited(found, device, operator) is None and _takes(found, tasks):
            yield name, found


# What importing a backend gave, by path. Failures are kept, too: Python would execute the module again at every call.
_modules: dict[str, ModuleType | str] = {}


def _load(name: str) -> ModuleType | str:
    """The backend's module, or the reason why it cannot be used here. Both stay the same for the whole process."""
    path = BACKENDS[name]
    known = _modules.get(path)
    if known is None:
        known = _modules[path] = _import(name, path)
    return known


def _import(name: str, path: str) -> ModuleType | str:
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == path):
            return str(error)
        lack = f"there is no module {path}"
    else:
        if any(hasattr(module, operator) for operator in OPERATORS):
            return module
        lack = f"module {path} has no {', '.join(OPERATORS)}"
    return f"this version of cats has no {name} backend ({lack})"


def load(name: str) -> ModuleType:
    """The backend's module.

    Raises:
        RuntimeError: it cannot be used here.
    """
    module = _load(name)
    if isinstance(module, str):
        raise RuntimeError(f"backend {name!r} cannot be used here: {module}")
    return module


def _asked_for(name: str, device: torch.device | None, operator: str) -> ModuleType:
    """The backend with this name. It need not work on a device if that is None."""
    if name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; the backends are {', '.join(BACKENDS)}")
    module = load(name)
    if (reason := unsuited(module, device, operator)) is not None:
        where = "" if device is None else f" for gradients on {device}"
        raise RuntimeError(f"backend {name!r} cannot be used{where}: {reason}")
    return module


def check_asked(operator: str, backend: str | None) -> None:
    """For what the reference computes in any case: raises if the backend that is asked for cannot be used here.

    torch.compile does not look at it.
    """
    if not torch.compiler.is_compiling() and (asked := _asked(backend)):
        _asked_for(asked, None, operator)


def unsuited(module: ModuleType | str, device: torch.device | None, operator: str | None = None) -> str | None:
    """Why a backend cannot be used for tensors on this device. module: as `_load` returns it.

    A device without an index stands for all of its type: then only the type is looked at. None: there are no tensors.
    """
    if isinstance(module, str):
        return module
    devices = module.LIMITS.devices
    if device is not None and devices is not None and device.type not in devices:
        return f"it works only on {' and '.join(devices)}"
    if operator is not None and not hasattr(module, operator):
        return f"it has no {operator}"
    lacks: Callable[[torch.device], str | None] | None = getattr(module, "lacks", None)
    return None if lacks is None or device is None or device.index is None else lacks(device)


# What was chosen


def backends() -> dict[str, str | None]:
    """Every backend: None if it can be used here, else the reason why not. Does not initialise CUDA."""
    found = {name: _load(name) for name in BACKENDS}
    return {name: module if isinstance(module, str) else None for name, module in found.items()}


def explain_default(device_type: str) -> str:
    """The backend for calls that name none, and why the backends that are preferred to it cannot be used.

    What the current GPU lacks is known only if CUDA is initialised, which this does not do.
    """
    device = torch.device(device_type)
    if device_type == "cuda" and torch.cuda.is_initialized():
        device = torch.device("cuda", torch.cuda.current_device())
    reasons: list[str] = []
    for name in DEFAULTS.get(device_type, ()):
        reason = unsuited(_load(name), device)
        if reason is None:
            return "; ".join([name, *reasons])
        reasons.append(f"not {name}: {reason}")
    return "; ".join(["reference", *reasons])


def choices(device: torch.device) -> str:
    """What decides which backend computes a call, as text: it must be the same in all processes that train one model.

    device: of the gradients. The text names the backends that can be used on it, in order, and the kernels that have
    failed their check in this process. It changes only when a check fails.
    """
    if asked := _asked(None):
        return f"{asked} for all"
    module = {name: _load(name) for name in DEFAULTS.get(device.type, ())}
    usable = [name for name in module if unsuited(module[name], device) is None]
    failed = sorted(
        f"not {kernel.backend} for {kernel.operator} of {', '.join(map(str, kernel.dtypes))}, {kernel.tasks} tasks"
        for kernel in self_check.failures()
        if kernel.device.type == device.type
    )
    return "; ".join([", ".join([*usable, "reference"]), *dict.fromkeys(failed)])
