"""A backend proves itself before it is used by default: an operator is compared with float64 on small gradients.

A kernel can be wrong on a machine that nobody has tried: another driver, another GPU, a new compiler. So at the first
use of a :class:`Kernel` by default, its results must lie within the bounds that `cats.ops` promises. This takes
milliseconds, with Triton also the time to compile the kernel, which the call needs anyway. If the check fails, there is
one warning, and the next backend computes. CATS_SELF_CHECK=0 in the environment skips all checks. A backend that is
asked for by name is not checked: a wrong one would not be replaced. `cats info --check` checks all operators of all
backends, for some numbers of tasks.

While a CUDA graph is captured, nothing can be checked, because a check waits for the device. A kernel that has not
proved itself by then is not used. The call before the capture, which torch asks for anyway, checks it.

The data are the same in every process, so replicas on equal machines decide alike. `cats.ops.dispatch.choices` tells
what this process has decided, so that processes can compare it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .backends.reference import thresholds
from .interface import AdamW, Draws, Dtypes
from .layout import RowPieces

SIZES = (2_100, 130, 7)  # elements of the parameters: a whole tile of every kernel and its end, and less than one
GROUPS = (1, 0, 1)
ADAMW: dict[str, float] = {"beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1}
STEP, LR = 3, 1e-2
# found_inf and grad_scale of updates: not given, or as torch.amp.GradScaler gives them, with and without an overflow.
Scaling = tuple[float, float]
SCALING: tuple[Scaling | None, ...] = (None, (0.0, 4.0), (1.0, 4.0))

# The random numbers of graddrop. Positions are multiples of 4, of one word, and in between.
DRAWS = Draws(seed=-3, step=5, positions=(1 << 40, (1 << 33) - 8, 7))

# Relative errors. Those of float64 have room for the order of the sums.
STATISTICS = {torch.float64: 1e-12}
ARITHMETIC = {torch.float64: 2.0**-50}
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
Array = np.ndarray[Any, np.dtype[np.float64]]


class Kernel(NamedTuple):
    """What a check decides about: an operator of a backend, for gradients of one kind."""

    backend: str
    operator: str
    device: torch.device
    dtypes: Dtypes  # of a parameter's gradients, then of each of its other tensors
    aligned: bool
    tasks: int  # there may be a kernel for each number of tasks, as in Triton

    def __str__(self) -> str:
        dtypes = ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in self.dtypes))
        return f"{self.operator} of {dtypes}, {self.tasks} tasks, on {self.device}"


_found: dict[Kernel, str | None] = {}  # None: the kernel is right; else what was wrong
_lock = threading.RLock()  # not a Lock: while a check runs, the garbage collector may run code that calls an operator


def passes(module: ModuleType, name: str, operator: str, tasks: int, pieces: Any) -> bool:
    """Whether the backend may compute this operator on these dense pieces. Checks it at the first use.

    name: of the backend. pieces: as the backend's `split` made them.
    """
    return not enabled() or all(
        _passes(module, Kernel(name, operator, pieces.device, dtypes, aligned, tasks))
        for dtypes, aligned in pieces.kinds
    )


def _passes(module: ModuleType, kernel: Kernel) -> bool:
    if kernel in _found:
        return _found[kernel] is None
    with _lock:
        if kernel in _found:  # another thread was faster
            return _found[kernel] is None
        if kernel.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            warnings.warn(
                f"backend {kernel.backend!r} is not used for {kernel}: it has not been checked, and nothing can be "
                "checked while a CUDA graph is captured; call the operator once before the capture",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        reason = _found[kernel] = check(module, kernel)
    if reason is not None:
        warnings.warn(
            f"backend {kernel.backend!r} failed its check and is not used for {kernel}: {reason} "
            "(`cats info --check` checks all operators)",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason is None


def enabled() -> bool:
    """Whether backends are checked: unless CATS_SELF_CHECK is 0.

    Raises:
        ValueError: it is something else than 0, 1 or nothing.
    """
    value = os.environ.get("CATS_SELF_CHECK", "")
    if value not in ("", "0", "1"):
        raise ValueError(
            f"the environment variable CATS_SELF_CHECK is {value!r}, but must be 0 (no checks), 1 or unset"
        )
    return value != "0"


def failures() -> dict[Kernel, str]:
    """The kernels that have failed their check in this process, and why."""
    return {kernel: reason for kernel, reason in list(_found.items()) if reason is not None}


def check(module: ModuleType, kernel: Kernel) -> str | None:
    """What is wrong with the results; None if they are right. Waits for the device.

    Raises what says nothing about the backend: that memory is short, and the error of an earlier kernel on the device.
    """
    if kernel.device.type == "cuda":
        torch.cuda.synchronize(kernel.device)  # raises the errors of earlier kernels
    with torch.inference_mode(False), torch.no_grad():
        try:
            return _row_dots(module, kernel) if kernel.operator == "row_dots" else _Check(kernel).run(module)
        except Exception as error:
            # Drivers and compilers have no type for it.
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in str(error):
                raise
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


class _Check:
    """Gradients on the device, the same as float64 on the host, and the comparison.

    The host computes with numpy, and without matrix products: for these sizes the threads of a BLAS take longer.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.dtype = kernel, kernel.dtypes[0]
        self.tasks = tasks = kernel.tasks
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.rows = [self.tensors(self.dtype) for _ in range(tasks)]
        self.grads: list[list[Tensor | None]] = [list(row) for row in self.rows]
        self.matrix = np.stack([wide(row) for row in self.rows])  # (K, P)
        if tasks > 1:  # a task that does not use a parameter
            self.grads[0][1] = None
            self.matrix[0, SIZES[0] : SIZES[0] + SIZES[1]] = 0
        # Weights of both signs that no short float can hold.
        count = len(kernel.dtypes) - 1 if kernel.operator in ("combine", "combine_dots") else 1
        self.weights = np.array([[((n + r) % 5 - 1.3) / 3 for n in range(tasks)] for r in range(count)])
        self.combined = np.einsum("rk,kp->rp", self.weights, self.matrix)  # (R, P)
        arithmetic = (tasks + 1) * ARITHMETIC.get(self.dtype, 2.0**-24)
        self.allowed = arithmetic * np.einsum("rk,kp->rp", np.abs(self.weights), np.abs(self.matrix))
        self.leak = np.array([[n % 4 / 4 for n in range(tasks)]])
        self.relative = STATISTICS.get(self.dtype, 2e-6)

    def tensors(self, dtype: torch.dtype, positive: bool = False) -> list[Tensor]:
        """Random tensors of all sizes on the device, aligned or not."""
        found = []
        for size in SIZES:
            values = torch.randn(size + 1, generator=self.generator, dtype=torch.float32, device="cpu")
            memory = (values.abs() + 0.5 if positive else values).to(dtype).to(self.kernel.device)
            found.append(memory[:-1] if self.kernel.aligned else memory[1:])
        return found

    def run(self, module: ModuleType) -> str | None:
        cases = SCALING if self.kernel.operator == "combine_adamw_" else (None,)
        return next(filter(None, (self.run_case(module, scaling) for scaling in cases)), None)

    def run_case(self, module: ModuleType, scaling: Scaling | None) -> str | None:
        kernel = self.kernel
        operator, dtypes = kernel.operator, kernel.dtypes
        weights = torch.from_numpy(self.weights)
        others: list[list[Tensor]] = []
        arguments: list[Any] = []
        if operator == "combine_adamw_":
            others = [self.tensors(dtypes[1]), self.tensors(dtypes[2]), self.tensors(dtypes[3], positive=True)]
            step, lr = (torch.tensor(float(x), dtype=torch.float64, device="cpu") for x in (STEP, LR))
            found_inf, grad_scale = (
                None if x is None else torch.tensor(x, dtype=torch.float32, device=kernel.device)
                for x in scaling or (None, None)
            )
            arguments = [weights, AdamW(step, lr, **ADAMW, found_inf=found_inf, grad_scale=grad_scale)]
        elif operator == "dots":
            others = [self.tensors(dtypes[1])]
        elif operator in ("combine", "combine_dots"):
            others = [self.tensors(dtype) for dtype in dtypes[1:]]
            arguments = [weights]
        elif operator == "graddrop":
            others = [self.tensors(dtypes[1])]
            arguments = [torch.from_numpy(self.leak), DRAWS]
        before = [wide(row) for row in others]
        rule = module.LIMITS.dtype_rule(operator, self.tasks)
        pieces, fallback = module.split(self.grads, others, GROUPS, rule)
        if fallback:
            return f"it leaves the parameters {fallback} to another backend"
        statistics = getattr(module, operator)(pieces, *arguments)
        found = [t.detach().cpu().numpy() for t in statistics or ()]
        return self.compare(found, before, [wide(row) for row in others], scaling)

    def compare(
        self, found: Sequence[Array], before: Sequence[Array], after: Sequence[Array], scaling: Scaling | None
    ) -> str | None:
        operator = self.kernel.operator
        if operator == "gram":
            return differs("the Gram matrix", found[0], *self.products(self.matrix))
        if operator == "dots":
            expected, allowed = self.products(before[0][None])
            return differs("the dots", found[0], expected[..., 0], allowed[..., 0])
        if operator == "graddrop":
            return self.compare_drop(after[0])
        if operator == "combine_adamw_":
            wrong = self.compare_update(before, after, scaling)
        elif operator in ("combine", "combine_dots"):
            allowed = self.allowed + rounding(self.dtype, self.combined)
            wrong = differs("the combination", np.stack(after), self.combined, allowed)
        else:
            raise NotImplementedError(f"cats/ops/self_check.py does not know what {operator} must compute")
        if wrong is not None or operator == "combine":
            return wrong
        expected, allowed = self.products(self.combined)
        # The combination that the dots belong to has an error, too.
        allowed = allowed + by_group(np.abs(self.matrix), self.allowed)
        squares = norms(self.matrix)
        return differs("the dots", found[0], expected.swapaxes(1, 2), allowed.swapaxes(1, 2)) or differs(
            "the squared norms", found[1], squares, self.relative * squares
        )

    def compare_update(self, before: Sequence[Array], after: Sequence[Array], scaling: Scaling | None) -> str | None:
        """AdamW in float64. The update is smooth: the second moments are at least 0.5."""
        param, average, square = before
        found_inf, grad_scale = scaling or (0.0, 1.0)
        if found_inf:
            return differs("what must not be updated", np.stack(after), np.stack(before), np.zeros_like(before))
        grad, error = self.combined[0] / grad_scale, self.allowed[0] / grad_scale
        beta1, beta2 = ADAMW["beta1"], ADAMW["beta2"]
        average = beta1 * average + (1 - beta1) * grad
        square = beta2 * square + (1 - beta2) * grad**2
        size = LR / (1 - beta1**STEP)
        denominator = np.sqrt(square) / (1 - beta2**STEP) ** 0.5 + ADAMW["eps"]
        param = param * (1 - LR * ADAMW["weight_decay"]) - size * average / denominator
        # A moment has the error of the combination, and at most four roundings.
        moment = 4 * ROUNDING[self.kernel.dtypes[2]]
        average_error = error + moment * (np.abs(average) + np.abs(grad))
        square_error = 2 * np.abs(grad) * error + error**2 + moment * (square + grad**2)
        param_error = size * (average_error + square_error * np.abs(average)) + moment * np.abs(param)
        return (
            differs("the first moments", after[1], average, average_error)
            or differs("the second moments", after[2], square, square_error)
            or differs("the parameters", after[0], param, param_error + rounding(self.kernel.dtypes[1], param))
        )

    def compare_drop(self, after: Array) -> str | None:
        """GradDrop in float64. Where P is close to U, both signs are right."""
        up, down = np.maximum(self.matrix, 0), np.minimum(self.matrix, 0)
        leak = self.leak.T
        both = np.stack([(up + leak * down).sum(0), (down + leak * up).sum(0)])
        sizes = np.stack([(up - leak * down).sum(0), (leak * up - down).sum(0)])
        unit = ARITHMETIC.get(self.dtype, 2.0**-24)
        allowed = (self.tasks + 1) * unit * sizes + rounding(self.dtype, both)
        first = zip(DRAWS.positions, SIZES, strict=True)
        bound = np.concatenate([thresholds(DRAWS, *each, torch.device("cpu")).numpy() for each in first])
        size = (up - down).sum(0)
        above = self.matrix.sum(0) - bound * size  # of 0 for P = U
        right = np.where(above > 0, 0, 1)
        # Where the other sign is allowed too, the one that is nearer to the result counts.
        near = np.abs(above) <= 2 * (self.tasks + 4) * unit * size
        right = np.where(near, np.abs(after - both).argmin(0), right)[None]
        expected, error = (np.take_along_axis(each, right, 0)[0] for each in (both, allowed))
        return differs("the result", after, expected, error)

    def products(self, right: Array) -> tuple[Array, Array]:
        """(G, K, R) inner products of the gradients with the rows of (R, P), and the allowed errors."""
        left, other = np.sqrt(norms(self.matrix)), np.sqrt(norms(right))
        return by_group(self.matrix, right), self.relative * left[:, :, None] * other[:, None, :]


