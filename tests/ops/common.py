"""What the operators' tests share: backends, the oracle and checks against it, layouts of tensors, AdamW's state.

The oracle is float64, computed here. Where the numbers are integers of a few bits, every product and every sum is exact
in float32 in any order. Then results must be equal: a number that is lost or counted twice cannot hide in a tolerance.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from cats import ops
from cats.ops import dispatch

Grads = list[list[Any]]  # of tensors and None
Shape = tuple[int, ...]

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TASKS = [1, 2, 3, 5, 8, 16, 33, 92, 128]


# Error bounds. Statistics, relative to the norms: cats.ops promises 2e-6. float64 gradients are summed in float64: a
# thousand roundings of 2^-53 add up to 1e-13. Elements, relative to the sum of absolute products: K + 1 roundings of
# the arithmetic, then one rounding of the result if its dtype is shorter.
STATISTICS = 2e-6
STATISTICS_FLOAT64 = 1e-13
ARITHMETIC = {torch.float64: 2 * 2.0**-53}  # twice, because the oracle has as many roundings
SHORT = {
    torch.bfloat16: (2.0**-8, 2.0**-134),
    torch.float16: (2.0**-11, 2.0**-25),
}  # relative; of subnormals
SMALLEST = 2.0**-150  # half of float32's smallest number: the rounding error of subnormal numbers


# The backends

# Operators that a backend does not have yet. Tests skip them. One that is missing and not named here is a mistake.
LACKS: dict[str, tuple[str, ...]] = {}


class Backend:
    """The operators with one backend, and the device that its tensors are on."""

    def __init__(self, name: str, device: str, interpreted: bool) -> None:
        self.name = name
        self.device = torch.device(device)
        self.interpreted = interpreted  # slow: milliseconds for every program, so only small sizes
        for operator in dispatch.OPERATORS:  # as methods
            setattr(self, operator, functools.partial(self.call, operator))

    def call(self, operator: str, *arguments: Any, **options: Any) -> Any:
        self.needs(operator)
        return getattr(ops, operator)(*arguments, backend=self.name, **options)

    def needs(self, operator: str) -> None:
        """Skips the test if the backend does not have the operator yet."""
        if operator in LACKS.get(self.name, ()):
            pytest.skip(f"backend {self.name} has no {operator} yet")

    def few(self, tasks: int) -> int:
        """This many tasks, but in an interpreter only as many as the kernels for many tasks need."""
        return min(tasks, 12) if self.interpreted else tasks

    def normal(self, tasks: int, shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, seed: int = 0) -> Grads:
        generator = torch.Generator().manual_seed(seed)
        return self.rows(tasks, shapes, lambda shape: torch.randn(shape, generator=generator).to(dtype))

    def integers(self, tasks: int, shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, seed: int = 0) -> Grads:
        """Integers from -3 to 3 without 0, so every lost number changes a sum."""
        generator = torch.Generator().manual_seed(seed)

        def tensor(shape: Shape) -> Tensor:
            numbers = torch.randint(-3, 3, shape, generator=generator)
            return (numbers + (numbers >= 0)).to(dtype)

        return self.rows(tasks, shapes, tensor)

    def rows(self, tasks: int, shapes: Sequence[Shape], tensor: Callable[[Shape], Tensor]) -> Grads:
        return [[tensor(shape).to(self.device) for shape in shapes] for _ in range(tasks)]


@functools.cache
def reasons() -> dict[str, str | None]:
    return ops.backends()


def parameters() -> Iterator[Any]:
    """Backend and device, and for native the instruction set: <backend>-<device>[-<instructions>]."""
    yield from ("reference-cpu", "native-cpu", "triton-cpu")
    for name in ("native-cpu-AVX2", "native-cpu-baseline"):
        yield pytest.param(name, marks=pytest.mark.slow)
    yield "cuda-emulated"
    for name in ("reference-cuda", "triton-cuda", "cuda-cuda"):
        yield pytest.param(name, marks=pytest.mark.gpu)


def use_instructions(name: str, request: pytest.FixtureRequest) -> None:
    """Makes the CPU kernels use this instruction set, if it is a lower one than the processor's best."""
    native = importlib.import_module("cats._native")
    best = native.instructions()
    native.use_instructions(getattr(native.Instructions, name))
    request.addfinalizer(lambda: native.use_instructions(best))
    if native.instructions() == best or native.instructions().name != name:
        pytest.skip(f"this processor's best is {best.name}")


