"""The operators: contracts, checks, schema, fake versions, and the choice of backend.

`grads` is K sequences (tasks) of N tensors (parameters), as autograd left them: any strides; float32, bfloat16, float16
or float64; shape and dtype of a parameter the same for all tasks; all on one device. None means that this task does not
touch this parameter.

`weights` is K numbers or a tensor, (K,), or (R, K) for R combinations in the same pass. They are not rounded to the
gradients' dtype: products and sums are formed in float32 or better (float64 gradients: float64), and the sum is rounded
once. A tensor of weights is on the CPU or on the gradients' device, where it is read without waiting.

Statistics are float64 tensors on the gradients' device, the same bits on every run and for every thread count; a NaN or
an infinity in a gradient shows in them. `groups`, N ints, splits them by group of parameters: they come back with a
leading axis of G = max(groups) + 1.

The operators are not differentiable: they run without autograd, and no result requires grad. torch.compile takes them
whole, as the custom operators torch.ops.cats.*.

Bad input raises ValueError or TypeError, one line that names task and parameter, counted from 0.

A backend is a module with the functions of `cats.reference`; one that cannot work here raises ImportError with the
reason when it is imported. The choice: argument `backend`, else environment variable CATS_BACKEND, else a table.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import table

__all__ = ["backends", "combine", "combine_adamw_", "combine_dots", "dots", "gram"]

Grads = Iterable[Iterable[Tensor | None]]
Weights = Tensor | Iterable[float] | Iterable[Iterable[float]]

_BACKENDS = {
    "reference": "cats.reference",
    "native": "cats.native",
    "triton": "cats.kernels",
    "cuda": "cats.cuda",
}
_OPERATORS = ("combine", "combine_dots", "dots", "gram", "combine_adamw_")
# Device type -> backends, for calls that do not name one: the first that is usable here, else the reference. Only what
# committed measurements speak for (bench/results): on GPUs there are none yet. Nothing is timed here: every rank must
# choose the same.
_DEFAULTS: dict[str, tuple[str, ...]] = {"cpu": ("native",), "cuda": ()}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def combine(
    grads: Grads, weights: Weights, *, out: Sequence[Any] | None = None, backend: str | None = None
) -> list[Any]:
    """The weighted sum of the tasks' gradients, per parameter: sum_n w_n g_n.

    Returns N tensors of the parameters' shapes and dtypes, None where no task has a gradient; R such lists for (R, K)
    weights. Per element, and for float32, the error is at most (K + 1) 2^-24 sum_n |w_n g_n|.

    out: what an earlier call returned, written again instead of new memory; None in it means new memory. It must not
    overlap the gradients.
    """
    tasks = _Tasks(grads)
    matrix, single = tasks.weights(weights)
    combined = tasks.out(out, len(matrix), single)
    if tasks.direct:
        tasks.backend(backend, matrix).combine(tasks.rows, matrix, combined)
        _mark(_written(combined))
    else:
        _dispatch(torch.ops.cats.combine, tasks.flat, tasks.count, matrix, _written(combined), backend)
    return combined[0] if single else combined


def combine_dots(
    grads: Grads,
    weights: Weights,
    *,
    out: Sequence[Any] | None = None,
    groups: Sequence[int] | None = None,
    backend: str | None = None,
) -> tuple[list[Any], Tensor, Tensor]:
    """`combine`, and the statistics CATS needs, in one read of the gradients.

    Returns (combined, dots, sqnorms): combined as from `combine`, whose rules for `out` hold; dots, (K,) or (R, K),
    <g_n, combined before rounding> over all parameters; sqnorms, (K,), <g_n, g_n>. With groups: (G, K) or (G, R, K),
    and (G, K).
    While squares stay in float32's normal range, |error of dots[n]| <= 2e-6 |g_n| |combined|; so for sqnorms.
    """
    tasks = _Tasks(grads)
    matrix, single = tasks.weights(weights)
    combined = tasks.out(out, len(matrix), single)
    index = tasks.groups(groups)
    if tasks.direct:
        dots, sqnorms = tasks.backend(backend, matrix).combine_dots(tasks.rows, matrix, combined, index)
        _mark(_written(combined))
    else:
        written = _written(combined)
        dots, sqnorms = _dispatch(torch.ops.cats.combine_dots, tasks.flat, tasks.count, matrix, written, index, backend)
    if groups is None:
        sqnorms = sqnorms.view(tasks.count)
        dots = dots.view(tasks.count) if single else dots[0]
    elif single:
        dots = dots.squeeze(1)
    return (combined[0] if single else combined), dots, sqnorms


def dots(
    grads: Grads,
    direction: Iterable[Tensor | None],
    *,
    groups: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """The tasks' inner products with one direction: <g_n, direction>, (K,), or (G, K) with groups.

    direction: N tensors of the parameters' shapes, of any of the dtypes; None is zero.
    |error| <= 2e-6 |g_n| |direction| while squares stay in float32's normal range.
    """
    tasks = _Tasks(grads)
    vector = list(direction)
    if not (tasks.fast and table.matches(tasks.first, vector, optional=True)):
        tasks.check("direction", vector, None, optional=True)
    index = tasks.groups(groups)
    if tasks.device is None:
        result = torch.zeros(max(index) + 1, tasks.count, dtype=torch.float64, device="cpu")
    elif tasks.direct:
        result = tasks.backend(backend).dots(tasks.rows, vector, index)
    else:
        result = _dispatch(torch.ops.cats.dots, tasks.flat, tasks.count, vector, index, backend)
    return result[0] if groups is None else result


def gram(grads: Grads, *, groups: Sequence[int] | None = None, backend: str | None = None) -> Tensor:
    """The Gram matrix of the tasks' gradients: <g_i, g_j>, (K, K), or (G, K, K) with groups; symmetric bit for bit.

    |error| <= 2e-6 |g_i| |g_j| while squares stay in float32's normal range.
    """
    tasks = _Tasks(grads)
    index = tasks.groups(groups)
    if tasks.device is None:
        result = torch.zeros(max(index) + 1, tasks.count, tasks.count, dtype=torch.float64, device="cpu")
    elif tasks.direct:
        result = tasks.backend(backend).gram(tasks.rows, index)
    else:
        result = _dispatch(torch.ops.cats.gram, tasks.flat, tasks.count, index, backend)
    return result[0] if groups is None else result


def combine_adamw_(
    params: Iterable[Tensor],
    grads: Grads,
    weights: Weights,
    exp_avgs: Iterable[Tensor],
    exp_avg_sqs: Iterable[Tensor],
    *,
    step: float | Tensor,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    found_inf: Tensor | None = None,
    grad_scale: Tensor | None = None,
    groups: Sequence[int] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One AdamW update (Loshchilov and Hutter, ICLR 2019, Algorithm 2) with the combined gradient, in the same pass.

    params, exp_avgs, exp_avg_sqs: N tensors each, changed in place as torch.optim.AdamW would; where no task has a
    gradient they stay as they are. Moments are float32, for float64 parameters float64. Parameters of lower precision
    are updated in float32, with a combined gradient that is not rounded to theirs, and rounded once.

    weights: (K,). step: the number of this update, 1 for the first; the caller counts. step and lr may be tensors of
    one element; found_inf and grad_scale are. None of them is waited for. As in torch's fused optimizers the combined
    gradient is divided by grad_scale, and a found_inf other than 0 leaves everything as it was.

    Returns (dots, sqnorms) as `combine_dots` does, of the gradients as given, before grad_scale.
    """
    tasks = _Tasks(grads)
    matrix, single = tasks.weights(weights)
    if not single:
        raise ValueError(
            f"weights has shape {tuple(matrix.shape)}, but an update takes one combination, ({tasks.count},)"
        )
    targets, averages, squares = list(params), list(exp_avgs), list(exp_avg_sqs)
    for name, tensors in ("params", targets), ("exp_avgs", averages), ("exp_avg_sqs", squares):
        moments = tensors is not targets
        if tasks.fast and table.matches(tasks.first, tensors, moments=moments):
            continue
        tasks.check(name, tensors, _moment_dtype if moments else lambda dtype: dtype)
        for i, t in enumerate(tensors):
            _check_writable(f"{name}[{i}]", t)
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"beta1 = {beta1}, beta2 = {beta2}: both must lie in [0, 1)")
    if not isinstance(step, Tensor) and step < 1:
        raise ValueError(f"step is {step}, but the first update is number 1")
    index = tasks.groups(groups)
    options = (
        matrix,
        averages,
        squares,
        _scalar("step", step),
        _scalar("lr", lr),
        beta1,
        beta2,
        eps,
        weight_decay,
        None if found_inf is None else _scalar("found_inf", found_inf),
        None if grad_scale is None else _scalar("grad_scale", grad_scale),
        index,
    )
    if tasks.direct:
        dots, sqnorms = tasks.backend(backend, matrix).combine_adamw_(targets, tasks.rows, *options)
        _mark([*targets, *averages, *squares])
    else:
        operator = torch.ops.cats.combine_adamw_
        dots, sqnorms = _dispatch(operator, targets, tasks.flat, tasks.count, *options, backend)
    dots = dots[:, 0]
    return (dots[0], sqnorms[0]) if groups is None else (dots, sqnorms)