def _row_dots(module: ModuleType, kernel: Kernel) -> str | None:
    """What is wrong with row_dots, of long rows and of many short ones. The tasks are mixed; some rows have none."""
    generator = torch.Generator("cpu").manual_seed(0)
    tasks, relative = kernel.tasks, STATISTICS.get(kernel.dtypes[0], 2e-6)
    for count, width, stride in (9, 2_100, 2_104), (2 * tasks + 130, 8, 8):
        first = 0 if kernel.aligned else 1
        shape, columns = (count, stride + first * 8), slice(first, first + width)
        left, right = (
            torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(kernel.device, dtype)[
                :, columns
            ]
            for dtype in kernel.dtypes
        )
        owners = torch.randint(-1, tasks, (count,), generator=generator, device="cpu")
        found = module.row_dots(RowPieces(left, right, owners.to(kernel.device), tasks))
        x, y = (matrix.cpu().double().numpy() for matrix in (left, right))
        numbers = owners.numpy()
        has_owner = numbers >= 0
        expected, squares, others = (
            np.bincount(numbers[has_owner], np.einsum("rw,rw->r", a, b)[has_owner], minlength=tasks).astype(np.float64)
            for a, b in ((x, y), (x, x), (y, y))
        )
        wrong = differs("the sums", found.cpu().numpy(), expected, relative * np.sqrt(squares * others))
        if wrong is not None:
            return wrong
    return None


