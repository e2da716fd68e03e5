"""dots with every backend."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import EveryOperator, EveryStatistic
from tests.ops.common import FLOATS, Backend, Grads, Shape, check_dots, offset, stack


class TestDots(EveryOperator, EveryStatistic):
    check = staticmethod(check_dots)


def test_no_gradient_at_all(backend: Backend) -> None:
    nothing: Grads = [[None, None]] * 3
    assert backend.dots(nothing, [None, torch.ones(3)]).tolist() == [0.0] * 3


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
    # Rounded to the gradients' dtype (or float64 to float32), 1 + fine would be 1 and the sum would be 0.
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