# The oracle and the checks


def stack(grads: Grads) -> list[Tensor | None]:
    """Per parameter: (K, numel) float64 on the CPU, zero for a gradient that is None; None if all are None."""
    stacked: list[Tensor | None] = []
    for column in zip(*grads, strict=True):
        first = next((g for g in column if g is not None), None)
        rows = [first if g is None else g for g in column]
        wide = None if first is None else torch.stack([g.detach().cpu().double().reshape(-1) for g in rows])
        if wide is not None:
            wide[[g is None for g in column]] = 0
        stacked.append(wide)
    return stacked


def by_group(values: Sequence[Tensor | None], groups: Sequence[int], shape: Shape) -> Tensor:
    """(G, *shape): the sums over the parameters of each group."""
    total = torch.zeros(max(groups) + 1, *shape, dtype=torch.float64)
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            total[group] += value
    return total


def outer(left: Tensor, right: Tensor) -> Tensor:
    return left[..., :, None] * right[..., None, :]


def close(got: Tensor, expected: Tensor, allowed: Tensor | float, what: str) -> None:
    assert got.shape == expected.shape, what
    excess = (got.cpu().double() - expected).abs() - allowed
    assert (excess <= 0).all(), f"{what}: the bound is exceeded by {excess.max():.3g}"


def check_combination(
    backend: Backend,
    rows: list[list[Tensor | None]],
    grads: Grads,
    matrix: Tensor,
    exact: bool,
    stacked: list[Tensor | None] | None = None,
) -> list[Tensor | None]:
    """Compares R combinations with float64. Returns them before rounding: (R, numel) float64 per parameter.

    If the result has the precision of the arithmetic, this is the result itself. Then the errors of the combination,
    which have their own bound, do not count as errors of the dots.
    """
    before: list[Tensor | None] = []
    for i, (g, column) in enumerate(zip(stacked or stack(grads), zip(*grads, strict=True), strict=True)):
        results = [row[i] for row in rows]
        first = next((t for t in column if t is not None), None)
        if g is None or first is None:
            assert results == [None] * len(matrix)
            before.append(None)
            continue
        for t in results:
            assert t is not None and not t.requires_grad
            assert (t.shape, t.dtype, t.device) == (first.shape, first.dtype, first.device)
        got = torch.stack([t.cpu().double().reshape(-1) for t in results if t is not None])
        expected = matrix @ g
        allowed = (len(grads) + 1) * (ARITHMETIC.get(first.dtype, 2.0**-24) * (matrix.abs() @ g.abs()) + SMALLEST)
        if first.dtype in SHORT:
            relative, smallest = SHORT[first.dtype]
            allowed += relative * (expected.abs() + allowed) + smallest
        rounded = expected.to(first.dtype).double()
        what = f"combination, parameter {i} of {len(column)}: {first.dtype} {tuple(first.shape)}"
        close(got, rounded if exact else expected, 0.0 if exact else allowed, what)
        before.append(expected if exact or first.dtype in SHORT else got)
    return before


def combinations(weights: Any, grads: Grads) -> tuple[Tensor, Tensor]:
    """The weights as float64 on the CPU: as they were given, and as (R, K)."""
    w = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    return w, w.reshape(-1, len(grads))


def in_one_group(grads: Grads) -> Sequence[int]:
    return [0] * len(grads[0])


def tolerance(grads: Grads, exact: bool) -> float:
    """The allowed error of statistics, relative to the norms."""
    wide = all(g is None or g.dtype == torch.float64 for row in grads for g in row)
    return 0.0 if exact else STATISTICS_FLOAT64 if wide else STATISTICS


def check_statistics(
    backend: Backend, got: Tensor, expected: Tensor, allowed: Tensor, shape: Shape, groups: Any, what: str
) -> None:
    """shape: without groups. expected, allowed: with a leading group axis."""
    assert got.dtype == torch.float64 and got.device.type == backend.device.type
    assert got.shape == (shape if groups is None else (max(groups) + 1, *shape))
    close(got.reshape(expected.shape), expected, allowed, what)