def inner(left: Array, right: Array) -> Array:
    return np.einsum("ik,jk->ij", left, right)


def by_group(left: Array, right: Array) -> Array:
    """(G, I, J): the inner products of the rows of (I, P) and (J, P) over the parameters of each group."""
    total = np.zeros((max(GROUPS) + 1, len(left), len(right)))
    end = 0
    for size, group in zip(SIZES, GROUPS, strict=True):
        begin, end = end, end + size
        total[group] += inner(left[:, begin:end], right[:, begin:end])
    return total


def norms(rows: Array) -> Array:
    """(G, I): the squared norms of the rows of (I, P) over the parameters of each group."""
    return np.stack([by_group(row[None], row[None])[:, 0, 0] for row in rows], axis=1)


def rounding(dtype: torch.dtype, values: Array) -> Array:
    """The error of rounding numbers close to these."""
    smallest = 2.0**-24 if dtype is torch.float16 else 2.0**-126
    return 2 * ROUNDING[dtype] * np.abs(values) + smallest


def wide(row: Sequence[Tensor]) -> Array:
    """(P,) float64 on the host."""
    return np.concatenate([t.detach().cpu().double().numpy() for t in row])


def differs(what: str, got: Array, expected: Array, allowed: Array) -> str | None:
    if got.shape != expected.shape:
        return f"{what}: shape {got.shape} instead of {expected.shape}"
    error = np.abs(got - expected)
    wrong = ~(error <= allowed)  # true for NaN, too
    if not wrong.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = np.nan_to_num(error[wrong] / allowed[wrong], nan=np.inf).max()
    return f"{what}: {wrong.sum()} of {wrong.size} numbers are wrong, by up to {worst:.3g} times the bound"