def backends() -> dict[str, str | None]:
    """Every backend with None if it can be used here, else the reason why not."""
    found = {name: _load(name) for name in _BACKENDS}
    return {name: module if isinstance(module, str) else None for name, module in found.items()}


# Checks. Sound gradients are recognised in one pass in C++ (cats.table.uniform); Python goes through them again only to
# say what is wrong, or where there is no compiled module. The dispatcher of torch.library costs a multiple of that, so
# it is left out when nobody would see the call there: no compiler, no tracing, no subclass of Tensor.


class _Tasks:
    """The gradients of all tasks, checked: K = count rows of N = size entries."""

    device: torch.device | None = None  # None as long as no gradient was met
    fast = False  # all are plain tensors, so what else is given can be looked at in C++
    direct = False  # call the backend's function itself

    def __init__(self, grads: Grads) -> None:
        self.rows: list[list[Any]] = [row if type(row) is list else _row(n, row) for n, row in enumerate(grads)]
        self.count = len(self.rows)
        if self.count == 0:
            raise ValueError("there are no tasks: grads is empty (K = 0)")
        self.size = len(self.rows[0])
        if self.size == 0:
            raise ValueError("there are no parameters: task 0 has no gradients (N = 0)")
        # Per parameter, the first gradient there is: the others must be like it.
        self.first: list[Tensor | None] = [None] * self.size
        alike = None if torch.compiler.is_compiling() else table.uniform(self.rows)
        if alike is not None:
            self.rows, self.first, self.fast = alike, alike.first, True
            for first in alike.first:
                if first is not None:
                    self.device = first.device
                    self.direct = self.device.type in _DEFAULTS and not _observed()
                    break
        else:
            self._check_rows()

    def _check_rows(self) -> None:
        for n, row in enumerate(self.rows):
            if len(row) != self.size:
                raise ValueError(f"task {n} has {len(row)} gradients, but task 0 has {self.size}")
            for i, (g, first) in enumerate(zip(row, self.first, strict=True)):
                if g is None:
                    continue
                if (
                    first is None
                    or not isinstance(g, Tensor)
                    or g.shape != first.shape
                    or g.dtype is not first.dtype
                    or g.device != self.device
                    or g.layout is not torch.strided
                ):
                    self._meet(n, i, g)

    @property
    def flat(self) -> list[Tensor | None]:
        """The K N entries, task by task."""
        return [g for row in self.rows for g in row]

    def backend(self, name: str | None, default: Tensor | None = None) -> ModuleType:
        device = self.device if default is None or self.device is not None else default.device
        assert device is not None
        return _backend(name, device)

    def _owner(self, i: int) -> int:
        """The first task that has a gradient for a parameter."""
        return next(n for n, row in enumerate(self.rows) if row[i] is not None)

    def _meet(self, n: int, i: int, g: Tensor) -> None:
        """Take a parameter's first gradient, or say what is wrong with a later one."""
        where = f"task {n}, parameter {i}"
        _check_tensor(where, g, self.device)
        first = self.first[i]
        if first is None:
            self.first[i], self.device = g, g.device
        elif g.shape != first.shape:
            raise ValueError(f"{where}: shape {tuple(g.shape)}, but task {self._owner(i)} has {tuple(first.shape)}")
        else:
            raise TypeError(f"{where}: dtype {g.dtype}, but task {self._owner(i)} has {first.dtype}")

    def check(
        self,
        name: str,
        tensors: Sequence[Tensor | None],
        dtype: Callable[[torch.dtype], torch.dtype] | None,
        optional: bool = False,
    ) -> None:
        """Is there a tensor for every parameter, like its gradients, of the dtype that `dtype` makes of theirs?"""
        if len(tensors) != self.size:
            raise ValueError(f"{name} has {len(tensors)} entries, but there are {self.size} parameters")
        for i, (t, first) in enumerate(zip(tensors, self.first, strict=True)):
            if t is None and optional:
                continue
            where = f"{name}[{i}]"
            _check_tensor(where, t, self.device)
            if t is None or first is None:
                continue
            if t.shape != first.shape:
                gradient = f"task {self._owner(i)}, parameter {i} has {tuple(first.shape)}"
                raise ValueError(f"{where}: shape {tuple(t.shape)}, but {gradient}")
            if dtype is not None and t.dtype is not dtype(first.dtype):
                raise TypeError(f"{where}: dtype {t.dtype}, but gradients of {first.dtype} need {dtype(first.dtype)}")

    def weights(self, weights: Weights) -> tuple[Tensor, bool]:
        """(R, K) float64, and whether R was not given."""
        if isinstance(weights, Tensor):
            if weights.is_complex():
                raise TypeError(f"weights must be real, not {weights.dtype}")
            if self.device not in (None, weights.device) and weights.device.type != "cpu":
                raise ValueError(f"weights are on {weights.device}, but the gradients are on {self.device}")
            matrix = (weights.detach() if weights.requires_grad else weights).double()
        elif not isinstance(weights, Iterable):
            raise TypeError(f"weights must be numbers, one per task, or a tensor, not {type(weights).__name__}")
        else:
            rows = [list(w) if isinstance(w, Iterable) and not isinstance(w, Tensor) else w for w in weights]
            for r, row in enumerate(rows):
                if isinstance(row, list) and len(row) != self.count:
                    raise ValueError(f"weights[{r}] has {len(row)} entries, but there are {self.count} tasks")
            with torch.no_grad():  # among the numbers may be tensors
                matrix = torch.tensor(rows, dtype=torch.float64, device="cpu")
        if matrix.dim() not in (1, 2) or matrix.shape[-1] != self.count or len(matrix) == 0:
            needed = f"({self.count},) or (R, {self.count})"
            raise ValueError(f"weights has shape {tuple(matrix.shape)}, but {self.count} tasks need {needed}")
        return (matrix.unsqueeze(0), True) if matrix.dim() == 1 else (matrix, False)

    def groups(self, groups: Sequence[int] | None) -> list[int]:
        if groups is None:
            return [0] * self.size
        index = list(groups)
        if len(index) != self.size:
            raise ValueError(f"groups has {len(index)} entries, but there are {self.size} parameters")
        for i, group in enumerate(index):
            if not isinstance(group, int) or isinstance(group, bool):
                raise TypeError(f"groups[{i}] must be an int, not {type(group).__name__}")
            if group < 0:
                raise ValueError(f"groups[{i}] is {group}: groups are counted from 0")
        return index

    def out(self, out: Sequence[Any] | None, count: int, single: bool) -> list[list[Tensor | None]]:
        """R rows of N tensors to write into, None where no task has a gradient."""
        if out is None:
            given: list[list[Any]] = [[None] * self.size for _ in range(count)]
        else:
            given = [list(row) for row in ([out] if single else out)]
            if len(given) != count:
                raise ValueError(f"out has {len(given)} lists, but there are {count} rows of weights")
        rows: list[list[Tensor | None]] = []
        for r, row in enumerate(given):
            if self.fast and table.matches(self.first, row, optional=True):
                rows.append(row)
                continue
            name = "out" if single else f"out[{r}]"
            self.check(name, row, lambda dtype: dtype, optional=True)
            for i, t in enumerate(row):
                if t is not None:
                    _check_writable(f"{name}[{i}]", t)
            rows.append(
                [
                    None if first is None else first.new_empty(first.shape) if t is None else t
                    for t, first in zip(row, self.first, strict=True)
                ]
            )
        return rows


