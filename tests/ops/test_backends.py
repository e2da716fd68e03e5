"""The same questions to every backend that this machine has: values, bits, and what the contracts of cats.ops promise.

The oracle is float64, computed here. Where the numbers are integers of a few bits, every product and every sum is exact
in float32 in whatever order, and results have to be equal: nothing lost or counted twice can hide behind a tolerance.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import mmap
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cats import ops
from cats.ops import device_table

Grads = list[list[Any]]  # of tensors and None
Shape = tuple[int, ...]

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TASKS = [1, 2, 3, 5, 8, 16, 33, 92, 128]

# Bounds. Statistics, relative to the norms: cats.ops promises 2e-6; float64 gradients are summed in float64, where a
# thousand roundings of 2^-53 make 1e-13. Elements, relative to the sum of absolute products: K + 1 roundings of the
# arithmetic, then one of the result where that is shorter.
STATISTICS = 2e-6
STATISTICS_FLOAT64 = 1e-13
ARITHMETIC = {torch.float64: 2 * 2.0**-53}  # doubled: the oracle rounds as often
SHORT = {torch.bfloat16: (2.0**-8, 2.0**-134), torch.float16: (2.0**-11, 2.0**-25)}  # relative; where subnormal
SMALLEST = 2.0**-150  # half of float32's smallest number, what a rounding costs among the subnormals


class Backend:
    """The operators with one backend, and the device that its tensors are on."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = torch.device(device)
        self.interpreted = name == "triton" and device == "cpu"  # milliseconds for every program: small sizes only
        self.combine = functools.partial(ops.combine, backend=name)
        self.combine_dots = functools.partial(ops.combine_dots, backend=name)
        self.dots = functools.partial(ops.dots, backend=name)
        self.gram = functools.partial(ops.gram, backend=name)
        self.combine_adamw_ = functools.partial(ops.combine_adamw_, backend=name)

    def few(self, tasks: int) -> int:
        """So many tasks, but in the interpreter only so many that they take the way of many."""
        return min(tasks, 12) if self.interpreted else tasks

    def normal(self, tasks: int, shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, seed: int = 0) -> Grads:
        generator = torch.Generator().manual_seed(seed)
        return self.rows(tasks, shapes, lambda shape: torch.randn(shape, generator=generator).to(dtype))

    def integers(self, tasks: int, shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, seed: int = 0) -> Grads:
        """-3 to 3 without 0: whatever is lost is missed."""
        generator = torch.Generator().manual_seed(seed)

        def tensor(shape: Shape) -> Tensor:
            signs = 2 * torch.randint(0, 2, shape, generator=generator) - 1
            return (torch.randint(1, 4, shape, generator=generator) * signs).to(dtype)

        return self.rows(tasks, shapes, tensor)

    def rows(self, tasks: int, shapes: Sequence[Shape], tensor: Callable[[Shape], Tensor]) -> Grads:
        return [[tensor(shape).to(self.device) for shape in shapes] for _ in range(tasks)]


@functools.cache
def reasons() -> dict[str, str | None]:
    return ops.backends()


def parameters() -> Iterator[Any]:
    yield from ("reference-cpu", "native-cpu", "triton-cpu")
    for name in ("native-cpu-AVX2", "native-cpu-baseline"):
        yield pytest.param(name, marks=pytest.mark.slow)
    for name in ("reference-cuda", "triton-cuda", "cuda-cuda"):
        yield pytest.param(name, marks=pytest.mark.gpu)


@pytest.fixture(params=parameters())
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    name, device, *instructions = request.param.split("-")
    if reason := reasons()[name]:
        pytest.skip(reason)
    if instructions:
        use_instructions(instructions[0], request)
    if name == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    found = Backend(name, device)
    if found.interpreted:  # chunks that end soon
        monkeypatch.setattr(device_table, "MIN_CHUNK", 2048)
    return found


def use_instructions(name: str, request: pytest.FixtureRequest) -> None:
    """Of the instruction sets that the CPU kernels are compiled for a worse one than this processor's best."""
    native = importlib.import_module("cats._native")
    best = native.instructions()
    native.use_instructions(getattr(native.Instructions, name))
    request.addfinalizer(lambda: native.use_instructions(best))
    if native.instructions() == best or native.instructions().name != name:
        pytest.skip(f"this processor's best is {best.name}")


def test_no_backend_is_missing_by_mistake() -> None:
    # Otherwise all of its tests would be skipped, and nothing would fail.
    if importlib.util.find_spec("triton"):
        assert reasons()["triton"] is None
    if shutil.which("c++"):
        assert reasons()["native"] is None


@pytest.mark.gpu
def test_no_gpu_backend_is_missing_by_mistake() -> None:
    assert reasons()["triton"] is None
    if shutil.which("nvcc"):
        assert reasons()["cuda"] is None


# The oracle


def stack(grads: Grads) -> list[Tensor | None]:
    """Per parameter (K, numel) float64 on the CPU, zero where a gradient is None; None where all are."""
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
    backend: Backend, rows: list[list[Tensor | None]], grads: Grads, matrix: Tensor, exact: bool
) -> list[Tensor | None]:
    """R combinations against float64; returns (R, numel) float64 per parameter: what they were before rounding.

    Where the result is as precise as the arithmetic that is what came back, so that cancellation in it, which its own
    bound allows, is not taken for an error of the dots.
    """
    before: list[Tensor | None] = []
    for i, (g, column) in enumerate(zip(stack(grads), zip(*grads, strict=True), strict=True)):
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


def check(
    backend: Backend,
    grads: Grads,
    weights: Any,
    *,
    direction: list[Any] | None = None,
    groups: Sequence[int] | None = None,
    out: Any = None,
    exact: bool = False,
) -> None:
    """combine, combine_dots, dots and gram against float64: within the bounds, or equal if `exact`."""
    w = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    matrix = w.reshape(-1, len(grads))
    stacked, index = stack(grads), [0] * len(grads[0]) if groups is None else groups

    def rows(combined: Any) -> list[list[Tensor | None]]:
        return combined if w.dim() == 2 else [combined]

    plain = backend.combine(grads, weights)
    check_combination(backend, rows(plain), grads, matrix, exact)
    combined, dots, sqnorms = backend.combine_dots(grads, weights, groups=groups, out=out)
    before = check_combination(backend, rows(combined), grads, matrix, exact)
    for written, offered in zip(rows(combined), rows(out or combined), strict=True):
        assert all(a is b or a is None or b is None for a, b in zip(written, offered, strict=True))
    direction = direction or rows(combined)[0]
    along = backend.dots(grads, direction, groups=groups)
    gram = backend.gram(grads, groups=groups)
    for statistics in (dots, sqnorms, along, gram):
        assert statistics.dtype == torch.float64 and statistics.device.type == backend.device.type

    wide = all(g is None or g.dtype == torch.float64 for row in grads for g in row)
    tolerance = 0.0 if exact else STATISTICS_FLOAT64 if wide else STATISTICS
    vectors = [None if d is None else d.detach().cpu().double().reshape(-1) for d in direction]
    pairs = [(g, b, d) for g, b, d in zip(stacked, before, vectors, strict=True)]
    tasks, count = len(grads), len(matrix)
    grams = by_group([None if g is None else g @ g.T for g in stacked], index, (tasks, tasks))
    squares = grams.diagonal(dim1=1, dim2=2)
    lengths = by_group([None if b is None else b.square().sum(1) for b in before], index, (count,)).sqrt()
    products = by_group([None if g is None or b is None else b @ g.T for g, b, _ in pairs], index, (count, tasks))
    length = by_group([None if d is None else d.square().sum() for d in vectors], index, ()).sqrt()
    product = by_group([None if g is None or d is None else g @ d for g, _, d in pairs], index, (tasks,))
    norms = squares.sqrt()

    def compare(got: Tensor, expected: Tensor, scale: Tensor, what: str) -> None:
        close(got.reshape(expected.shape), expected, tolerance * scale, what)

    lead = () if groups is None else (max(groups) + 1,)
    assert dots.shape == (*lead, *w.shape) and gram.shape == (*lead, tasks, tasks)
    assert sqnorms.shape == along.shape == (*lead, tasks)
    compare(sqnorms, squares, squares, "squared norms")
    compare(dots, products, outer(lengths, norms), "dots with the combinations")
    compare(along, product, length[:, None] * norms, "dots with a direction")
    compare(gram, grams, outer(norms, norms), "Gram")
    assert torch.equal(gram, gram.mT)


