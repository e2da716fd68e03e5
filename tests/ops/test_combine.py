"""combine with every backend."""

from __future__ import annotations

import pytest
import torch

from tests.ops.cases import EveryCombination, EveryOperator
from tests.ops.common import Backend, Grads, Shape, check_combine


class TestCombine(EveryOperator, EveryCombination):
    check = staticmethod(check_combine)


def test_weights_are_not_rounded_to_the_gradients_dtype(backend: Backend) -> None:
    # 1 + 2^-10 is 1 in bfloat16; with it the sum of 1 and -(1 + 2^-10) would vanish.
    one = torch.ones(3, dtype=torch.bfloat16, device=backend.device)
    (combined,) = backend.combine([[one], [one]], [1.0, -(1 + 2.0**-10)])
    assert combined.tolist() == [-(2.0**-10)] * 3
    wide = torch.ones(3, dtype=torch.float64, device=backend.device)
    (combined,) = backend.combine([[wide], [wide]], [1.0, 2.0**-50])
    assert combined.tolist() == [1 + 2.0**-50] * 3


def test_a_task_without_a_gradient_is_left_out_not_multiplied_by_zero(backend: Backend) -> None:
    # Its weight does not matter where it has no gradient.
    shapes: list[Shape] = [(4, 3), (5,), (6,), (700,), (257,), (2,)]
    grads = backend.integers(3, shapes)
    absent = {(0, 1), (0, 2), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (0, 5)}
    grads = [[None if (n, i) in absent else g for i, g in enumerate(row)] for n, row in enumerate(grads)]
    combined = backend.combine(grads, [1.0, float("nan"), 2.0])
    assert combined[0].isnan().all() and combined[2] is None
    assert torch.equal(combined[3], grads[0][3] + 2 * grads[2][3])


def test_no_gradient_at_all(backend: Backend) -> None:
    nothing: Grads = [[None, None]] * 3
    assert backend.combine(nothing, [1.0, 2.0, 3.0]) == [None, None]


@pytest.mark.long_interpreted
def test_a_row_of_weights_with_one_task_gives_its_gradients(backend: Backend) -> None:
    weights = torch.tensor([[1.0, 0, 0], [2, 3, -1], [-1, 1, 3], [0, 0, 0]], dtype=torch.float64)
    shapes: list[Shape] = [(331,), (), (0,), (3, 5)]
    combined = backend.combine(backend.normal(3, shapes), weights)
    assert all(torch.equal(x, y) for x, y in zip(combined[0], backend.normal(3, shapes)[0], strict=True))