def _row(n: int, row: Any) -> list[Any]:
    if isinstance(row, Tensor) or not isinstance(row, Iterable):
        kind = "None" if row is None else "one tensor" if isinstance(row, Tensor) else type(row).__name__
        raise TypeError(f"task {n}: expected a sequence of one gradient per parameter, got {kind}")
    return list(row)


def _written(rows: list[list[Tensor | None]]) -> list[Tensor]:
    return [t for row in rows for t in row if t is not None]


@torch.no_grad()
def _dispatch(operator: Any, *arguments: Any) -> Any:
    """Calls one of torch.ops.cats, unseen by autograd."""
    return operator(*arguments)


def _mark(written: Sequence[Tensor]) -> None:
    """Kernels write to addresses: autograd must be told."""
    torch.autograd.graph.increment_version(written)


def _observed() -> bool:
    """Whether a mode is active that sees operators as they are called: fake tensors, tracing, counting, ..."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0


def _check_tensor(where: str, t: Any, device: torch.device | None) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{where}: expected a tensor, got {type(t).__name__}")
    if t.layout is not torch.strided:
        raise TypeError(f"{where}: {t.layout} is not supported, only dense tensors; for embeddings use sparse=False")
    if t.dtype not in _DTYPES:
        raise TypeError(f"{where}: {t.dtype} is not supported, only float32, bfloat16, float16 and float64")
    if device is not None and t.device != device:
        raise ValueError(f"{where}: on {t.device}, but the gradients before it are on {device}")


def _check_writable(where: str, t: Tensor) -> None:
    if any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True)):
        raise ValueError(f"{where}: an expanded tensor cannot be written into, its elements share memory")


def _moment_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _scalar(name: str, value: float | Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, but must have one element")
    return value.detach().reshape(())


# Backends.


_modules: dict[str, ModuleType] = {}  # those that could be loaded


def _load(name: str) -> ModuleType | str:
    """The backend's module, or the reason why it cannot be used here."""
    path = _BACKENDS[name]
    if path in _modules:
        return _modules[path]
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == path):
            return str(error)
        lack = f"there is no module {path}"
    else:
        missing = [operator for operator in _OPERATORS if not hasattr(module, operator)]
        if not missing:
            _modules[path] = module
            return module
        lack = f"module {path} has no {', '.join(missing)}"
    return f"this version of cats has no {name} backend ({lack})"