def check_combine(backend: Backend, grads: Grads, weights: Any, *, groups: Any = None, exact: bool = False) -> None:
    """combine against float64: within its bound, or equal if `exact`. It has no groups."""
    w, matrix = combinations(weights, grads)
    combined = backend.combine(grads, weights)
    check_combination(backend, combined if w.dim() == 2 else [combined], grads, matrix, exact)


def check_combine_dots(
    backend: Backend,
    grads: Grads,
    weights: Any,
    *,
    groups: Sequence[int] | None = None,
    out: Any = None,
    exact: bool = False,
) -> None:
    """combine_dots against float64: within its bounds, or equal if `exact`."""
    w, matrix = combinations(weights, grads)
    combined, dots, sqnorms = backend.combine_dots(grads, weights, groups=groups, out=out)
    rows, offered = (combined, out or combined) if w.dim() == 2 else ([combined], [out or combined])
    for written, given in zip(rows, offered, strict=True):
        assert all(a is b or a is None or b is None for a, b in zip(written, given, strict=True))
    stacked, index, tasks, count = stack(grads), groups or in_one_group(grads), len(grads), len(matrix)
    before = check_combination(backend, rows, grads, matrix, exact, stacked)
    relative = tolerance(grads, exact)
    squares = by_group([None if g is None else g.square().sum(1) for g in stacked], index, (tasks,))
    check_statistics(backend, sqnorms, squares, relative * squares, (tasks,), groups, "squared norms")
    pairs = [(g, b) for g, b in zip(stacked, before, strict=True)]
    products = by_group([None if g is None or b is None else b @ g.T for g, b in pairs], index, (count, tasks))
    lengths = by_group([None if b is None else b.square().sum(1) for b in before], index, (count,)).sqrt()
    allowed = relative * outer(lengths, squares.sqrt())
    check_statistics(backend, dots, products, allowed, tuple(w.shape), groups, "dots with the combinations")


def check_dots(
    backend: Backend, grads: Grads, weights: Any, *, groups: Sequence[int] | None = None, exact: bool = False
) -> None:
    """dots with the first combination, rounded to the gradients' dtype, against float64."""
    stacked, (_, matrix) = stack(grads), combinations(weights, grads)
    direction: list[Tensor | None] = []
    for g, column in zip(stacked, zip(*grads, strict=True), strict=True):
        first = next((t for t in column if t is not None), None)
        rounded = None if g is None or first is None else (matrix[0] @ g).to(first.dtype).view(first.shape)
        direction.append(None if rounded is None else rounded.to(backend.device))
    got = backend.dots(grads, direction, groups=groups)

    index, tasks = groups or in_one_group(grads), len(grads)
    vectors = [None if d is None else d.cpu().double().reshape(-1) for d in direction]
    squares = by_group([None if g is None else g.square().sum(1) for g in stacked], index, (tasks,))
    length = by_group([None if d is None else d.square().sum() for d in vectors], index, ()).sqrt()
    pairs = [(g, d) for g, d in zip(stacked, vectors, strict=True)]
    product = by_group([None if g is None or d is None else g @ d for g, d in pairs], index, (tasks,))
    allowed = tolerance(grads, exact) * length[:, None] * squares.sqrt()
    check_statistics(backend, got, product, allowed, (tasks,), groups, "dots with a direction")


def check_gram(
    backend: Backend, grads: Grads, weights: Any = None, *, groups: Sequence[int] | None = None, exact: bool = False
) -> None:
    """gram against float64: within its bound, or equal if `exact`. It has no weights."""
    got = backend.gram(grads, groups=groups)
    index, tasks = groups or in_one_group(grads), len(grads)
    products = by_group([None if g is None else g @ g.T for g in stack(grads)], index, (tasks, tasks))
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    allowed = tolerance(grads, exact) * outer(norms, norms)
    check_statistics(backend, got, products, allowed, (tasks, tasks), groups, "Gram")
    assert torch.equal(got, got.mT)


def check_all(backend: Backend, grads: Grads, weights: Any, *, out: Any = None, **options: Any) -> None:
    """The four checks above."""
    check_combine(backend, grads, weights, **options)
    check_combine_dots(backend, grads, weights, out=out, **options)
    check_dots(backend, grads, weights, **options)
    check_gram(backend, grads, weights, **options)


