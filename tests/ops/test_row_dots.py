"""row_dots with every backend: values against float64, layouts, rows of no task, bits, arguments, torch.library."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cats import ops
from cats.ops import layout
from tests.ops.common import FLOATS, STATISTICS, STATISTICS_FLOAT64, Backend, close


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Integers from -3 to 3 without 0: every sum is exact, and every lost number changes one."""
    numbers = torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(seed))
    return (numbers + (numbers >= 0)).to(dtype)


def owners(count: int, tasks: int, order: str = "mixed") -> Tensor:
    """A task or -1 for every row."""
    found = torch.randint(-1, tasks, (count,), generator=torch.Generator().manual_seed(count))
    return found.sort().values if order == "sorted" else found


def oracle(x: Tensor, y: Tensor, rows: Tensor, tasks: int) -> Tensor:
    """(K,) float64, row by row."""
    total = torch.zeros(tasks, dtype=torch.float64)
    for a, b, n in zip(x.cpu().double(), y.cpu().double(), rows.tolist(), strict=True):
        if 0 <= n < tasks:
            total[n] += (a * b).sum()
    return total


def compute(backend: Backend, x: Tensor, y: Tensor, rows: Tensor, tasks: int) -> Tensor:
    found = backend.row_dots(x.to(backend.device), y.to(backend.device), rows.to(backend.device), tasks)
    assert found.dtype == torch.float64 and found.shape == (tasks,) and found.device.type == backend.device.type
    assert not found.requires_grad
    return found.cpu()


