"""Test cases that several operators share: inputs on which they are compared with float64.

The test class of an operator inherits them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cats.ops import device_table
from tests.ops.common import FEW, FLOATS, LAYOUTS, MANY, TASKS, Backend, Shape, around, mixed_weights, offset

SHAPES: list[Shape] = [(3, 5), (), (0,), (7,), (129, 65), (1,), (2, 0, 3), (4, 3, 2, 5)]


def tiles(tasks: int) -> int:
    """For the interpreter: a number of elements that makes a few tiles, with a short last one."""
    return 4096 // tasks + 1


def magnitudes(backend: Backend) -> list[float]:
    # Only CPU backends promise squares beyond float32's range. Elsewhere 2^-24 of a square must be a normal number.
    most = 15 if backend.name in ("triton", "cuda") else 20
    return [10.0**e for e in range(-most, most + 1, 10 if backend.interpreted else 5)]


class EveryOperator:
    """For operators over gradients. A subclass has `check`: one of the checks in common.py."""

    check: Callable[..., None]

    @pytest.mark.parametrize("tasks", TASKS)
    def test_matches_float64(self, backend: Backend, tasks: int) -> None:
        if backend.interpreted and tasks > 33:
            pytest.skip("the interpreter runs this many tasks in test_equals_where_numbers_are_integers")
        shapes = SHAPES if tasks < 33 else [(1001,), (3, 5), ()]
        if backend.interpreted:
            shapes = [(tiles(tasks),), (3, 5), ()]
        self.check(backend, backend.normal(tasks, shapes), torch.linspace(-1, 2, tasks, dtype=torch.float64))

    @pytest.mark.parametrize("tasks", TASKS)
    @pytest.mark.long_interpreted
    def test_equals_where_numbers_are_integers(self, backend: Backend, tasks: int) -> None:
        shapes = [(tiles(tasks),), (3,)] if backend.interpreted else [(8193,), (3, 5), (2,)]
        self.check(backend, backend.integers(tasks, shapes), mixed_weights(tasks), exact=True)

    @pytest.mark.parametrize("tasks", [2, 33])
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.long_interpreted
    def test_dtypes(self, backend: Backend, dtype: torch.dtype, tasks: int) -> None:
        tasks = backend.few(tasks)
        shapes: list[Shape] = [(tiles(4 * tasks),), ()] if backend.interpreted else [(1031,), (3, 5), ()]
        self.check(backend, backend.normal(tasks, shapes, dtype), torch.linspace(-0.4, 1, tasks, dtype=torch.float64))
        grads = [[offset(t, n % 3) for t in row] for n, row in enumerate(backend.integers(tasks, shapes, dtype))]
        self.check(backend, grads, mixed_weights(tasks), exact=True)

    @pytest.mark.long_interpreted
    def test_parameters_of_different_dtypes(self, backend: Backend) -> None:
        # Every dtype is in each of two groups, so neither the order nor the dtype decides what is added to what.
        order = [*FLOATS, *reversed(FLOATS)]
        shapes: list[Shape] = [(100 + i, 3) for i in range(len(order))]
        for make, exact in (backend.normal, False), (backend.integers, True):
            grads = [[g.to(dtype) for g, dtype in zip(row, order, strict=True)] for row in make(3, shapes)]
            self.check(backend, grads, [1.0, 2.0, -3.0], groups=[0, 1] * len(FLOATS), exact=exact)

    @pytest.mark.parametrize(("tasks", "dtype"), [(1, torch.bfloat16), (2, torch.float32), (3, torch.float64)])
    @pytest.mark.long_interpreted
    def test_where_vectors_and_blocks_end(self, backend: Backend, tasks: int, dtype: torch.dtype) -> None:
        sizes = FEW[::4] if backend.interpreted else MANY
        weights = mixed_weights(tasks)
        # Every parameter is its own group, so every sum is visible.
        grads = backend.integers(tasks, [(size,) for size in sizes], dtype)
        self.check(backend, grads, weights, groups=range(len(sizes)), exact=True)
        for size in [4097] if backend.interpreted else MANY:
            self.check(backend, backend.integers(tasks, [(size,)], dtype, seed=size), weights, exact=True)

    @pytest.mark.parametrize("tasks", [5, 8, 16, 33, 92, 128])
    @pytest.mark.long_interpreted
    def test_where_blocks_end_with_many_tasks(self, backend: Backend, tasks: int) -> None:
        if backend.interpreted:
            pytest.skip("test_equals_where_numbers_are_integers has ends of tiles of this many tasks")
        sizes = [*FEW[::3], *around(4096, 8192)]  # the blocks of many tasks are shorter
        grads = backend.integers(tasks, [(size,) for size in sizes])
        self.check(backend, grads, mixed_weights(tasks), groups=range(len(sizes)), exact=True)

    @pytest.mark.long_interpreted
    def test_thousands_of_tiny_tensors_and_a_huge_one(self, backend: Backend) -> None:
        tiny, huge = (30, 4097) if backend.interpreted else (3000, 1_000_003)
        shapes: list[Shape] = [*((1 + i % 7,) for i in range(tiny)), (huge,), *((i % 3,) for i in range(tiny // 4))]
        groups = [min(i % 3, 1) for i in range(len(shapes))]
        self.check(backend, backend.integers(2, shapes), [1.0, -2.0], groups=groups, exact=True)

    def test_long_sums_of_one_sign(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        # Here errors of float32 sums add up: a single chain of 4e6 terms has an error of 1e-4 or more.
        size = (1 << 15) + 1025 if backend.interpreted else 4_000_001
        constants = [[torch.full((size,), value, device=backend.device)] for value in (0.1, 0.3)]
        if not backend.interpreted:
            self.check(backend, constants, [0.7, 0.3])
            self.check(backend, [[g.abs_().add_(1)] for (g,) in backend.normal(2, [(size,)])], [0.7, 0.3])
        if backend.name in ("triton", "cuda"):  # only these have chunks
            # As long as those of 1e10 elements, or as long as the parameter.
            monkeypatch.setattr(device_table, "MAX_CHUNKS", size // 2**20 + 1)
            self.check(backend, constants, [0.7, 0.3])

    @pytest.mark.parametrize("tasks", [3, 33])
    @pytest.mark.long_interpreted
    def test_mixed_magnitudes(self, backend: Backend, tasks: int) -> None:
        tasks, scales = backend.few(tasks), magnitudes(backend)
        grads = backend.normal(tasks, [(35 if backend.interpreted else 101,)] * len(scales))
        grads = [[g * scale for g, scale in zip(row, scales, strict=True)] for row in grads]
        weights = torch.linspace(-0.4, 1, tasks, dtype=torch.float64)
        self.check(backend, grads, weights, groups=range(len(scales)))
        mixed = [[torch.stack(row, -1)] for row in grads]  # large and small numbers next to each other
        self.check(backend, mixed, weights)

    def test_tasks_of_mixed_magnitudes(self, backend: Backend) -> None:
        scales = magnitudes(backend)
        rows = backend.normal(len(scales), [(101,)])
        grads = [[g * scale for g in row] for row, scale in zip(rows, scales, strict=True)]
        # The bound of each task follows its own norm, in the Gram matrix and with a combination of any size.
        self.check(backend, grads, (torch.eye(len(scales)) - 0.5 * torch.eye(len(scales)).roll(1, 0)).double())

    @pytest.mark.parametrize("tasks", [2, 16])
    @pytest.mark.long_interpreted
    def test_duplicate_tasks(self, backend: Backend, tasks: int) -> None:
        row = backend.normal(1, [(1031,), (3,)])[0]
        self.check(backend, [row] * tasks, torch.linspace(0.1, 1, tasks, dtype=torch.float64))
        # After cancellation the error is within the bound. The dots are those with the returned combination.
        self.check(backend, [row] * tasks, [0.1 * (-1) ** n for n in range(tasks)])

    @pytest.mark.long_interpreted
    def test_none_is_a_task_that_does_not_touch_the_parameter(self, backend: Backend) -> None:
        shapes: list[Shape] = [(4, 3), (5,), (6,), (700,), (257,), (2,)]
        grads = backend.integers(3, shapes)
        absent = {(0, 1), (0, 2), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (0, 5)}
        grads = [[None if (n, i) in absent else g for i, g in enumerate(row)] for n, row in enumerate(grads)]
        self.check(backend, grads, [2.0, -1.0, 0.5], exact=True)
        self.check(backend, grads, [2.0, -1.0, 0.5], groups=[0, 0, 1, 3, 0, 3], exact=True)
        adrift = [row if n != 1 else [None] * len(shapes) for n, row in enumerate(grads)]
        self.check(backend, adrift, [2.0, -1.0, 0.5], exact=True)

    def test_none_in_many_tasks(self, backend: Backend) -> None:
        tasks = backend.few(33)
        grads = backend.integers(tasks, [(300,), (65,), (17,)])
        grads = [[g if (n * 7 + i * 5) % 3 else None for i, g in enumerate(row)] for n, row in enumerate(grads)]
        self.check(backend, grads, mixed_weights(tasks), exact=True)

    def test_nothing_to_do(self, backend: Backend) -> None:
        empty = [[torch.empty(0, device=backend.device), None, torch.empty(3, 0, device=backend.device)]] * 2
        self.check(backend, empty, [1.0, 2.0], groups=[1, 0, 3], exact=True)

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
    @pytest.mark.long_interpreted
    def test_layouts(self, backend: Backend, layout: Callable[[Tensor, int], Tensor]) -> None:
        shape = (5, 17, 11) if backend.interpreted else (6, 531, 11)
        grads = [[layout(a, n), b] for n, (a, b) in enumerate(backend.integers(3, [shape, (3,)]))]
        self.check(backend, grads, [1.0, -2.0, 0.5], exact=True)

    def test_layouts_of_a_column(self, backend: Backend) -> None:
        # Strides of axes with one element or none mean nothing.
        for shape in (1, 300), (300, 1), (1, 1), (1, 0):
            grads = [[a.mT.contiguous().mT if n == 1 else a] for n, (a,) in enumerate(backend.integers(3, [shape]))]
            self.check(backend, grads, [1.0, -2.0, 0.5], exact=True)
        strange = [[g.as_strided((1, 300), (5, 1))] for (g,) in backend.integers(2, [(300,)])]
        self.check(backend, strange, [1.0, -2.0], exact=True)

    def test_views_of_negated_memory(self, backend: Backend) -> None:
        # The imaginary part of a conjugate is a view of memory with the wrong sign; torch negates it when it reads it.
        grads = [[torch.complex(a, a).conj().imag, b] for a, b in backend.integers(2, [(1,), (5,)])]
        assert grads[0][0].is_neg()
        self.check(backend, grads, [1.0, -2.0], exact=True)


class EveryCombination:
    """For combine and combine_dots: the weights."""

    check: Callable[..., None]

    def test_zero_weights(self, backend: Backend) -> None:
        grads = backend.integers(3, [(1025,), (3,)])
        self.check(backend, grads, [0.0, 0.0, 0.0], exact=True)
        self.check(backend, grads, [0.0, 1.0, 0.0], exact=True)

    @pytest.mark.long_interpreted
    def test_rows_of_weights_are_separate_combinations(self, backend: Backend) -> None:
        weights = torch.tensor([[1.0, 0, 0], [2, 3, -1], [-1, 1, 3], [0, 0, 0]], dtype=torch.float64)
        shapes: list[Shape] = [(331,), (), (0,), (3, 5)]
        self.check(backend, backend.integers(3, shapes), weights, groups=[1, 0, 0, 1], exact=True)
        self.check(backend, backend.integers(3, shapes), weights[:1], exact=True)
        self.check(backend, backend.normal(3, shapes), weights[1:3] * 0.3)

    @pytest.mark.long_interpreted
    def test_many_rows_of_weights(self, backend: Backend) -> None:
        tasks = 9
        grads = backend.integers(tasks, [(131,), (2,)])
        self.check(backend, grads, torch.eye(tasks, dtype=torch.float64) - 2 * torch.eye(tasks).flip(0), exact=True)

    @pytest.mark.long_interpreted
    def test_weights_on_the_device_and_beside_it(self, backend: Backend) -> None:
        grads = backend.integers(3, [(1025,), (3,)])
        for weights in torch.tensor([1.0, 2.0, -0.5]), torch.tensor([[1.0, 2.0, -0.5]], dtype=torch.float64):
            for device in "cpu", backend.device:
                self.check(backend, grads, weights.to(device), exact=True)
        self.check(backend, grads, torch.tensor([[1.0, 0, 2], [2, 1, 0], [0, 3, -1]]).t(), exact=True)


GROUPS = {
    "contiguous": [0, 0, 1, 1, 2, 2],
    "interleaved": [0, 1, 2, 0, 1, 2],
    "reversed": [5, 4, 3, 2, 1, 0],
    "with empty ones": [7, 2, 2, 7, 4, 2],
}


class EveryStatistic:
    """For operators that return statistics: the groups."""

    check: Callable[..., None]

    @pytest.mark.parametrize("groups", GROUPS.values(), ids=list(GROUPS))
    @pytest.mark.long_interpreted
    def test_groups_split_the_statistics(self, backend: Backend, groups: list[int]) -> None:
        grads = backend.integers(3, [(7,), (30, 9), (2, 2), (331,), (1,), (0,)])
        grads[1][2] = None
        self.check(backend, grads, [[1.0, 2.0, -1.0], [1.0, -1.0, 0.0]], groups=groups, exact=True)

    @pytest.mark.long_interpreted
    def test_groups_of_many_tasks(self, backend: Backend) -> None:
        tasks = backend.few(33)
        grads = backend.integers(tasks, [(7,), (20, 3), (2, 2), (65,)])
        self.check(backend, grads, mixed_weights(tasks), groups=[2, 0, 2, 0], exact=True)