def mixed_weights(tasks: int) -> list[float]:
    """Of both signs, some of them zero, the first not."""
    return [(1.0, -0.5, 0.0, 2.0)[n % 4] for n in range(tasks)]


# Values

SHAPES: list[Shape] = [(3, 5), (), (0,), (7,), (129, 65), (1,), (2, 0, 3), (4, 3, 2, 5)]


def tiles(tasks: int) -> int:
    """For the interpreter: elements that make a few of its tiles, the last of them short."""
    return 4096 // tasks + 1


@pytest.mark.parametrize("tasks", TASKS)
def test_matches_float64(backend: Backend, tasks: int) -> None:
    if backend.interpreted and tasks > 33:
        pytest.skip("the interpreter takes so many in test_equals_where_numbers_are_integers")
    shapes = SHAPES if tasks < 33 else [(1001,), (3, 5), ()]
    if backend.interpreted:
        shapes = [(tiles(tasks),), (3, 5), ()]
    check(backend, backend.normal(tasks, shapes), torch.linspace(-1, 2, tasks, dtype=torch.float64))


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.long_interpreted
def test_equals_where_numbers_are_integers(backend: Backend, tasks: int) -> None:
    shapes = [(tiles(tasks),), (3,)] if backend.interpreted else [(8193,), (3, 5), (2,)]
    check(backend, backend.integers(tasks, shapes), mixed_weights(tasks), exact=True)