@pytest.mark.parametrize("order", ["sorted", "mixed"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_integers_are_added_exactly(backend: Backend, dtype: torch.dtype, order: str) -> None:
    # Widths around the lengths of vectors, blocks and tiles; numbers of rows around those of a program.
    sizes = [(1, 1), (3, 7), (70, 16), (33, 65), (5, 1023), (2, 4104)]
    counts = (5,) if order == "sorted" else (128,)
    if not backend.interpreted:
        sizes += [(4097, 1), (1000, 17), (300, 300), (3, 70_001)]
        counts = (1, 5, 128)
    for count, width in sizes:
        x, y = (integers((count, width), dtype, seed) for seed in (0, 1))
        for tasks in counts:
            rows = owners(count, tasks, order)
            assert torch.equal(compute(backend, x, y, rows, tasks), oracle(x, y, rows, tasks)), (count, width, tasks)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_promised_accuracy(backend: Backend, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for (count, width), tasks in itertools.product([(9, 1504), (150, 33)], (1, 4)):
        x, y = (torch.randn(count, width, generator=generator).to(dtype) for _ in "xy")
        rows = owners(count, tasks)
        squares = (oracle(x, x, rows, tasks) * oracle(y, y, rows, tasks)).sqrt()
        relative = STATISTICS_FLOAT64 if dtype == torch.float64 else STATISTICS
        close(compute(backend, x, y, rows, tasks), oracle(x, y, rows, tasks), relative * squares, str(dtype))


def test_many_small_terms_are_not_lost_to_a_large_one(backend: Backend) -> None:
    # The worst input for float32 sums: after the first terms, all terms are below half of the sum's last bit.
    count = 3 if backend.interpreted else 100
    x = torch.full((count, 4096), 0.99**0.5 * 2.0**-12)
    x[:, :16] = 1.0
    rows = torch.zeros(count, dtype=torch.int64)
    expected = oracle(x, x, rows, 1)
    close(compute(backend, x, x, rows, 1), expected, STATISTICS * expected, "a large term first")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("other", FLOATS, ids=str)
def test_two_dtypes(backend: Backend, dtype: torch.dtype, other: torch.dtype) -> None:
    x, y, rows = integers((9, 41), dtype, 0), integers((9, 41), other, 1), owners(9, 2)
    assert torch.equal(compute(backend, x, y, rows, 2), oracle(x, y, rows, 2))
    # Neither is rounded to the dtype of the other: 1 + fine would be 1.
    fine = max(torch.finfo(dtype).eps, torch.finfo(other).eps, 2.0**-20) / 2
    precise = min((dtype, other), key=lambda d: torch.finfo(d).eps)
    if dtype != other and torch.finfo(precise).eps <= fine:
        short = dtype if precise == other else other
        a, b = torch.ones(2, 40, dtype=short), torch.tensor([1 + fine, -1.0] * 20).to(precise).expand(2, 40)
        pair = (a, b) if short == dtype else (b, a)
        assert compute(backend, *pair, torch.tensor([0, 0]), 1).item() == 40 * fine


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows with gaps": lambda t: torch.cat([t, t / 0], 1)[:, : t.shape[1]],
    "a slice of a wider matrix": lambda t: torch.cat([t[:, :3] / 0, t, t / 0], 1)[:, 3 : 3 + t.shape[1]],
    "every second row": lambda t: torch.stack([t, t], 1)[:, 0],
    "transposed": lambda t: t.t().contiguous().t(),
    "every second element": lambda t: torch.stack([t, t], -1)[..., 1],
    "one row for all": lambda t: t[:1].expand(t.shape),
    "one number": lambda t: t[:1, :1].expand(t.shape),
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "negative": lambda t: torch._neg_view(-t),
    "requires grad": lambda t: t.clone().requires_grad_(),
    "parameter": lambda t: torch.nn.Parameter(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, layout: str) -> None:
    rows = owners(37, 3)
    for dtype in (torch.float32, torch.bfloat16):
        x, y = (integers((37, 48), dtype, seed).to(backend.device) for seed in (0, 1))
        changed, other = LAYOUTS[layout](x), LAYOUTS[layout](y)
        assert torch.equal(compute(backend, changed, y, rows, 3), oracle(changed.detach(), y, rows, 3))
        assert torch.equal(compute(backend, changed, other, rows, 3), oracle(changed.detach(), other.detach(), rows, 3))


@pytest.mark.parametrize("width", [1, 2, 16])
def test_rows_with_gaps_are_not_copied(backend: Backend, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    monkeypatch.setattr(torch.Tensor, "clone", None)
    x = torch.ones(5, 20, device=backend.device)[:, 3 : 3 + width]
    rows = torch.zeros(5, dtype=torch.int64, device=backend.device)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t: t if t is rows else pytest.fail("a copy"))
    assert backend.row_dots(x, x, rows, 1).item() == 5 * width


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_the_tasks_of_the_rows(backend: Backend, dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]], device=backend.device)
    y = torch.ones_like(x)
    for rows, expected in (
        ([0, 0, 0, 0, 0], [31, 0, 0]),
        ([2, 1, 2, 1, 2], [0, 10, 21]),
        ([-1, 1, -1, 0, -1], [8, 2, 0]),
        ([-1] * 5, [0, 0, 0]),
    ):
        index = torch.tensor(rows, dtype=dtype, device=backend.device)
        assert backend.row_dots(x, y, index, 3).tolist() == expected
        strided = torch.stack([index, index + 7], 1)[:, 0]
        assert backend.row_dots(x, y, strided, 3).tolist() == expected
    assert backend.row_dots(x, y, torch.tensor(1, dtype=dtype, device=backend.device).expand(5), 3).tolist() == [
        0,
        31,
        0,
    ]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_add(backend: Backend, shape: tuple[int, int]) -> None:
    x = torch.ones(shape)
    assert compute(backend, x, x, torch.zeros(shape[0], dtype=torch.int64), 3).tolist() == [0.0] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows_in_its_task_alone(backend: Backend, value: float) -> None:
    rows = torch.tensor([0, 1, 2, 1, -1])
    for width, place in ((5, 4), (70, 0), (1500, 1030)):
        for row in range(5):
            x, y = torch.ones(5, width), torch.ones(5, width)
            (x if row % 2 else y)[row, place] = value
            found = compute(backend, x, y, rows, 3)
            expected = [n != rows[row] for n in range(3)]
            assert found.isfinite().tolist() == expected, (width, row)
            if value == value:
                assert (found[~found.isfinite()] == value).all()


def test_products_outside_float32(backend: Backend) -> None:
    # In float32 the products would overflow or vanish. Only the reference and the C++ kernels keep the bound for them.
    if backend.name not in ("reference", "native"):
        pytest.skip("not promised")
    rows = torch.tensor([0, 1, 1, 0])
    for scale, dtype in itertools.product((2.0**-90, 2.0**80), (torch.float32, torch.bfloat16)):
        x, y = (integers((4, 75), dtype, seed) * scale for seed in (0, 1))
        x[1] = 0
        assert torch.equal(compute(backend, x, y, rows, 2), oracle(x, y, rows, 2))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_on_every_run_and_for_every_number_of_threads(backend: Backend, dtype: torch.dtype) -> None:
    if backend.interpreted:
        pytest.skip("the interpreter runs one program after the other")
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    for shape in (3000, 67), (200, 5000):
        x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in "xy")
        rows, results = owners(shape[0], 7), []
        try:
            for count in (1, 2, 3, 1):
                torch.set_num_threads(count)
                results.append(compute(backend, x, y, rows, 7))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(results[0], other) for other in results[1:])


def test_more_tasks_than_kernels_take(backend: Backend) -> None:
    x = integers((400, 3), torch.float32, 0)
    rows = owners(400, 300)
    assert torch.equal(compute(backend, x, x, rows, 300), oracle(x, x, rows, 300))


# Wrong arguments


