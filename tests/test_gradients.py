"""Gradients as lists of tensors, and p.grad."""

from __future__ import annotations

import pytest
import torch

from cats import gradients
from tests.engines.common import params_of


def test_add_treats_none_as_zero_and_leaves_its_arguments():
    expanded = torch.ones(1).expand(3)
    total = gradients.add([None, expanded, None, torch.ones(2)], [torch.ones(3), torch.ones(3), None, None])
    assert [None if t is None else t.tolist() for t in total] == [[1, 1, 1], [2, 2, 2], None, [1, 1]]
    assert expanded.tolist() == [1, 1, 1]


def test_sparse_and_dense_gradients_add_up_in_any_order():
    kinds = [torch.ones(3, 2), torch.ones(3, 2).to_sparse(1)]
    for a in kinds:
        for b in kinds:
            (total,) = gradients.add([a], [b])
            (p,) = params_of((3, 2), dtype=torch.float32)
            p.grad = a.clone()
            gradients.add_to_grad([p], [b], alpha=2.0)
            assert total.is_sparse == p.grad.is_sparse == (a.is_sparse and b.is_sparse)
            assert (total.to_dense() == 2).all() and (p.grad.to_dense() == 3).all()
    p.grad = None
    gradients.add_to_grad([p], [kinds[1]])
    assert p.grad.is_sparse


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="parameters of this torch have no grad_dtype")
def test_add_to_grad_gives_a_gradient_the_dtype_that_it_must_have():
    a, b = params_of(3, 3, dtype=torch.bfloat16)
    a.grad_dtype, b.grad_dtype = torch.float32, None
    gradients.add_to_grad([a, b], [torch.ones(3, dtype=torch.bfloat16), torch.ones(3)])
    assert a.grad.dtype == b.grad.dtype == torch.float32


def test_add_to_grad_adds_and_keeps_the_parameters_layout():
    a, b, c = params_of((2, 3), (2, 3), 2)
    b = b.detach().t().contiguous().t().requires_grad_()
    a.grad = torch.ones_like(a)
    kept = a.grad
    gradients.add_to_grad([a, b, c], [torch.full_like(a, 2), torch.ones(2, 3, dtype=torch.float64), None])
    assert a.grad is kept and (a.grad == 3).all()
    assert b.grad.stride() == b.stride() == (1, 2)
    assert c.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_largest_shows_what_is_not_finite(bad):
    a, b, c = params_of((2, 3), 4, 2, dtype=torch.float32)
    a.grad, b.grad = torch.full_like(a, 3e38), torch.full_like(b, -1.0)
    assert gradients.largest([a, b, c]).item() == pytest.approx(3e38)  # finite, although its square is not
    b.grad[2] = bad
    assert not torch.isfinite(gradients.largest([a, b, c]))
    assert gradients.largest([c]).item() == 0


def test_largest_of_sparse_gradients():
    table = torch.nn.Embedding(5, 2, sparse=True)
    (3 * table(torch.tensor([1, 1]))).sum().backward()
    assert gradients.largest([table.weight]).item() == 6


def test_unscale_matches_grad_scaler():
    (w,) = params_of(5, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    optimizer = torch.optim.SGD([w], lr=0.1)
    w.grad = torch.linspace(-1, 1, 5)
    by_hand = w.grad.clone()
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    expected, w.grad = w.grad, by_hand
    gradients.unscale([w], torch.tensor(3.0))
    assert torch.equal(w.grad, expected)
