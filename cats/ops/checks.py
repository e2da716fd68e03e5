"""Checks of the operators' arguments, the same for all operators. A failed check is a ValueError or a TypeError.

C++ checks valid gradients in one pass (`layout.uniform`). Python looks at them again only to say what is wrong, or
where C++ cannot read them: without the compiled module, under torch.compile, for subclasses of Tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import dispatch, layout
from .interface import Draws

Grads = Iterable[Iterable[Tensor | None]]
Weights = Tensor | Iterable[float] | Iterable[Iterable[float]]

_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transform = torch._C._functorch.peek_interpreter_stack  # of torch.func; None outside of all transforms
_MAX_GROUPS = 1 << 31
_POSITIONS = 1 << 40  # between the first elements of two parameters, if positions are not given
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Values:
    """Whether the values of the tensors of a call exist, and where."""

    direct = False  # call the backend without torch.library; see `library.call`
    in_memory = True  # all tensors so far are plain ones, whose numbers are in memory
    fake: bool | None = None  # whether the tensors are FakeTensors; None if none has been seen
    first_ones = "the gradients"  # the tensors that all others are compared with

    def _check_values(self, where: str, t: Tensor) -> None:
        """Raises if the tensor's values do not exist although those of the first ones do.

        If they are not simply in memory (subclasses of Tensor, torch.func, tensors of zeros), the operator is called
        through torch.library, which sees to it.
        """
        if torch.compiler.is_compiling():
            return
        fake = isinstance(t, FakeTensor)
        if self.fake is None:
            self.fake = fake
        elif fake is not self.fake:
            kinds = ("a FakeTensor", "real tensors") if fake else ("a real tensor", "FakeTensors")
            raise TypeError(f"{where}: {kinds[0]}, but {self.first_ones} are {kinds[1]}")
        if type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            self.direct = self.in_memory = False
            return
        try:
            complete = t.device.type == "meta" or layout.in_storage(t)
            in_memory = t.numel() == 0 or t.data_ptr() != 0
        except (NotImplementedError, RuntimeError):  # a tensor of torch.func has no storage
            complete, in_memory = True, False
        if not complete:
            raise ValueError(f"{where}: its storage is too small for its elements; was it freed by storage.resize_()?")
        if not in_memory or type(t) not in (Tensor, torch.nn.Parameter):
            self.direct = self.in_memory = False


class Tasks(_Values):
    """The gradients of all tasks, checked, and the checks of the arguments that belong to them."""

    device: torch.device | None = None  # None if there is no gradient
    fast = False  # all gradients are plain tensors, so C++ can check the other arguments too

    def __init__(self, grads: Grads) -> None:
        # Lists of our own keep the tensors: another thread may change the caller's lists while a kernel runs.
        self.rows: list[list[Any]] = [list(row) if type(row) is list else _row(n, row) for n, row in enumerate(grads)]
        self.count = len(self.rows)  # K
        if self.count == 0:
            raise ValueError("there are no tasks: grads is empty (K = 0)")
        self.size = len(self.rows[0])  # N
        if self.size == 0:
            raise ValueError("there are no parameters: task 0 has no gradients (N = 0)")
        # Per parameter the first gradient that is not None. The others must have its shape, dtype and device.
        self.first: list[Tensor | None] = [None] * self.size
        uniform = None if torch.compiler.is_compiling() else layout.uniform(self.rows)
        if uniform is None:
            self._check_rows()
            if self.device is not None and self.in_memory and not torch.compiler.is_compiling():
                self.direct = self.device.type in dispatch.DEFAULTS and not _is_watched()
            return
        self.rows, self.first, self.fast = uniform, uniform.first, True
        for first in uniform.first:
            if first is not None:
                self.device, self.fake = first.device, False
                self.direct = self.device.type in dispatch.DEFAULTS and not _is_watched()
                break

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
                    self._take_first_or_raise(n, i, g)
                else:
                    self._check_values(f"task {n}, parameter {i}", g)

    def _take_first_or_raise(self, n: int, i: int, g: Tensor) -> None:
        """Takes the first gradient of a parameter; raises if a later one differs from it."""
        where = f"task {n}, parameter {i}"
        _check_tensor(where, g, self.device)
        self._check_values(where, g)
        first = self.first[i]
        if first is None:
            self.first[i], self.device = g, g.device
        elif g.shape != first.shape:
            raise ValueError(f"{where}: shape {tuple(g.shape)}, but task {self._owner(i)} has {tuple(first.shape)}")
        else:
            raise TypeError(f"{where}: dtype {g.dtype}, but task {self._owner(i)} has {first.dtype}")

    def _owner(self, i: int) -> int:
        """The first task that has a gradient for parameter i."""
        return next(n for n, row in enumerate(self.rows) if row[i] is not None)

    def tensors(self, name: str, tensors: Iterable[Tensor], *, moments: bool = False) -> list[Tensor]:
        """N tensors to write into, with the gradients' shapes, dtypes (or the dtypes of their moments) and device."""
        row = list(tensors)
        if not (self.fast and layout.matches(self.first, row, moments=moments)):
            self._check(name, row, _moment_dtype if moments else _same_dtype, written=True)
        return row

    def direction(self, direction: Iterable[Tensor | None]) -> list[Tensor | None]:
        """N tensors with the gradients' shapes and device, of any dtype; None is allowed."""
        row = list(direction)
        if not (self.fast and layout.matches(self.first, row, optional=True)):
            self._check("direction", row, None, optional=True)
        return row

    def out(self, out: Sequence[Any] | None, count: int, single: bool) -> list[list[Tensor | None]]:
        """R rows of N tensors to write into: those given, else new ones; None where no task has a gradient.

        A new tensor has the strides of the first gradient if these have no gaps (channels_last), so that the parameter
        is a dense piece. Otherwise it is dense with its axes in the same order.
        """
        if out is None:
            given: list[list[Any]] = [[None] * self.size for _ in range(count)]
        else:
            given = [list(row) for row in ([out] if single else out)]
            if len(given) != count:
                raise ValueError(f"out has {len(given)} lists, but there are {count} rows of weights")
        rows: list[list[Tensor | None]] = []
        for r, row in enumerate(given):
            if self.fast and layout.matches(self.first, row, optional=True):
                rows.append(row)
                continue
            name = "out" if single else f"out[{r}]"
            self._check(name, row, _same_dtype, optional=True, written=True)
            rows.append(
                [
                    None if first is None else torch.empty_like(first) if t is None else t
                    for t, first in zip(row, self.first, strict=True)
                ]
            )
        if out is not None:
            self.check_shared(rows, ("out",) if single else None)
        return rows

    def check_shared(self, written: list[Any], names: Sequence[str] | None) -> None:
        """Raises if a tensor to write into shares memory with a gradient of its parameter or with another of them.

        names: of the rows of `written`; None: they are the rows of out.
        """
        in_memory = self.fast or (self.fake is False and self.in_memory)
        found = layout.shared(self.rows, written) if in_memory else None
        if found is not None:
            r, i, other, j = found
            names = names or [f"out[{r}]" for r in range(len(written))]
            where = f"task {other}, parameter {j}" if other < self.count else f"{names[other - self.count]}[{j}]"
            raise ValueError(f"{names[r]}[{i}]: shares memory with {where}, so one would overwrite the other")

    def _check(
        self,
        name: str,
        tensors: Sequence[Tensor | None],
        dtype: Callable[[torch.dtype], torch.dtype] | None,
        optional: bool = False,
        written: bool = False,
    ) -> None:
        """Raises unless there is one tensor per parameter, like its gradients.

        dtype: from the gradients' dtype to the tensor's; None allows any. optional: None is allowed among the tensors.
        written: the operator writes into the tensors.
        """
        if len(tensors) != self.size:
            raise ValueError(f"{name} has {len(tensors)} entries, but there are {self.size} parameters")
        for i, (t, first) in enumerate(zip(tensors, self.first, strict=True)):
            if t is None and optional:
                continue
            where = f"{name}[{i}]"
            _check_tensor(where, t, self.device)
            assert t is not None
            self._check_values(where, t)
            if written:
                _check_writable(where, t)
            if first is None:
                continue
            if t.shape != first.shape:
                gradient = f"task {self._owner(i)}, parameter {i} has {tuple(first.shape)}"
                raise ValueError(f"{where}: shape {tuple(t.shape)}, but {gradient}")
            if dtype is not None and t.dtype is not dtype(first.dtype):
                raise TypeError(f"{where}: dtype {t.dtype}, but gradients of {first.dtype} need {dtype(first.dtype)}")

    def weights(self, weights: Weights) -> tuple[Tensor, bool]:
        """(R, K) float64, and whether the weights were given as (K,)."""
        if isinstance(weights, Tensor):
            if weights.is_complex():
                raise TypeError(f"weights must be real, not {weights.dtype}")
            device = weights.device
            if self.device not in (None, device) and device.type != "cpu":
                raise ValueError(f"weights are on {device}, but the gradients are on {self.device}")
            matrix = self._value("weights", weights)
            if matrix.dtype is not torch.float64:
                matrix = matrix.double()
        elif not isinstance(weights, Iterable) or isinstance(weights, (str, dict, set, frozenset)):
            raise TypeError(f"weights must be numbers, one per task, or a tensor, not {type(weights).__name__}")
        else:
            rows = [list(w) if isinstance(w, Iterable) and not isinstance(w, Tensor) else w for w in weights]
            for r, row in enumerate(rows):
                if isinstance(row, list) and len(row) != self.count:
                    raise ValueError(f"weights[{r}] has {len(row)} entries, but there are {self.count} tasks")
            with torch.no_grad():  # the numbers may be tensors that require grad
                matrix = torch.tensor(rows, dtype=torch.float64, device="cpu")
        shape = matrix.shape
        if len(shape) not in (1, 2) or shape[-1] != self.count or shape[0] == 0:
            needed = f"({self.count},) or (R, {self.count})"
            raise ValueError(f"weights has shape {tuple(shape)}, but {self.count} tasks need {needed}")
        return (matrix.unsqueeze(0), True) if len(shape) == 1 else (matrix, False)

    def leak(self, leak: float | Sequence[float]) -> Tensor:
        """(1, K) float64 on the CPU."""
        numbers = [leak] * self.count if isinstance(leak, (int, float)) else leak
        if not isinstance(numbers, (list, tuple)):
            raise TypeError(f"leak must be a number, or one per task, not {type(leak).__name__}")
        if len(numbers) != self.count:
            raise ValueError(f"leak has {len(numbers)} entries, but there are {self.count} tasks")
        for n, number in enumerate(numbers):
            if not isinstance(number, (int, float)):
                raise TypeError(f"leak[{n}] must be a number, not {type(number).__name__}")
            if not 0 <= number <= 1:
                raise ValueError(f"leak[{n}] is {number:g}, but must be from 0 to 1")
        return torch.tensor([[float(number) for number in numbers]], dtype=torch.float64, device="cpu")

    def draws(self, seed: int, step: int, positions: Sequence[int] | None) -> Draws:
        given = range(0, self.size * _POSITIONS, _POSITIONS) if positions is None else positions
        if len(given) != self.size:
            raise ValueError(f"positions has {len(given)} entries, but there are {self.size} parameters")
        numbers = {"seed": seed, "step": step}
        if positions is not None:
            numbers |= {f"positions[{i}]": position for i, position in enumerate(positions)}
        for name, number in numbers.items():
            if not isinstance(number, (int, torch.SymInt)) or isinstance(number, bool):
                raise TypeError(f"{name} must be an int, not {type(number).__name__}")
            least = -(1 << 62) if name == "seed" else 0
            if not least <= number <= 1 << 62:
                raise ValueError(f"{name} is {number}, but must be from {'-2^62' if least else '0'} to 2^62")
        return Draws(seed, step, list(given))

    def scalar(self, name: str, value: float | Tensor) -> Tensor:
        """The number as a tensor without axes."""
        if not isinstance(value, Tensor):
            return torch.tensor(float(value), dtype=torch.float64, device="cpu")
        if value.is_complex():
            raise TypeError(f"{name} must be real, not {value.dtype}")
        if value.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, but must have one element")
        return self._value(name, value).reshape(())

    def _value(self, name: str, t: Tensor) -> Tensor:
        """The tensor with its values in memory as they are, without autograd."""
        if self.fake is False and layout.is_plain(t):
            return t.detach() if t.requires_grad else t
        if t.layout is not torch.strided or t.is_nested or t.is_quantized:
            raise TypeError(f"{name}: {t.layout} and {t.dtype} are not supported, only dense tensors of numbers")
        if torch.compiler.is_compiling():
            return t.detach()
        if t.device.type == "meta" and self.device not in (None, t.device):
            raise ValueError(f"{name}: on meta, so it has no value, but the gradients are on {self.device}")
        self._check_values(name, t)
        plain = t.detach() if t.requires_grad else t
        return plain.clone() if plain.is_neg() or plain._is_zerotensor() else plain

    def groups(self, groups: Sequence[int] | None) -> list[int]:
        """The group of every parameter; one group if none are given."""
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
            if group >= _MAX_GROUPS:
                raise ValueError(f"groups[{i}] is {group}, but must be below {_MAX_GROUPS}")
        return index