def _backend(name: str | None, device: torch.device) -> ModuleType:
    name = name or os.environ.get("CATS_BACKEND")
    if not name:
        name = chosen(device.type)
    if name not in _BACKENDS:
        raise ValueError(f"there is no backend {name!r}; the backends are {', '.join(_BACKENDS)}")
    module = _load(name)
    if isinstance(module, str):
        raise RuntimeError(f"backend {name!r} cannot be used here: {module}")
    if (reason := _unsuited(name, device.type)) is not None:
        raise RuntimeError(f"backend {name!r} cannot be used for gradients on {device}: {reason}")
    return module


def chosen(device_type: str) -> str:
    """The backend of calls that name none, for tensors on this type of device, unless CATS_BACKEND is set."""
    return next((name for name in _DEFAULTS.get(device_type, ()) if _unsuited(name, device_type) is None), "reference")


def choice(device_type: str) -> str:
    """`chosen`, and the reasons against those that would have come before."""
    name = chosen(device_type)
    preferred = _DEFAULTS.get(device_type, ())
    before = preferred[: preferred.index(name)] if name in preferred else preferred
    return "; ".join([name, *(f"not {other}: {_unsuited(other, device_type)}" for other in before)])


def _unsuited(name: str, device_type: str) -> str | None:
    """Why a backend cannot be used for tensors on this type of device."""
    module = _load(name)
    if isinstance(module, str):
        return module
    devices = getattr(module, "DEVICES", (device_type,))
    return None if device_type in devices else f"it works on {' and '.join(devices)}"


