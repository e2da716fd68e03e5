"""One gradient per task, and their combination."""

from __future__ import annotations

import pytest
import torch

from cats.engines.autograd import needed_again
from cats.engines.per_task import combine_dots_across, task_gradients
from tests.engines.common import by_task, params_of


def test_task_gradients_of_tensors_that_share_a_graph():
    w, head_a, head_b, frozen = params_of((4, 3), 4, 4, 2)
    x = torch.arange(3.0, dtype=torch.float64)
    z = torch.tanh(w @ x)
    losses = [(z * head_a).sum(), (z * head_b).square().sum()]
    values, grads = task_gradients(by_task(losses), [w, head_a, head_b, frozen])
    assert [v.item() for v in values] == [loss.item() for loss in losses]
    assert all(v.dtype == torch.float64 and not v.requires_grad for v in values)
    assert grads[0][2] is None and grads[1][1] is None and grads[0][3] is None
    fresh = torch.tanh(w @ x)
    for loss, got in zip([(fresh * head_a).sum(), (fresh * head_b).square().sum()], grads, strict=True):
        expected = torch.autograd.grad(loss, [w, head_a, head_b, frozen], retain_graph=True, allow_unused=True)
        for e, g in zip(expected, got, strict=True):
            assert (e is None and g is None) or torch.equal(e, g)
    assert w.grad is None
    with pytest.raises(RuntimeError, match="second time"):  # the last loss has freed the graph
        losses[1].backward()


def test_graphs_are_kept_only_for_a_later_loss_that_shares_them():
    w, v = params_of(3, 3)
    shared = w.square()
    losses = [shared.sum(), (w * v).exp().sum(), (shared * v).sum(), v.square().sum()]
    kept = []
    for loss in losses:  # the hook runs during the backward pass of the loss
        loss.register_hook(lambda grad: kept.append(torch._C._autograd._get_current_graph_task_keep_graph()))
    _, grads = task_gradients(by_task(losses), [w, v])
    assert kept == [True, False, False, False]
    ew = (w * v).exp().detach()
    expected = [[2 * w, None], [v * ew, w * ew], [2 * w * v, w.square()], [None, 2 * v]]
    for got, want in zip(grads, expected, strict=True):
        for g, e in zip(got, want, strict=True):
            assert (g is None and e is None) or torch.allclose(g, e.detach(), rtol=1e-14)
    twice = w.exp().sum()
    assert needed_again([twice, None, twice, w.sum()]) == [True, False, False, False]


@pytest.mark.slow
def test_losses_of_a_compiled_model():
    # Inductor's backward passes reuse the buffers of the graph, so they refuse to keep it.
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x, params = torch.randn(2, 5, 4), list(model.parameters())
    compiled = torch.compile(model)
    _, grads = task_gradients(by_task([compiled(b).square().mean() for b in x]), params)
    _, plain = task_gradients(by_task([model(b).square().mean() for b in x]), params)
    for row, other in zip(grads, plain, strict=True):
        torch.testing.assert_close(row, other)


def test_callables_and_tensors_mixed():
    (w,) = params_of(3)
    z = w.square()
    losses = [z.sum(), lambda: w.sum(), (2 * z).sum(), lambda: (3 * w).sum()]
    _, grads = task_gradients(by_task(losses), [w])
    expected = [2 * w, torch.ones_like(w), 4 * w, torch.full_like(w, 3)]
    assert all(torch.equal(g[0], e) for g, e in zip(grads, expected, strict=True))


def test_a_loss_of_shape_one_passes():
    (w,) = params_of(1)
    assert task_gradients(by_task([w * 2]), [w])[0][0].shape == ()


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient if g is not None])


def test_combine_across_halves():
    generator = torch.Generator().manual_seed(1)
    rows = [[torch.randn(n, generator=generator, dtype=torch.float64) for n in (5, 3, 2)] for _ in range(6)]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    combined, dots, sqnorms = combine_dots_across(rows, weights, 2, backend=None)
    a, b = torch.stack([flat(r) for r in rows[0::2]]), torch.stack([flat(r) for r in rows[1::2]])
    torch.testing.assert_close(flat(combined), weights @ (a + b) / 2)
    a, b = a[:, :8], b[:, :8]  # the last parameter is private
    torch.testing.assert_close(dots, (a @ (weights @ b) + b @ (weights @ a)) / 2)
    torch.testing.assert_close(sqnorms, (a.square().sum(1) + b.square().sum(1)) / 2)