class RowMatrices(_Values):
    """The arguments of row_dots, checked. The entries of `rows` are not: reading them may mean waiting for a device."""

    first_ones = "the other arguments"

    def __init__(self, x: Tensor, y: Tensor, rows: Tensor, tasks: int) -> None:
        if not isinstance(tasks, (int, torch.SymInt)) or isinstance(tasks, bool):
            raise TypeError(f"tasks must be an int, the number of tasks, not {type(tasks).__name__}")
        if tasks < 1:
            raise ValueError(f"tasks is {tasks}, but there must be at least one task")
        if isinstance(rows, Tensor) and rows.dtype is torch.int32:
            rows = rows.long()
        self.rows = rows
        if not torch.compiler.is_compiling() and layout.row_matrices(x, y, rows):
            self.direct = x.device.type in dispatch.DEFAULTS and not _is_watched()
        else:
            self._check(x, y, rows)

    def _check(self, x: Tensor, y: Tensor, rows: Tensor) -> None:
        for name, t in ("x", x), ("y", y):
            _check_tensor(name, t, None)
            self._check_values(name, t)
            if t.dim() != 2:
                raise ValueError(f"{name} has shape {tuple(t.shape)}, but must be a matrix, (rows, width)")
        if x.shape != y.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, but y has {tuple(y.shape)}")
        if not isinstance(rows, Tensor):
            raise TypeError(f"rows: expected a tensor, the task of every row, got {type(rows).__name__}")
        if rows.dtype is not torch.int64 or rows.layout is not torch.strided:
            raise TypeError(f"rows: {rows.layout} and {rows.dtype} are not supported, only dense int64 and int32")
        if rows.shape != x.shape[:1]:
            raise ValueError(f"rows has shape {tuple(rows.shape)}, but x has {len(x)} rows")
        self._check_values("rows", rows)
        for name, t in ("y", y), ("rows", rows):
            if t.device != x.device:
                raise ValueError(f"{name} is on {t.device}, but x is on {x.device}")