ONES, ROWS = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
BAD: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "shape": ((ONES, ONES[:, :3], ROWS, 2), ValueError, "x has shape (3, 4), but y has (3, 3)"),
    "axes": ((ONES[0], ONES[0], ROWS, 2), ValueError, "x has shape (4,), but must be a matrix, (rows, width)"),
    "dtype": ((ONES, ONES.int(), ROWS, 2), TypeError, "y: torch.int32 is not supported, only float32"),
    "no tensor": ((ONES, 3.0, ROWS, 2), TypeError, "y: expected a tensor, got float"),
    "device": ((ONES, ONES.to("meta"), ROWS, 2), ValueError, "y is on meta, but x is on cpu"),
    "sparse": ((ONES.to_sparse(), ONES, ROWS, 2), TypeError, "x: torch.sparse_coo is not supported"),
    "rows are a list": (
        (ONES, ONES, [0, 0, 0], 2),
        TypeError,
        "rows: expected a tensor, the task of every row, got list",
    ),
    "rows are floats": (
        (ONES, ONES, ROWS.float(), 2),
        TypeError,
        "rows: torch.strided and torch.float32 are not supported",
    ),
    "rows are too few": ((ONES, ONES, ROWS[:2], 2), ValueError, "rows has shape (2,), but x has 3 rows"),
    "rows elsewhere": ((ONES, ONES, ROWS.to("meta"), 2), ValueError, "rows is on meta, but x is on cpu"),
    "rows are a matrix": ((ONES, ONES, ROWS[:, None], 2), ValueError, "rows has shape (3, 1), but x has 3 rows"),
    "no task": ((ONES, ONES, ROWS, 0), ValueError, "tasks is 0, but there must be at least one task"),
    "tasks are a list": ((ONES, ONES, ROWS, ["a"]), TypeError, "tasks must be an int, the number of tasks, not list"),
    "tasks are a bool": ((ONES, ONES, ROWS, True), TypeError, "tasks must be an int, the number of tasks, not bool"),
    "a task too large": (
        (ONES, ONES, ROWS + 2, 2),
        ValueError,
        "rows[0] is 2, but must be a task from 0 to 1, or -1 for none",
    ),
    "a task too small": (
        (ONES, ONES, torch.tensor([0, -1, -2]), 2),
        ValueError,
        "rows[2] is -2, but must be a task from 0 to 1, or -1 for none",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=list(BAD))
def test_complaints(arguments: Any, error: type[Exception], message: str) -> None:
    for backend in (None, "reference"):
        with pytest.raises(error, match=re.escape(message)) as caught:
            ops.row_dots(*arguments, backend=backend)
        assert "\n" not in str(caught.value)


def test_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_reads_matrices", False)
    for arguments, error, message in BAD.values():
        with pytest.raises(error, match=re.escape(message)):
            ops.row_dots(*arguments)
    assert ops.row_dots(ONES, ONES, torch.tensor([1, 0, 1]), 2).tolist() == [4.0, 8.0]


def test_freed_memory_is_refused() -> None:
    x = torch.ones(3, 4)
    x.untyped_storage().resize_(0)
    for arguments in (x, ONES), (ONES, x):
        with pytest.raises(ValueError, match="was it freed"):
            ops.row_dots(*arguments, ROWS, 2)
        with pytest.raises(ValueError, match="its storage was freed"):
            torch.ops.cats.row_dots(*arguments, ROWS, 2, None)


@pytest.mark.gpu
def test_on_a_gpu_rows_of_unknown_tasks_are_left_out() -> None:
    x = torch.ones(4, 5, device="cuda")
    for backend in (name for name in ("reference", "triton", "cuda") if ops.backends()[name] is None):
        assert ops.row_dots(x, x, torch.tensor([0, 7, -9, 1]).cuda(), 2, backend=backend).tolist() == [5.0, 5.0]


# torch.library and torch.compile


def test_passes_opcheck(backend: Backend) -> None:
    x, y = (integers((9, 12), torch.float32, seed).to(backend.device) for seed in (0, 1))
    rows = owners(9, 3).to(backend.device)
    torch.library.opcheck(torch.ops.cats.row_dots.default, (x, y, rows, 3, backend.name))


def test_compiles_without_a_break(backend: Backend) -> None:
    def call(x: Tensor, y: Tensor, rows: Tensor, tasks: int) -> Tensor:
        return backend.row_dots(2 * x, y, rows.int(), tasks) + 1

    torch.compiler.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for tasks in (3, 4, 5):
        x, rows = integers((9, 12), torch.float32, tasks).to(backend.device), owners(9, tasks).to(backend.device)
        assert torch.equal(compiled(x, x, rows, tasks), call(x, x, rows, tasks))


def test_shapes_are_known_without_data() -> None:
    x = torch.ones(3, 4, device="meta")
    found = ops.row_dots(x, x, torch.zeros(3, dtype=torch.int64, device="meta"), 5)
    assert found.shape == (5,) and found.dtype == torch.float64 and found.device.type == "meta"