# Data


def mixed_weights(tasks: int) -> list[float]:
    """Weights of both signs; some are zero, but not the first."""
    return [(1.0, -0.5, 0.0, 2.0)[n % 4] for n in range(tasks)]


def around(*sizes: int) -> list[int]:
    return [size + d for size in sizes for d in (-1, 0, 1)]


FEW = [*range(1, 10), *around(16, 32, 64, 128, 256, 512, 1024, 2048)]
MANY = [*FEW, *around(4096, 8192, 16384, 32768, 65536)]


def offset(t: Tensor, by: int) -> Tensor:
    """The same numbers in memory that begins `by` elements after an aligned address."""
    return torch.cat([t.new_zeros(by), t.flatten()])[by:].view(t.shape)


# From the gradient of task n to the same numbers in another layout.
LAYOUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "transposed": lambda t, n: t.mT.contiguous().mT,
    "permuted": lambda t, n: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "tasks disagree": lambda t, n: t.mT.contiguous().mT if n == 1 else t,
    "every second": lambda t, n: torch.stack([t, t], -1)[..., 0],
    "rows with gaps": lambda t, n: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "one task with gaps": lambda t, n: torch.cat([t, t], -1)[..., : t.shape[-1]] if n == 0 else t,
    "misaligned": lambda t, n: offset(t, 1),
    "misaligned each in its way": offset,
    "one task misaligned": lambda t, n: offset(t, 1) if n == 2 else t,
    "expanded": lambda t, n: t[:1, :, :1].expand(t.shape),
    "one task expanded": lambda t, n: t[:, :1].expand(t.shape) if n == 1 else t,
    "overlapping": lambda t, n: t.flatten().as_strided(t.shape, (1, 1, 1)),
    "some require grad": lambda t, n: t.clone().requires_grad_(n != 1),
    "with a graph": lambda t, n: t.clone().requires_grad_() * 1,
}


ADAMW: dict[str, Any] = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1}
PARAMS: list[Shape] = [(3, 150), (5,), (), (0,), (257,), (8,)]


class State:
    """Parameters with AdamW's moments, and the update."""

    def __init__(self, backend: Backend, dtype: torch.dtype = torch.float32, shapes: Sequence[Shape] = PARAMS) -> None:
        moments = torch.float64 if dtype == torch.float64 else torch.float32
        self.backend = backend
        self.params: list[Tensor] = backend.normal(1, shapes, dtype, seed=9)[0]
        self.exp_avgs = [torch.zeros_like(p, dtype=moments) for p in self.params]
        self.exp_avg_sqs = [torch.zeros_like(p, dtype=moments) for p in self.params]

    def update(self, grads: Grads, weights: Any, **options: Any) -> tuple[Tensor, Tensor]:
        moments = self.exp_avgs, self.exp_avg_sqs
        return self.backend.combine_adamw_(self.params, grads, weights, *moments, **{"step": 1, **ADAMW} | options)

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.params, *self.exp_avgs, *self.exp_avg_sqs]

    def copies(self) -> list[Tensor]:
        return [t.clone() for t in self.tensors]


def task_grads(backend: Backend, tasks: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Grads:
    """Gradients for PARAMS. The first task does not use one of them, and no task uses the last."""
    grads = backend.normal(tasks, PARAMS, dtype, seed)
    grads[0][4] = None if tasks > 1 else grads[0][4]
    return [[*row[:-1], None] for row in grads]


def examples(backend: Backend) -> Any:
    return settings(max_examples=5 if backend.interpreted else 40)


def same(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(left, right, strict=True))


# Random gradients: integers of a few bits, so equality is exact


@st.composite
def integer_grads(draw: st.DrawFn) -> Grads:
    tasks = draw(st.integers(1, 6))
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    touched = [[draw(st.integers(0, 5)) > 0 for _ in shapes] for _ in range(tasks)]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    return [
        [
            torch.randint(-8, 9, shape, generator=generator).to(dtype) if present else None
            for shape, present in zip(shapes, row, strict=True)
        ]
        for row in touched
    ]


def to(backend: Backend, grads: Grads) -> Grads:
    return [[None if g is None else g.to(backend.device) for g in row] for row in grads]