@pytest.mark.parametrize("tasks", [2, 33])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.long_interpreted
def test_dtypes(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    tasks = backend.few(tasks)
    shapes: list[Shape] = [(tiles(4 * tasks),), ()] if backend.interpreted else [(1031,), (3, 5), ()]
    check(backend, backend.normal(tasks, shapes, dtype), torch.linspace(-0.4, 1, tasks, dtype=torch.float64))
    grads = [[offset(t, n % 3) for t in row] for n, row in enumerate(backend.integers(tasks, shapes, dtype))]
    check(backend, grads, mixed_weights(tasks), exact=True)


@pytest.mark.long_interpreted
def test_parameters_of_different_dtypes(backend: Backend) -> None:
    # In each of two groups every dtype, so that neither order nor dtype decides what is added to what.
    order = [*FLOATS, *reversed(FLOATS)]
    shapes: list[Shape] = [(100 + i, 3) for i in range(len(order))]
    for make, exact in (backend.normal, False), (backend.integers, True):
        grads = [[g.to(dtype) for g, dtype in zip(row, order, strict=True)] for row in make(3, shapes)]
        check(backend, grads, [1.0, 2.0, -3.0], groups=[0, 1] * len(FLOATS), exact=exact)


def around(*sizes: int) -> list[int]:
    return [size + d for size in sizes for d in (-1, 0, 1)]


FEW = [*range(1, 10), *around(16, 32, 64, 128, 256, 512, 1024, 2048)]
MANY = [*FEW, *around(4096, 8192, 16384, 32768, 65536)]


@pytest.mark.parametrize(("tasks", "dtype"), [(1, torch.bfloat16), (2, torch.float32), (3, torch.float64)])
@pytest.mark.long_interpreted
def test_where_vectors_and_blocks_end(backend: Backend, tasks: int, dtype: torch.dtype) -> None:
    sizes = FEW[::4] if backend.interpreted else MANY
    weights = mixed_weights(tasks)
    # Every parameter is a group of its own, so every sum shows.
    grads = backend.integers(tasks, [(size,) for size in sizes], dtype)
    check(backend, grads, weights, groups=range(len(sizes)), exact=True)
    for size in [4097] if backend.interpreted else MANY:
        check(backend, backend.integers(tasks, [(size,)], dtype, seed=size), weights, exact=True)


@pytest.mark.parametrize("tasks", [5, 8, 16, 33, 92, 128])
@pytest.mark.long_interpreted
def test_where_blocks_end_with_many_tasks(backend: Backend, tasks: int) -> None:
    if backend.interpreted:
        pytest.skip("tiles of so many tasks end in test_equals_where_numbers_are_integers")
    sizes = [*FEW[::3], *around(4096, 8192)]  # the blocks of many tasks are shorter
    grads = backend.integers(tasks, [(size,) for size in sizes])
    check(backend, grads, mixed_weights(tasks), groups=range(len(sizes)), exact=True)


@pytest.mark.long_interpreted
def test_thousands_of_tiny_tensors_and_a_huge_one(backend: Backend) -> None:
    tiny, huge = (30, 4097) if backend.interpreted else (3000, 1_000_003)
    shapes: list[Shape] = [*((1 + i % 7,) for i in range(tiny)), (huge,), *((i % 3,) for i in range(tiny // 4))]
    groups = [min(i % 3, 1) for i in range(len(shapes))]
    check(backend, backend.integers(2, shapes), [1.0, -2.0], groups=groups, exact=True)


def test_long_sums_of_one_sign(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where errors of float32 sums add up: one chain of 4e6 terms is off by 1e-4 and more.
    size = (1 << 15) + 1025 if backend.interpreted else 4_000_001
    constants = [[torch.full((size,), value, device=backend.device)] for value in (0.1, 0.3)]
    if not backend.interpreted:
        check(backend, constants, [0.7, 0.3])
        check(backend, [[g.abs_().add_(1)] for (g,) in backend.normal(2, [(size,)])], [0.7, 0.3])
    # In chunks as long as those of 1e10 elements, or as there are.
    monkeypatch.setattr(device_table, "MAX_CHUNKS", size // 2**20 + 1)
    check(backend, constants, [0.7, 0.3])


def test_weights_are_not_rounded_to_the_gradients_dtype(backend: Backend) -> None:
    # 1 + 2^-10 is 1 in bfloat16; with it the sum of 1 and -(1 + 2^-10) would vanish.
    one = torch.ones(3, dtype=torch.bfloat16, device=backend.device)
    (combined,) = backend.combine([[one], [one]], [1.0, -(1 + 2.0**-10)])
    assert combined.tolist() == [-(2.0**-10)] * 3
    wide = torch.ones(3, dtype=torch.float64, device=backend.device)
    (combined,) = backend.combine([[wide], [wide]], [1.0, 2.0**-50])
    assert combined.tolist() == [1 + 2.0**-50] * 3


def test_dots_are_taken_before_rounding(backend: Backend) -> None:
    # In bfloat16 the combination 1 + 2^-10 rounds to 1; in float16 that of 6e4 and 6e4 is infinite.
    grads = [[torch.full((4,), x, dtype=torch.bfloat16, device=backend.device)] for x in (1.0, 2.0**-10)]
    (combined,), dots, sqnorms = backend.combine_dots(grads, [1.0, 1.0])
    assert combined.tolist() == [1.0] * 4
    assert dots.tolist() == [4 * (1 + 2.0**-10), 4 * 2.0**-10 * (1 + 2.0**-10)]
    assert sqnorms.tolist() == [4, 4 * 2.0**-20]
    large = [[torch.full((4,), 6e4, dtype=torch.float16, device=backend.device)]] * 2
    (combined,), dots, _ = backend.combine_dots(large, [1.0, 1.0])
    assert combined.isinf().all()
    assert dots.tolist() == [4 * 1.2e5 * 6e4] * 2


def magnitudes(backend: Backend) -> list[float]:
    # Squares beyond float32's range are only promised on the CPU; elsewhere what is 2^-24 of a square must be normal.
    most = 15 if backend.name in ("triton", "cuda") else 20
    return [10.0**e for e in range(-most, most + 1, 10 if backend.interpreted else 5)]


@pytest.mark.parametrize("tasks", [3, 33])
@pytest.mark.long_interpreted
def test_mixed_magnitudes(backend: Backend, tasks: int) -> None:
    tasks, scales = backend.few(tasks), magnitudes(backend)
    grads = backend.normal(tasks, [(35 if backend.interpreted else 101,)] * len(scales))
    grads = [[g * scale for g, scale in zip(row, scales, strict=True)] for row in grads]
    weights = torch.linspace(-0.4, 1, tasks, dtype=torch.float64)
    check(backend, grads, weights, groups=range(len(scales)))
    check(backend, [[torch.stack(row, -1)] for row in grads], weights)  # large beside small


def test_tasks_of_mixed_magnitudes(backend: Backend) -> None:
    scales = magnitudes(backend)
    grads = [[g * scale for g in row] for row, scale in zip(backend.normal(len(scales), [(101,)]), scales, strict=True)]
    # Each is bound by its own norm, in the Gram matrix and beside a combination of any size.
    check(backend, grads, (torch.eye(len(scales)) - 0.5 * torch.eye(len(scales)).roll(1, 0)).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_subnormal_numbers(backend: Backend, dtype: torch.dtype) -> None:
    smallest, normal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    tiny = torch.tensor([smallest, -3 * smallest, normal / 2, normal, 0.0] * 9, dtype=torch.float64).to(dtype)
    grads = [[tiny.to(backend.device)], [(2 * tiny).to(backend.device)]]
    combined, dots, sqnorms = backend.combine_dots(grads, [1.0, 0.5])
    assert torch.equal(combined[0].cpu(), 2 * tiny)
    assert torch.equal(backend.combine(grads, [1.0, 0.5])[0].cpu(), 2 * tiny)
    square = tiny.double().square().sum()
    expected = torch.stack([2 * square, 4 * square]), torch.stack([square, 4 * square])
    # Squares that float32 cannot hold may be lost where it is used, nothing more.
    lost = 0.0 if backend.name == "reference" else len(tiny) * 4 * float(torch.finfo(torch.float32).smallest_normal)
    for got, exact in zip((dots, sqnorms), expected, strict=True):
        close(got, exact, STATISTICS * exact + lost, "subnormal numbers")


@pytest.mark.parametrize("tasks", [2, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.long_interpreted
def test_rows_of_zeros_are_told_from_tiny_numbers(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    # Most of an embedding's gradient is zero. What is not may be so small that float32 cannot hold its square.
    value, size = 2.0**-90, 2100
    zeros = 0 * torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0).to(dtype)  # of both signs
    for place in 0, 1023, size - 1:
        grads = backend.rows(tasks, [(size,)], lambda shape: zeros.clone())
        grads[1][0][place] = value
        direction = [torch.zeros(size, dtype=dtype, device=backend.device)]
        assert not backend.dots(grads, direction).any() and not backend.dots(grads[:1], grads[1]).any()
        direction[0][place] = value
        combined, dots, sqnorms = backend.combine_dots(grads, [1.0] * tasks)
        assert combined[0].count_nonzero() == 1 and float(combined[0][place]) == value
        found = torch.stack([dots, sqnorms, backend.dots(grads, direction), backend.gram(grads)[1]]).cpu()
        expected = torch.zeros(4, tasks, dtype=torch.float64)
        if backend.name in ("reference", "native"):
            expected[:, 1] = value**2
        assert torch.equal(found, expected), (place, found)


@pytest.mark.parametrize("tasks", [3, 33])
@pytest.mark.parametrize(
    ("value", "weight"), [(float("nan"), 0.0), (float("inf"), 0.0), (float("inf"), 0.5), (-float("inf"), 0.5)]
)
def test_what_is_not_finite_shows(backend: Backend, value: float, weight: float, tasks: int) -> None:
    tasks = backend.few(tasks)
    sizes = [5, 35] if backend.interpreted else [5, 20_001]
    weights = [weight if n == 1 else 0.5 for n in range(tasks)]
    finite = [n != 1 for n in range(tasks)]
    direction = [torch.ones(size, device=backend.device) for size in sizes]
    for place in (0,) if backend.interpreted else (0, 12_345, 20_000):  # a vector, another block, a tail
        grads = backend.normal(tasks, [(size,) for size in sizes])
        grads[1][1][place] = value
        combined, dots, sqnorms = backend.combine_dots(grads, weights)
        plain = backend.combine(grads, weights)
        for left, right in (combined, plain):
            assert left.isfinite().all() and (~right.isfinite()).nonzero().tolist() == [[place]]
        assert not dots.isfinite().any()
        assert sqnorms.isfinite().tolist() == finite
        assert backend.dots(grads, direction).isfinite().tolist() == finite
        assert backend.gram(grads).isfinite().tolist() == [[a and b for b in finite] for a in finite]
    # Alone in its group, it spares the others.
    _, dots, sqnorms = backend.combine_dots(grads, weights, groups=[0, 1])
    assert dots.isfinite().all(1).tolist() == sqnorms.isfinite().all(1).tolist() == [True, False]
    assert backend.gram(grads, groups=[0, 1]).isfinite().all(2).all(1).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_is_not_finite_stays_so_in_every_dtype(backend: Backend, dtype: torch.dtype) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 1.0] * 5
    grads = [[torch.tensor(values, dtype=dtype, device=backend.device)]] * 2
    (combined,), dots, sqnorms = backend.combine_dots(grads, [0.5, 0.5])
    expected = torch.tensor(values, dtype=dtype)
    assert torch.equal(combined.cpu().nan_to_num(7.0), expected.nan_to_num(7.0)) and combined.isnan().sum() == 5
    assert dots.isnan().all() and sqnorms.isnan().all()
    # The largest of its NaNs, which rounding as if it were a number would turn into zero.
    widest = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float64: torch.int64}[dtype]
    for bits in (torch.iinfo(widest).max, -1):
        nan = torch.full((33,), bits, dtype=widest, device=backend.device).view(dtype)
        assert backend.combine([[nan]], [1.0])[0].isnan().all()


def test_sums_do_not_lose_many_small_terms_to_a_large_one(backend: Backend) -> None:
    # The worst input for sums in float32: what follows the first numbers of a chain is below half of their last bit.
    period, size = (64, 4096) if backend.interpreted else (1024, 1 << 20)
    row = torch.full((size,), 0.99**0.5 * 2.0**-12).view(-1, period)
    row[:, :16] = 1.0
    grads = [[row.flatten().to(backend.device)]] * 2
    square = row.double().square().sum()
    _, dots, sqnorms = backend.combine_dots(grads, [0.5, 0.5])
    for name, got in ("dots", dots), ("sqnorms", sqnorms), ("gram", backend.gram(grads)):
        close(got, square.expand(got.shape), STATISTICS * square, name)
    close(backend.dots(grads, grads[0]), square.expand(2), STATISTICS * square, "dots with a direction")


def test_zero_weights(backend: Backend) -> None:
    grads = backend.integers(3, [(1025,), (3,)])
    check(backend, grads, [0.0, 0.0, 0.0], exact=True)
    check(backend, grads, [0.0, 1.0, 0.0], exact=True)


@pytest.mark.parametrize("tasks", [2, 16])
@pytest.mark.long_interpreted
def test_duplicate_tasks(backend: Backend, tasks: int) -> None:
    row = backend.normal(1, [(1031,), (3,)])[0]
    check(backend, [row] * tasks, torch.linspace(0.1, 1, tasks, dtype=torch.float64))
    # What cancels leaves no more than the bound allows, and in the dots what came back.
    check(backend, [row] * tasks, [0.1 * (-1) ** n for n in range(tasks)])


@pytest.mark.long_interpreted
def test_none_is_a_task_that_does_not_touch_the_parameter(backend: Backend) -> None:
    shapes: list[Shape] = [(4, 3), (5,), (6,), (700,), (257,), (2,)]
    grads = backend.integers(3, shapes)
    absent = {(0, 1), (0, 2), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (0, 5)}
    grads = [[None if (n, i) in absent else g for i, g in enumerate(row)] for n, row in enumerate(grads)]
    check(backend, grads, [2.0, -1.0, 0.5], exact=True)
    check(backend, grads, [2.0, -1.0, 0.5], groups=[0, 0, 1, 3, 0, 3], exact=True)
    # A task is left out, not multiplied by zero: its weight does not matter where it has no gradient.
    combined = backend.combine(grads, [1.0, float("nan"), 2.0])
    assert combined[0].isnan().all() and combined[2] is None
    assert torch.equal(combined[3], grads[0][3] + 2 * grads[2][3])
    adrift = [row if n != 1 else [None] * len(shapes) for n, row in enumerate(grads)]
    check(backend, adrift, [2.0, -1.0, 0.5], exact=True)


def test_none_in_many_tasks(backend: Backend) -> None:
    tasks = backend.few(33)
    grads = backend.integers(tasks, [(300,), (65,), (17,)])
    grads = [[g if (n * 7 + i * 5) % 3 else None for i, g in enumerate(row)] for n, row in enumerate(grads)]
    check(backend, grads, mixed_weights(tasks), exact=True)


def test_nothing_to_do(backend: Backend) -> None:
    empty = [[torch.empty(0, device=backend.device), None, torch.empty(3, 0, device=backend.device)]] * 2
    check(backend, empty, [1.0, 2.0], groups=[1, 0, 3], exact=True)
    nothing: Grads = [[None, None]] * 3
    assert backend.combine(nothing, [1.0, 2.0, 3.0]) == [None, None]
    _, dots, sqnorms = backend.combine_dots(nothing, [1.0, 2.0, 3.0], groups=[1, 0])
    assert dots.tolist() == sqnorms.tolist() == [[0.0] * 3] * 2
    assert backend.dots(nothing, [None, torch.ones(3)]).tolist() == [0.0] * 3
    assert not backend.gram(nothing).any()


@pytest.mark.long_interpreted
def test_rows_of_weights_are_separate_combinations(backend: Backend) -> None:
    weights = torch.tensor([[1.0, 0, 0], [2, 3, -1], [-1, 1, 3], [0, 0, 0]], dtype=torch.float64)
    shapes: list[Shape] = [(331,), (), (0,), (3, 5)]
    check(backend, backend.integers(3, shapes), weights, groups=[1, 0, 0, 1], exact=True)
    check(backend, backend.integers(3, shapes), weights[:1], exact=True)
    check(backend, backend.normal(3, shapes), weights[1:3] * 0.3)
    combined = backend.combine(backend.normal(3, shapes), weights)
    assert all(torch.equal(x, y) for x, y in zip(combined[0], backend.normal(3, shapes)[0], strict=True))


@pytest.mark.long_interpreted
def test_many_rows_of_weights(backend: Backend) -> None:
    tasks = 9
    grads = backend.integers(tasks, [(131,), (2,)])
    check(backend, grads, torch.eye(tasks, dtype=torch.float64) - 2 * torch.eye(tasks).flip(0), exact=True)


GROUPS = {
    "contiguous": [0, 0, 1, 1, 2, 2],
    "interleaved": [0, 1, 2, 0, 1, 2],
    "reversed": [5, 4, 3, 2, 1, 0],
    "with empty ones": [7, 2, 2, 7, 4, 2],
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=list(GROUPS))
@pytest.mark.long_interpreted
def test_groups_split_the_statistics(backend: Backend, groups: list[int]) -> None:
    grads = backend.integers(3, [(7,), (30, 9), (2, 2), (331,), (1,), (0,)])
    grads[1][2] = None
    check(backend, grads, [[1.0, 2.0, -1.0], [1.0, -1.0, 0.0]], groups=groups, exact=True)


@pytest.mark.long_interpreted
def test_groups_of_many_tasks(backend: Backend) -> None:
    tasks = backend.few(33)
    grads = backend.integers(tasks, [(7,), (20, 3), (2, 2), (65,)])
    check(backend, grads, mixed_weights(tasks), groups=[2, 0, 2, 0], exact=True)


# Layouts


def offset(t: Tensor, by: int) -> Tensor:
    """The same numbers, `by` elements after an address that every vector can be loaded from."""
    return torch.cat([t.new_zeros(by), t.flatten()])[by:].view(t.shape)


# What to do with the gradient of task n.
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


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.long_interpreted
def test_layouts(backend: Backend, layout: Callable[[Tensor, int], Tensor]) -> None:
    shape = (5, 17, 11) if backend.interpreted else (6, 531, 11)
    grads = [[layout(a, n), b] for n, (a, b) in enumerate(backend.integers(3, [shape, (3,)]))]
    check(backend, grads, [1.0, -2.0, 0.5], exact=True)
    # Written into every layout in which no two elements share memory; what was there before does not matter.
    others = [] if backend.interpreted else [LAYOUTS[name] for name in ("transposed", "every second", "misaligned")]
    for like in layout, *others:
        out = like(torch.full(shape, float("nan"), device=backend.device), 0).detach()
        if 0 not in out.stride() and out.stride() != (1, 1, 1):
            combined, *_ = backend.combine_dots(grads, [1.0, -2.0, 0.5], out=[out, None])
            assert combined[0] is out
            check_combination(backend, [combined], grads, torch.tensor([[1.0, -2.0, 0.5]]).double(), exact=True)


def test_layouts_of_a_column(backend: Backend) -> None:
    # Strides of axes of one element, or of none, say nothing.
    for shape in (1, 300), (300, 1), (1, 1), (1, 0):
        grads = [[a.mT.contiguous().mT if n == 1 else a] for n, (a,) in enumerate(backend.integers(3, [shape]))]
        check(backend, grads, [1.0, -2.0, 0.5], exact=True)
    strange = [[g.as_strided((1, 300), (5, 1))] for (g,) in backend.integers(2, [(300,)])]
    check(backend, strange, [1.0, -2.0], exact=True)


def test_views_of_negated_memory(backend: Backend) -> None:
    # The imaginary part of a conjugate is its memory with the sign bit left to whoever reads it.
    grads = [[torch.complex(a, a).conj().imag, b] for a, b in backend.integers(2, [(1,), (5,)])]
    assert grads[0][0].is_neg()
    check(backend, grads, [1.0, -2.0], exact=True)


def test_out_is_written_again(backend: Backend) -> None:
    shapes: list[Shape] = [(40, 30), (1025,), (), (0,), (6,)]
    grads = [[*row, None] for row in backend.integers(3, shapes)]
    given = [torch.full(shape, float("nan"), device=backend.device) for shape in shapes]
    given[0] = given[0].t().contiguous().t()
    given[1] = offset(given[1], 1)
    kept = torch.full((2,), 7.0, device=backend.device)
    for out in [*given, kept], [given[0], None, None, given[3], None, kept]:
        pointers = [None if t is None else t.data_ptr() for t in out]
        for weights in [1.0, -2.0, 0.5], [0.0, 1.0, 3.0]:
            matrix = torch.tensor([weights]).double()
            combined, *_ = backend.combine_dots(grads, weights, out=out)
            check_combination(backend, [combined], grads, matrix, exact=True)
            combined = backend.combine(grads, weights, out=out)
            check_combination(backend, [combined], grads, matrix, exact=True)
            assert all(a is b or a is None or b is None for a, b in zip(combined, out, strict=True))
            assert [None if t is None else t.data_ptr() for t in out] == pointers
            assert combined[-1] is None and (kept == 7).all()
    rows = [given, [None, *(t.clone() for t in given[1:])]]
    check(backend, [row[:-1] for row in grads], [[1.0, 2.0, 3.0], [1.0, -1.0, 0.5]], out=rows, exact=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("other", FLOATS, ids=str)
def test_direction_of_any_dtype(backend: Backend, dtype: torch.dtype, other: torch.dtype) -> None:
    shapes: list[Shape] = [(517,), (3, 5), (2,)]
    grads, direction = backend.integers(3, shapes, dtype), backend.integers(1, shapes, other, seed=1)
    products = [g @ d.T for g, d in zip(stack(grads), stack(direction), strict=True) if g is not None and d is not None]
    assert torch.equal(backend.dots(grads, direction[0], groups=[0, 1, 2]).cpu(), torch.stack(products)[..., 0])


@pytest.mark.parametrize(
    ("dtype", "other", "fine"),
    [
        (torch.bfloat16, torch.float32, 2.0**-12),
        (torch.float16, torch.float32, 2.0**-12),
        (torch.bfloat16, torch.float16, 2.0**-10),
        (torch.float64, torch.float64, 2.0**-40),
    ],
    ids=str,
)
def test_direction_is_not_rounded(backend: Backend, dtype: torch.dtype, other: torch.dtype, fine: float) -> None:
    # In the gradients' dtype, for float64 in float32, 1 + fine would be 1 and the sum would vanish.
    direction = torch.tensor([1 + fine, -1.0] * 20, dtype=other, device=backend.device)
    assert backend.dots([[torch.ones_like(direction, dtype=dtype)]], [direction]).item() == 20 * fine


def test_direction_with_gaps_and_none(backend: Backend) -> None:
    shapes: list[Shape] = [(30, 40), (1025,), (3,), (4,)]
    grads, groups = backend.integers(3, shapes), [0, 1, 1, 0]
    grads[1][0] = None
    first, second, third, last = backend.integers(1, shapes, seed=1)[0]
    direction = stack([[first, second, third, last]])
    products = [g @ d.T for g, d in zip(stack(grads), direction, strict=True) if g is not None and d is not None]
    expected = torch.stack([products[0] + products[3], products[1]])[..., 0]
    grads[0][2][1] = float("nan")  # where the direction is None, nothing is read
    for changed in first, first.t().contiguous().t(), torch.stack([first, first], -1)[..., 1]:
        for shifted in second, offset(second, 1):
            got = backend.dots(grads, [changed, shifted, None, last], groups=groups)
            assert torch.equal(got.cpu(), expected)
    assert backend.dots(grads, [None] * 4, groups=groups).tolist() == [[0.0] * 3] * 2


@pytest.mark.long_interpreted
def test_weights_on_the_device_and_beside_it(backend: Backend) -> None:
    grads = backend.integers(3, [(1025,), (3,)])
    for weights in torch.tensor([1.0, 2.0, -0.5]), torch.tensor([[1.0, 2.0, -0.5]], dtype=torch.float64):
        for device in "cpu", backend.device:
            check(backend, grads, weights.to(device), exact=True)
    check(backend, grads, torch.tensor([[1.0, 0, 2], [2, 1, 0], [0, 3, -1]]).t(), exact=True)


# AdamW

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
    """For PARAMS: one is not touched by the first task, the last by none."""
    grads = backend.normal(tasks, PARAMS, dtype, seed)
    grads[0][4] = None if tasks > 1 else grads[0][4]
    return [[*row[:-1], None] for row in grads]


@pytest.mark.parametrize(
    ("dtype", "tasks"), [(torch.float32, 1), (torch.float32, 3), (torch.float32, 33), (torch.float64, 3)], ids=str
)
@pytest.mark.long_interpreted
def test_adamw_is_torchs_on_the_combined_gradient(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    weights = torch.rand(tasks, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(0)
    state = State(backend, dtype)
    leaves = [p.clone().requires_grad_() for p in state.params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, foreach=False)
    for step in range(1, 3 if backend.interpreted else 6):
        grads = task_grads(backend, tasks, dtype, seed=step)
        combined, *expected = backend.combine_dots(grads, weights)
        for leaf, grad in zip(leaves, combined, strict=True):
            leaf.grad = grad
        optimizer.step()
        # Statistics have bounds of their own, relative to norms: both stay within them.
        tolerance = {"rtol": 0.0, "atol": 4 * STATISTICS * expected[1].max().item()}
        torch.testing.assert_close(list(state.update(grads, weights, step=step)), expected, **tolerance)
    # The same operations, in an order that may differ: a few units in the last place, of numbers below 4.
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    for leaf, param, avg, square in zip(leaves, state.params, state.exp_avgs, state.exp_avg_sqs, strict=True):
        torch.testing.assert_close(param, leaf.detach(), **tolerance)
        if leaf.grad is not None:
            torch.testing.assert_close(avg, optimizer.state[leaf]["exp_avg"], **tolerance)
            torch.testing.assert_close(square, optimizer.state[leaf]["exp_avg_sq"], **tolerance)
    assert torch.equal(state.params[-1], State(backend, dtype).params[-1])
    assert not state.exp_avgs[-1].any() and not state.exp_avg_sqs[-1].any()


@pytest.mark.parametrize("tasks", [3, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.long_interpreted
def test_adamw_of_short_parameters_rounds_once(backend: Backend, dtype: torch.dtype, tasks: int) -> None:
    weights = torch.linspace(-0.2, 1, tasks, dtype=torch.float64)
    state = State(backend, dtype)
    leaves = [p.float().requires_grad_() for p in state.params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, foreach=False)
    for step in range(1, 3 if backend.interpreted else 6):
        grads = task_grads(backend, tasks, dtype, seed=step)
        for leaf, g in zip(leaves, stack(grads), strict=True):
            leaf.grad = None if g is None else (weights @ g).float().view(leaf.shape).to(backend.device)
        optimizer.step()
        state.update(grads, weights, step=step)
        for leaf, param, avg in zip(leaves, state.params, state.exp_avgs, strict=True):
            wide = leaf.detach().double()
            # Half the distance between two numbers of dtype, and what the last places of float32 make of it.
            half = torch.finfo(dtype).eps * torch.exp2(torch.frexp(wide).exponent - 2.0)
            close(param, wide.cpu(), (half + SHORT[dtype][1] + 2e-6 * wide.abs()).cpu(), f"parameters, step {step}")
            leaf.data.copy_(param)
            if leaf.grad is not None:  # a moment of rounded gradients would be off by 1e-3 of them
                torch.testing.assert_close(avg, optimizer.state[leaf]["exp_avg"], rtol=1e-5, atol=1e-5)


def test_adamw_where_vectors_and_blocks_end(backend: Backend) -> None:
    sizes = [1, 17, 4097] if backend.interpreted else MANY
    shapes: list[Shape] = [(size,) for size in sizes]
    grads, state = backend.integers(2, shapes), State(backend, shapes=shapes)
    expected = state.copies()[: len(sizes)]
    dots, sqnorms = state.update(grads, [1.0, 0.25], groups=range(len(sizes)))
    for i, g in enumerate(stack(grads)):
        assert g is not None
        combined = g[0] + 0.25 * g[1]  # never 0: in the first step its sign matters, its size does not
        figures = expected[i].cpu().double() * (1 - 1e-3) - 1e-2 * combined.sign()
        torch.testing.assert_close(state.params[i].cpu().double(), figures, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(state.exp_avgs[i].cpu().double(), 0.1 * combined, rtol=1e-6, atol=0)
        torch.testing.assert_close(state.exp_avg_sqs[i].cpu().double(), 0.02 * combined**2, rtol=1e-6, atol=0)
        assert torch.equal(dots[i].cpu(), g @ combined) and torch.equal(sqnorms[i].cpu(), g.square().sum(1))


def test_adamw_in_figures(backend: Backend) -> None:
    # By hand: m = 0.1 g, v = 0.02 g^2; corrected, the step is lr g / |g|; the decay comes first and is not in m.
    state = State(backend, shapes=[(2,)])
    state.params[0].copy_(torch.tensor([2.0, -4.0]))
    grads = [[torch.tensor([1.0, -3.0], device=backend.device)], [torch.tensor([3.0, 1.0], device=backend.device)]]
    dots, sqnorms = state.update(grads, [0.5, 0.5], lr=0.25, weight_decay=0.5)
    assert dots.tolist() == [5.0, 5.0] and sqnorms.tolist() == [10.0, 10.0]
    expected = [[2.0 * 0.875 - 0.25, -4.0 * 0.875 + 0.25], [0.2, -0.1], [0.08, 0.02]]
    for got, figures in zip(state.tensors, expected, strict=True):
        torch.testing.assert_close(got.cpu(), torch.tensor(figures), rtol=1e-6, atol=0)


@pytest.mark.long_interpreted
def test_adamw_takes_tensors_for_step_and_lr(backend: Backend) -> None:
    grads, weights = task_grads(backend, 3), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    plain = State(backend)
    for step in (1, 2):
        plain.update(grads, weights, step=step)
    for device, dtype in itertools.product({"cpu", backend.device.type}, (torch.float32, torch.float64)):
        state = State(backend)
        for step in (1, 2):
            lr = torch.tensor([ADAMW["lr"]], dtype=torch.float64, device=device)
            state.update(grads, weights.to(device), step=torch.tensor(float(step), dtype=dtype, device=device), lr=lr)
        assert all(torch.equal(x, y) for x, y in zip(plain.tensors, state.tensors, strict=True))


@pytest.mark.long_interpreted
def test_adamw_found_inf_leaves_everything_as_it_was(backend: Backend) -> None:
    for dtype in torch.float32, torch.bfloat16:
        state, grads = State(backend, dtype), task_grads(backend, 3, dtype)
        state.update(grads, [0.2, 0.3, 0.5])
        before = state.copies()
        grads[2][0][2, 3] = float("inf")
        one = torch.ones(1, device=backend.device)
        _, sqnorms = state.update(grads, [0.2, 0.3, 0.5], step=2, found_inf=one)
        assert sqnorms.isfinite().tolist() == [True, True, False]
        assert all(torch.equal(x, y) for x, y in zip(before, state.tensors, strict=True))
        state.update(task_grads(backend, 3, dtype), [0.2, 0.3, 0.5], step=2, found_inf=one * 0)
        for old, new in zip(before[:: len(PARAMS)], state.tensors[:: len(PARAMS)], strict=True):
            assert not torch.equal(old, new)


def test_adamw_divides_the_gradient_by_grad_scale(backend: Backend) -> None:
    scaled, plain, grads = State(backend), State(backend), task_grads(backend, 3)
    large = [[None if g is None else g * 1024 for g in row] for row in grads]
    scale = torch.tensor(1024.0, device=backend.device)
    dots, sqnorms = scaled.update(large, [0.2, 0.3, 0.5], grad_scale=scale)
    expected = plain.update(grads, [0.2, 0.3, 0.5])
    assert all(torch.equal(x, y) for x, y in zip(scaled.tensors, plain.tensors, strict=True))
    # Of the gradients as given.
    assert torch.equal(dots, expected[0] * 1024**2) and torch.equal(sqnorms, expected[1] * 1024**2)


def test_adamw_of_what_is_not_finite(backend: Backend) -> None:
    state, grads = State(backend), task_grads(backend, 3)
    grads[1][0][1, 100] = float("nan")
    _, sqnorms = state.update(grads, [0.2, 0.0, 0.8])
    assert sqnorms.isfinite().tolist() == [True, False, True]
    for tensors in state.params, state.exp_avgs, state.exp_avg_sqs:
        assert tensors[0].isnan().nonzero().tolist() == [[1, 100]]
        assert all(t.isfinite().all() for t in tensors[1:])


def test_adamw_without_any_gradient(backend: Backend) -> None:
    state = State(backend)
    before = state.copies()
    dots, sqnorms = state.update([[None] * len(PARAMS)] * 2, [0.5, 0.5], groups=[0, 1, 0, 1, 0, 1])
    assert dots.tolist() == sqnorms.tolist() == [[0.0] * 2] * 2
    assert all(torch.equal(x, y) for x, y in zip(before, state.tensors, strict=True))


@pytest.mark.parametrize("layout", ["transposed", "rows with gaps", "every second", "misaligned"])
@pytest.mark.parametrize("which", ["params", "exp_avgs", "exp_avg_sqs", "grads", "all"])
def test_adamw_layouts(backend: Backend, layout: str, which: str) -> None:
    # One dense parameter beside the strange one, in a group of its own.
    shapes: list[Shape] = [(30, 41), (9,)]
    grads, change = backend.normal(2, shapes), LAYOUTS[layout]
    state, other = State(backend, shapes=shapes), State(backend, shapes=shapes)
    expected = other.update(grads, [0.25, 0.75], groups=[1, 0])
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        if which in (name, "all"):
            tensors = getattr(state, name)
            tensors[0] = change(tensors[0], 0)
    if which in ("grads", "all"):
        grads = [[change(a, n), b] for n, (a, b) in enumerate(grads)]
    statistics = state.update(grads, [0.25, 0.75], groups=[1, 0])
    for x, y in zip(state.tensors, other.tensors, strict=True):
        torch.testing.assert_close(x, y, rtol=4 * 2.0**-23, atol=4 * 2.0**-23)
    for x, y, *_ in zip(statistics, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=STATISTICS * expected[1].max().item())


@pytest.mark.long_interpreted
def test_adamw_of_parameters_of_different_dtypes(backend: Backend) -> None:
    shapes: list[Shape] = [(100 + i, 3) for i in range(2 * len(FLOATS))]
    order = [*FLOATS, *reversed(FLOATS)]
    grads = [[g.to(dtype) for g, dtype in zip(row, order, strict=True)] for row in backend.integers(2, shapes)]
    states = [State(backend, dtype, [shape]) for shape, dtype in zip(shapes, order, strict=True)]
    together = State(backend, shapes=[])
    for state in states:
        together.params += [t.clone() for t in state.params]
        together.exp_avgs += [t.clone() for t in state.exp_avgs]
        together.exp_avg_sqs += [t.clone() for t in state.exp_avg_sqs]
    dots, sqnorms = together.update(grads, [1.0, 0.5], groups=range(len(order)))
    for i, state in enumerate(states):
        alone = state.update([[row[i]] for row in grads], [1.0, 0.5])
        assert torch.equal(dots[i], alone[0]) and torch.equal(sqnorms[i], alone[1])
        for tensors, single in zip(
            (together.params, together.exp_avgs, together.exp_avg_sqs), state.tensors, strict=True
        ):
            assert torch.equal(tensors[i], single)


# Bits


def everything(backend: Backend, grads: Grads) -> list[Tensor]:
    tasks = len(grads)
    weights = torch.rand(2, tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    combined, dots, sqnorms = backend.combine_dots(grads, weights)
    plain = backend.combine(grads, weights[0])
    state = State(backend, grads[0][0].dtype, [g.shape for g in grads[0]])
    adamw = state.update(grads, weights[0], step=3)
    statistics = [dots, sqnorms, backend.gram(grads), backend.dots(grads, combined[1])]
    return [*combined[0], *combined[1], *plain, *state.tensors, *adamw, *statistics]


@pytest.mark.parametrize("tasks", [1, 2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_every_run_and_for_every_number_of_threads(
    backend: Backend, dtype: torch.dtype, tasks: int
) -> None:
    shapes: list[Shape] = [(100_003,), (3,), (50, 77)]
    if backend.interpreted:
        pytest.skip("the interpreter runs one program after the other")
    grads = backend.normal(tasks, shapes, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(everything(backend, grads))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("tasks", [2, 9])
@pytest.mark.long_interpreted
def test_same_bits_for_a_list_and_its_flat_view(backend: Backend, tasks: int) -> None:
    # Pieces of whole blocks, whatever a backend's block is: a power of two of this many elements at most.
    piece, count = (device_table.MIN_CHUNK, 2) if backend.interpreted else (1 << 16, 3)
    whole = backend.normal(tasks, [(piece * count,)])
    pieces = [list(row[0].split(piece)) for row in whole]
    one, many = State(backend, shapes=[(piece * count,)]), State(backend, shapes=[(piece * count,)])
    flat_adamw = one.update(whole, [0.5] * tasks)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        setattr(many, name, list(getattr(many, name)[0].split(piece)))
    list_adamw = many.update(pieces, [0.5] * tasks)
    combined, *flat = backend.combine_dots(whole, [0.3] * tasks)
    parts, *listed = backend.combine_dots(pieces, [0.3] * tasks)
    assert torch.equal(combined[0], torch.cat(parts))
    assert torch.equal(one.params[0], torch.cat(many.params))
    flat += [*flat_adamw, backend.gram(whole), backend.dots(whole, combined)]
    listed += [*list_adamw, backend.gram(pieces), backend.dots(pieces, parts)]
    assert all(torch.equal(x, y) for x, y in zip(flat, listed, strict=True))


# Properties. Integers of a few bits again, so equality is equality.


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


def examples(backend: Backend) -> Any:
    return settings(max_examples=5 if backend.interpreted else 40)


def to(backend: Backend, grads: Grads) -> Grads:
    return [[None if g is None else g.to(backend.device) for g in row] for row in grads]


def same(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_linear_in_the_weights(backend: Backend) -> None:
    @examples(backend)
    @given(integer_grads(), st.data())
    def holds(host: Grads, data: st.DataObject) -> None:
        # Below 2^8 in absolute value, integers are exact in every dtype.
        few = st.lists(st.integers(-2, 2), min_size=len(host), max_size=len(host))
        grads, a, b = to(backend, host), data.draw(few), data.draw(few)
        both, dots, _ = backend.combine_dots(grads, [x + y for x, y in zip(a, b, strict=True)])
        (left, right), parts, _ = backend.combine_dots(grads, [a, b])
        assert same(both, [None if x is None else x + y for x, y in zip(left, right, strict=True)])
        assert torch.equal(dots, parts.sum(0))

    holds()


@pytest.mark.long_interpreted
def test_order_of_the_tasks_does_not_matter(backend: Backend) -> None:
    @examples(backend)
    @given(integer_grads(), st.randoms(use_true_random=False))
    def holds(host: Grads, random: Any) -> None:
        grads, order = to(backend, host), list(range(len(host)))
        random.shuffle(order)
        weights = [2.0**-n for n in range(len(grads))]
        combined, dots, sqnorms = backend.combine_dots(grads, weights)
        shuffled = [grads[n] for n in order]
        other, other_dots, other_sqnorms = backend.combine_dots(shuffled, [weights[n] for n in order])
        assert same(combined, other)
        assert torch.equal(dots[order], other_dots) and torch.equal(sqnorms[order], other_sqnorms)
        assert torch.equal(backend.gram(grads)[order][:, order], backend.gram(shuffled))

    holds()


@pytest.mark.long_interpreted
def test_powers_of_two_scale_exactly(backend: Backend) -> None:
    @examples(backend)
    @given(st.integers(-30, 30), st.integers(1, 9), st.integers(0, 1000))
    def holds(power: int, tasks: int, seed: int) -> None:
        scale = 2.0**power
        grads = backend.normal(tasks, [(37,), (3, 4)], seed=seed)
        weights = torch.rand(tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        scaled = [[g * scale for g in row] for row in grads]
        combined, dots, sqnorms = backend.combine_dots(grads, weights)
        other, other_dots, other_sqnorms = backend.combine_dots(scaled, weights)
        assert all(torch.equal(x * scale, y) for x, y in zip(combined, other, strict=True))
        assert torch.equal(dots * scale**2, other_dots) and torch.equal(sqnorms * scale**2, other_sqnorms)
        assert torch.equal(backend.gram(grads) * scale**2, backend.gram(scaled))
        weighted = backend.combine(grads, weights * scale)
        assert all(torch.equal(x * scale, y) for x, y in zip(backend.combine(grads, weights), weighted, strict=True))

    holds()


def test_gram_is_positive_semidefinite(backend: Backend) -> None:
    @examples(backend)
    @given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
    def holds(tasks: int, size: int, seed: int) -> None:
        gram = backend.gram(backend.normal(tasks, [(size,)], seed=seed)).cpu()  # of rank `size` at most
        assert torch.equal(gram, gram.T)
        # Errors of the entries up to STATISTICS |g_i| |g_j| move eigenvalues by at most their Frobenius norm.
        assert torch.linalg.eigvalsh(gram).min() >= -STATISTICS * gram.trace()

    holds()


# torch.library and torch.compile

TRACED: list[Shape] = [(3, 4), (5,), (), (2, 0), (6,)]


def traced_grads(backend: Backend) -> Grads:
    """Three tasks; the second parameter is not task 1's, the last is nobody's; those of task 2 carry a graph."""
    grads = backend.normal(3, TRACED)
    grads[1][1] = None
    grads[2] = [g.requires_grad_() for g in grads[2]]
    return [[*row[:-1], None] for row in grads]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.long_interpreted
def test_operators_pass_opcheck(backend: Backend, rows: int) -> None:
    if backend.interpreted and rows > 1:
        pytest.skip("once will do in the interpreter")
    flat = [g for row in traced_grads(backend) for g in row]
    weights = torch.tensor([[0.5, 0.25, -1.0]] * rows, dtype=torch.float64)
    namespace, groups, last = torch.ops.cats, [0, 2, 0, 0, 1], backend.name
    out = [torch.zeros(shape, device=backend.device) for shape in TRACED[:-1] * rows]
    torch.library.opcheck(namespace.combine.default, (flat, 3, weights, out, last))
    torch.library.opcheck(namespace.combine_dots.default, (flat, 3, weights, out, groups, last))
    if rows == 1:
        direction = [torch.ones(shape, device=backend.device) for shape in TRACED[:-1]] + [None]
        torch.library.opcheck(namespace.dots.default, (flat, 3, direction, groups, last))
        torch.library.opcheck(namespace.gram.default, (flat, 3, groups, last))
        state = State(backend, shapes=TRACED)
        scalars = (torch.tensor(1.0), torch.tensor(0.1), 0.9, 0.98, 1e-8, 0.01)
        for extra in ((None, None), (torch.tensor(0.0), torch.tensor(2.0))):
            extra = tuple(None if t is None else t.to(backend.device) for t in extra)
            arguments = (state.params, flat, 3, weights, state.exp_avgs, state.exp_avg_sqs, *scalars, *extra)
            torch.library.opcheck(namespace.combine_adamw_.default, (*arguments, groups, last))


@pytest.mark.long_interpreted
def test_compiles_without_a_break(backend: Backend) -> None:
    rows = torch.tensor([[0.5, 0.25, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)

    def call(grads: Grads, direction: list[Any], params: list[Tensor], *moments: list[Tensor]) -> Any:
        doubled = [[None if g is None else 2 * g for g in row] for row in grads]
        plain = backend.combine(doubled, [0.5, 0.25, -1.0])
        combined, dots, sqnorms = backend.combine_dots(grads, rows, groups=[0, 1, 0, 1, 2])
        along, gram = backend.dots(grads, direction), backend.gram(grads)
        update = backend.combine_adamw_(params, grads, rows[0], *moments, step=1, **ADAMW)
        return plain[0] + 1, combined[1][0] * dots.sum(), combined[0][4], sqnorms, along, gram.trace(), *update

    torch.compiler.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    grads, direction = traced_grads(backend), [torch.ones(s, device=backend.device) for s in TRACED[:-1]] + [None]
    states = State(backend, shapes=TRACED), State(backend, shapes=TRACED)
    results = [
        function(grads, direction, state.params, state.exp_avgs, state.exp_avg_sqs)
        for function, state in zip((compiled, call), states, strict=True)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert same(states[0].tensors, states[1].tensors)


def test_shapes_are_known_without_data(backend: Backend) -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        grads = [[None if g is None else mode.from_tensor(g) for g in row] for row in traced_grads(backend)]
        combined, dots, sqnorms = backend.combine_dots(grads, [[1.0, 2.0, 3.0]] * 2, groups=[0, 0, 1, 0, 0])
        assert [[None if t is None else tuple(t.shape) for t in row] for row in combined] == [[*TRACED[:4], None]] * 2
        assert (dots.shape, sqnorms.shape, dots.dtype) == ((2, 2, 3), (2, 3), torch.float64)
        assert dots.device.type == sqnorms.device.type == backend.device.type
        assert backend.gram(grads).shape == (3, 3) and backend.dots(grads, combined[0]).shape == (3,)


# Size


@pytest.mark.slow  # minutes, 4 GiB of memory
def test_more_elements_than_int32_counts(backend: Backend) -> None:
    if backend.interpreted:
        pytest.skip("days in the interpreter")
    size = (1 << 31) + 70_001
    places = torch.tensor([0, 1 << 30, (1 << 31) - 1, 1 << 31, size - 1])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.bfloat16)
    # Zeros but for the places where a 32-bit number ends; on a CPU pages that are only read, which take no memory.
    if backend.device.type == "cpu":
        marked = torch.frombuffer(mmap.mmap(-1, 2 * size, flags=mmap.MAP_PRIVATE), dtype=torch.bfloat16)
    else:
        marked = torch.zeros(size, dtype=torch.bfloat16, device=backend.device)
    for place, value in zip(places.tolist(), values, strict=True):
        marked[place] = value
    assert backend.gram([[marked]]).item() == backend.dots([[marked]], [marked]).item() == 55
    (combined,), dots, sqnorms = backend.combine_dots([[marked]], [2.0])
    assert (dots.item(), sqnorms.item()) == (110, 55)
    assert torch.equal(combined[places].cpu(), 2 * values) and combined.count_nonzero() == len(values)
    combined.fill_(float("nan"))
    backend.combine([[marked]], [2.0], out=[combined])
    assert torch.equal(combined[places].cpu(), 2 * values) and combined.count_nonzero() == len(values)
    if backend.device.type == "cuda":  # on a CPU the moments would take another 16 GiB
        moments = [[torch.zeros(size, device=backend.device)] for _ in range(2)]
        _, sqnorms = backend.combine_adamw_([combined.zero_()], [[marked]], [1.0], *moments, step=1, **ADAMW)
        assert sqnorms.item() == 55
        assert combined[places].tolist() == [-torch.tensor(1e-2).bfloat16().item()] * len(values)
        assert all(t.count_nonzero() == len(values) for t in (combined, *moments[0], *moments[1]))


# The operators' arguments and results are there before; a call on little data has loaded what is loaded once.
MEMORY = """
import resource, sys, torch
from cats import ops
backend, tasks, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def run(size):
    grads = [[torch.full((size,), float(n))] for n in range(tasks)]
    others = [[torch.ones(size)] for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ops.combine(grads, [1.0] * tasks, out=others[0], backend=backend)
    ops.combine_dots(grads, [1.0] * tasks, out=others[0], backend=backend)
    ops.dots(grads, others[0], backend=backend)
    ops.gram(grads, backend=backend)
    ops.combine_adamw_(others[0], grads, [1.0] * tasks, *others[1:], step=1, lr=0.1, beta1=0.9, beta2=0.98, eps=1e-8,
                       weight_decay=0.0, backend=backend)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
run(1000)
print(run(size) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "size"), [(2, 10_000_000), (64, 200_000)])
def test_memory_beyond_arguments_and_results(backend: Backend, tasks: int, size: int) -> None:
    """Below 64 MB, the whole of which are more."""
    if backend.interpreted:
        pytest.skip("what the interpreter takes is its own")
    if backend.device.type == "cpu":
        command = [sys.executable, "-c", MEMORY, backend.name, str(tasks), str(size)]
        taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 2**20
    else:
        grads, state = backend.normal(tasks, [(size,)]), State(backend, shapes=[(size,)])
        combined = torch.empty_like(grads[0][0])
        torch.cuda.reset_peak_memory_stats(backend.device)
        before = torch.cuda.memory_allocated(backend.device)
        backend.combine_dots(grads, [1.0] * tasks, out=[combined])
        backend.dots(grads, [combined])
        backend.gram(grads)
        state.update(grads, [1.0] * tasks)
        taken = torch.cuda.max_memory_allocated(backend.device) - before
    assert taken < 64e6
