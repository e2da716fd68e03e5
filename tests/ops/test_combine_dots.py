"""combine_dots with every backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cases import EveryCombination, EveryOperator, EveryStatistic
from tests.ops.common import (
    LAYOUTS,
    STATISTICS,
    Backend,
    Grads,
    Shape,
    check_combination,
    check_combine_dots,
    close,
    examples,
    integer_grads,
    offset,
    same,
    to,
)


class TestCombineDots(EveryOperator, EveryCombination, EveryStatistic):
    check = staticmethod(check_combine_dots)


def test_dots_are_taken_before_rounding(backend: Backend) -> None:
    # In bfloat16, the combination 1 + 2^-10 rounds to 1. In float16, the sum of 6e4 and 6e4 is infinite.
    grads = [[torch.full((4,), x, dtype=torch.bfloat16, device=backend.device)] for x in (1.0, 2.0**-10)]
    (combined,), dots, sqnorms = backend.combine_dots(grads, [1.0, 1.0])
    assert combined.tolist() == [1.0] * 4
    assert dots.tolist() == [4 * (1 + 2.0**-10), 4 * 2.0**-10 * (1 + 2.0**-10)]
    assert sqnorms.tolist() == [4, 4 * 2.0**-20]
    large = [[torch.full((4,), 6e4, dtype=torch.float16, device=backend.device)]] * 2
    (combined,), dots, _ = backend.combine_dots(large, [1.0, 1.0])
    assert combined.isinf().all()
    assert dots.tolist() == [4 * 1.2e5 * 6e4] * 2


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
    # Backends that compute in float32 may lose squares that it cannot hold, but nothing else.
    lost = 0.0 if backend.name == "reference" else len(tiny) * 4 * float(torch.finfo(torch.float32).smallest_normal)
    for got, exact in zip((dots, sqnorms), expected, strict=True):
        close(got, exact, STATISTICS * exact + lost, "subnormal numbers")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_is_not_finite_stays_so_in_every_dtype(backend: Backend, dtype: torch.dtype) -> None:
    values = [float("nan"), float("inf"), -float("inf"), 1.0] * 5
    grads = [[torch.tensor(values, dtype=dtype, device=backend.device)]] * 2
    (combined,), dots, sqnorms = backend.combine_dots(grads, [0.5, 0.5])
    expected = torch.tensor(values, dtype=dtype)
    assert torch.equal(combined.cpu().nan_to_num(7.0), expected.nan_to_num(7.0)) and combined.isnan().sum() == 5
    assert dots.isnan().all() and sqnorms.isnan().all()
    # The NaNs with the largest bits: rounding them like numbers would give zero.
    widest = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float64: torch.int64}[dtype]
    for bits in (torch.iinfo(widest).max, -1):
        nan = torch.full((33,), bits, dtype=widest, device=backend.device).view(dtype)
        assert backend.combine([[nan]], [1.0])[0].isnan().all()


def test_no_gradient_at_all(backend: Backend) -> None:
    nothing: Grads = [[None, None]] * 3
    _, dots, sqnorms = backend.combine_dots(nothing, [1.0, 2.0, 3.0], groups=[1, 0])
    assert dots.tolist() == sqnorms.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.long_interpreted
def test_layouts_of_out(backend: Backend, layout: Callable[[Tensor, int], Tensor]) -> None:
    shape = (5, 17, 11) if backend.interpreted else (6, 531, 11)
    grads = [[layout(a, n), b] for n, (a, b) in enumerate(backend.integers(3, [shape, (3,)]))]
    # Written into every layout in which no two elements share memory. The old contents, NaN, do not matter.
    others = [] if backend.interpreted else [LAYOUTS[name] for name in ("transposed", "every second", "misaligned")]
    for like in layout, *others:
        out = like(torch.full(shape, float("nan"), device=backend.device), 0).detach()
        if 0 not in out.stride() and out.stride() != (1, 1, 1):
            combined, *_ = backend.combine_dots(grads, [1.0, -2.0, 0.5], out=[out, None])
            assert combined[0] is out
            check_combination(backend, [combined], grads, torch.tensor([[1.0, -2.0, 0.5]]).double(), exact=True)


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
    check_combine_dots(backend, [row[:-1] for row in grads], [[1.0, 2.0, 3.0], [1.0, -1.0, 0.5]], out=rows, exact=True)


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