# torch.library: gradients travel as one flat list of K N entries, out as the R lists' tensors without the Nones, and
# statistics always have their group and combination axes. Nothing returned shares memory with an argument.

_library = torch.library.Library("cats", "DEF")


def _operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define cats::<schema>, with the decorated function for every device and `fake` for shapes."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, torch.no_grad()(function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"cats::{name}", fake, lib=_library)
        return function

    return register


def _split(flat: Sequence[Tensor | None], count: int) -> list[Sequence[Tensor | None]]:
    size = len(flat) // count
    return [flat[start : start + size] for start in range(0, len(flat), size)]


def _present(flat: Sequence[Tensor | None], default: Tensor | None = None) -> Tensor:
    """A gradient: where and beside which statistics are made."""
    tensor = next((t for t in flat if t is not None), default)
    assert tensor is not None
    return tensor


def _place(
    grads: Sequence[Sequence[Tensor | None]], written: Sequence[Tensor], count: int
) -> list[list[Tensor | None]]:
    """The tensors to write into as R lists of N, None where no task has a gradient."""
    tensors = iter(written)
    touched = [any(g is not None for g in column) for column in zip(*grads, strict=True)]
    return [[next(tensors) if used else None for used in touched] for _ in range(count)]


def _fake_statistics(flat: Sequence[Tensor | None], weights: Tensor, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
    like = _present(flat, weights)
    count = max(groups) + 1
    return (
        like.new_empty((count, *weights.shape), dtype=torch.float64),
        like.new_empty((count, weights.shape[1]), dtype=torch.float64),
    )


@_operator(
    "combine(Tensor?[] grads, int tasks, Tensor weights, Tensor(a!)[] out, str? backend) -> ()",
    lambda grads, tasks, weights, out, backend: None,
)
def _combine(grads: list[Tensor | None], tasks: int, weights: Tensor, out: list[Tensor], backend: str | None) -> None:
    rows = _split(grads, tasks)
    module = _backend(backend, _present(grads, weights).device)
    module.combine(rows, weights, _place(rows, out, len(weights)))
    _mark(out)


@_operator(
    "combine_dots(Tensor?[] grads, int tasks, Tensor weights, Tensor(a!)[] out, int[] groups, str? backend)"
    " -> (Tensor, Tensor)",
    lambda grads, tasks, weights, out, groups, backend: _fake_statistics(grads, weights, groups),
)
def _combine_dots(
    grads: list[Tensor | None],
    tasks: int,
    weights: Tensor,
    out: list[Tensor],
    groups: list[int],
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    rows = _split(grads, tasks)
    module = _backend(backend, _present(grads, weights).device)
    statistics = module.combine_dots(rows, weights, _place(rows, out, len(weights)), groups)
    _mark(out)
    return statistics


@_operator(
    "dots(Tensor?[] grads, int tasks, Tensor?[] direction, int[] groups, str? backend) -> Tensor",
    lambda grads, tasks, direction, groups, backend: _present(grads).new_empty(
        (max(groups) + 1, tasks), dtype=torch.float64
    ),
)
def _dots(
    grads: list[Tensor | None],
    tasks: int,
    direction: list[Tensor | None],
    groups: list[int],
    backend: str | None,
) -> Tensor:
    return _backend(backend, _present(grads).device).dots(_split(grads, tasks), direction, groups)


@_operator(
    "gram(Tensor?[] grads, int tasks, int[] groups, str? backend) -> Tensor",
    lambda grads, tasks, groups, backend: _present(grads).new_empty(
        (max(groups) + 1, tasks, tasks), dtype=torch.float64
    ),
)
def _gram(grads: list[Tensor | None], tasks: int, groups: list[int], backend: str | None) -> Tensor:
    return _backend(backend, _present(grads).device).gram(_split(grads, tasks), groups)


@_operator(
    "combine_adamw_(Tensor(a!)[] params, Tensor?[] grads, int tasks, Tensor weights, Tensor(b!)[] exp_avgs,"
    " Tensor(c!)[] exp_avg_sqs, Tensor step, Tensor lr, float beta1, float beta2, float eps, float weight_decay,"
    " Tensor? found_inf, Tensor? grad_scale, int[] groups, str? backend) -> (Tensor, Tensor)",
    lambda params, grads, tasks, weights, *arguments: _fake_statistics(grads, weights, arguments[-2]),
)
def _combine_adamw_(
    params: list[Tensor], grads: list[Tensor | None], tasks: int, weights: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    *options, groups, backend = arguments
    module = _backend(backend, _present(grads, weights).device)
    statistics = module.combine_adamw_(params, _split(grads, tasks), weights, *options, groups)
    _mark([*params, *options[0], *options[1]])
    return statistics