def _row(n: int, row: Any) -> list[Any]:
    if isinstance(row, Tensor) or not isinstance(row, Iterable):
        kind = "None" if row is None else "one tensor" if isinstance(row, Tensor) else type(row).__name__
        raise TypeError(f"task {n}: expected a sequence of one gradient per parameter, got {kind}")
    return list(row)


def _is_watched() -> bool:
    """Whether something must see every call of an operator: fake tensors, tracing, counting, torch.func, ..."""
    return _dispatch_modes() > 0 or _function_modes() > 0 or _transform() is not None


def _check_tensor(where: str, t: Any, device: torch.device | None) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{where}: expected a tensor, got {type(t).__name__}")
    if t.layout is not torch.strided or t.is_nested:
        kind = "nested" if t.is_nested else t.layout
        raise TypeError(f"{where}: {kind} is not supported, only dense tensors; for embeddings use sparse=False")
    if t.dtype not in _DTYPES:
        raise TypeError(f"{where}: {t.dtype} is not supported, only float32, bfloat16, float16 and float64")
    if device is not None and t.device != device:
        raise ValueError(f"{where}: on {t.device}, but the gradients before it are on {device}")


def _check_writable(where: str, t: Tensor) -> None:
    """Raises if two elements may share memory, or if there is none: a tensor of zeros can be without."""
    span = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if stride < span and size > 1:
            raise ValueError(f"{where}: an expanded tensor cannot be written into, its elements share memory")
        span += (size - 1) * stride
    if not torch.compiler.is_compiling() and t._is_zerotensor():
        raise ValueError(f"{where}: a tensor of zeros without memory cannot be written into; use its clone()")


def _same_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype


def _moment_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32
