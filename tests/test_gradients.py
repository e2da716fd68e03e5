"""From losses to gradients."""

from __future__ import annotations

import weakref

import pytest
import torch

from cats import gradients


def params_of(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


alive: weakref.WeakSet = weakref.WeakSet()


class Probe(torch.autograd.Function):
    """The identity, with a saved tensor whose life can be followed."""

    @staticmethod
    def forward(ctx, x):
        token = x.clone()
        alive.add(token)
        ctx.token = token
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("form", ["weighted", "per task"])
def test_callables_keep_one_graph_alive(form):
    (w,) = params_of(3)
    seen = []

    def loss():
        seen.append(len(alive))
        return Probe.apply(w).square().sum()

    names = ["a", "b", "c"]
    if form == "weighted":
        gradients.weighted_backward([loss] * 3, [1.0, 2.0, 3.0], [w], names=names)
    else:
        gradients.task_gradients([loss] * 3, [w], names=names)
    assert seen == [0, 0, 0]


def test_task_gradients_of_tensors_that_share_a_graph():
    w, head_a, head_b, frozen = params_of((4, 3), 4, 4, 2)
    x = torch.arange(3.0, dtype=torch.float64)
    z = torch.tanh(w @ x)
    losses = [(z * head_a).sum(), (z * head_b).square().sum()]
    values, grads = gradients.task_gradients(losses, [w, head_a, head_b, frozen], names=["a", "b"])
    assert [v.item() for v in values] == [loss.item() for loss in losses]
    assert all(v.dtype == torch.float64 and not v.requires_grad for v in values)
    assert grads[0][2] is None and grads[1][1] is None and grads[0][3] is None
    fresh = torch.tanh(w @ x)
    for loss, got in zip([(fresh * head_a).sum(), (fresh * head_b).square().sum()], grads, strict=True):
        expected = torch.autograd.grad(loss, [w, head_a, head_b, frozen], retain_graph=True, allow_unused=True)
        for e, g in zip(expected, got, strict=True):
            assert (e is None and g is None) or torch.equal(e, g)
    assert w.grad is None
    with pytest.raises(RuntimeError, match="second time"):  # the last did not retain: the graph is gone
        losses[1].backward()


def test_graphs_are_kept_only_for_a_later_loss_that_shares_them():
    w, v = params_of(3, 3)
    shared = w.square()
    losses = [shared.sum(), (w * v).exp().sum(), (shared * v).sum(), v.square().sum()]
    kept = []
    for loss in losses:  # gradients arrive at a loss while its graph is still there
        loss.register_hook(lambda grad: kept.append(torch._C._autograd._get_current_graph_task_keep_graph()))
    _, grads = gradients.task_gradients(losses, [w, v], names=list("abcd"))
    assert kept == [True, False, False, False]
    ew = (w * v).exp().detach()
    expected = [[2 * w, None], [v * ew, w * ew], [2 * w * v, w.square()], [None, 2 * v]]
    for got, want in zip(grads, expected, strict=True):
        for g, e in zip(got, want, strict=True):
            assert (g is None and e is None) or torch.allclose(g, e.detach(), rtol=1e-14)
    twice = w.exp().sum()
    assert gradients._needed_again([twice, lambda: w.sum(), twice, w.sum()]) == [True, False, False, False]


@pytest.mark.slow
def test_losses_of_a_compiled_model():
    # Inductor's backward passes reuse the buffers of their graph, and refuse to keep it.
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x, params = torch.randn(2, 5, 4), list(model.parameters())
    compiled = torch.compile(model)
    _, grads = gradients.task_gradients([compiled(b).square().mean() for b in x], params, names=["a", "b"])
    _, plain = gradients.task_gradients([model(b).square().mean() for b in x], params, names=["a", "b"])
    for row, other in zip(grads, plain, strict=True):
        torch.testing.assert_close(row, other)


def test_callables_and_tensors_mixed():
    (w,) = params_of(3)
    z = w.square()
    losses = [z.sum(), lambda: w.sum(), (2 * z).sum(), lambda: (3 * w).sum()]
    _, grads = gradients.task_gradients(losses, [w], names=list("abcd"))
    expected = [2 * w, torch.ones_like(w), 4 * w, torch.full_like(w, 3)]
    assert all(torch.equal(g[0], e) for g, e in zip(grads, expected, strict=True))


def test_weighted_backward_is_backward_of_the_weighted_sum():
    w, unused = params_of((3, 2), 2)
    outside = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    w.grad = torch.full_like(w, 5.0)
    z = w * outside
    values = gradients.weighted_backward(
        [z.sum(), lambda: w.square().sum()], [0.5, 2.0], [w, unused], scale=torch.tensor(4.0), names=["a", "b"]
    )
    torch.testing.assert_close(w.grad, 5 + 4 * (0.5 + 2 * 2 * w.detach()))
    assert [v.item() for v in values] == [w.sum().item(), w.square().sum().item()]
    assert unused.grad is None and outside.grad is None


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (3.0, TypeError, "task 'az'.*float"),
        (lambda: "x", TypeError, "task 'az'.*str"),
        (torch.ones(2, requires_grad=True), ValueError, r"task 'az'.*\(2,\)"),
        (torch.tensor(1), ValueError, "int64"),
        (torch.tensor(1.0), ValueError, "does not require grad"),
    ],
)
def test_what_is_no_loss(loss, error, match):
    with pytest.raises(error, match=match):
        gradients.evaluate(loss, "task 'az'")


def test_a_loss_of_shape_one_passes():
    (w,) = params_of(1)
    assert gradients.task_gradients([w * 2], [w], names=["a"])[0][0].shape == ()


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient if g is not None])


def test_combine_across_halves():
    generator = torch.Generator().manual_seed(1)
    rows = [[torch.randn(n, generator=generator, dtype=torch.float64) for n in (5, 3, 2)] for _ in range(6)]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    combined, dots, sqnorms = gradients.combine_across(rows, weights, 2, backend=None)
    a, b = torch.stack([flat(r) for r in rows[0::2]]), torch.stack([flat(r) for r in rows[1::2]])
    torch.testing.assert_close(flat(combined), weights @ (a + b) / 2)
    a, b = a[:, :8], b[:, :8]  # the last parameter is private
    torch.testing.assert_close(dots, (a @ (weights @ b) + b @ (weights @ a)) / 2)
    torch.testing.assert_close(sqnorms, (a.square().sum(1) + b.square().sum(1)) / 2)


def test_add_treats_none_as_zero_and_leaves_its_arguments():
    expanded = torch.ones(1).expand(3)
    total = gradients.add([None, expanded, None, torch.ones(2)], [torch.ones(3), torch.ones(3), None, None])
    assert [None if t is None else t.tolist() for t in total] == [[1, 1, 1], [2, 2, 2], None, [1, 1]]
    assert expanded.tolist() == [1, 1, 1]


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
    assert gradients.largest([a, b, c]).item() == pytest.approx(3e38)  # finite, though its square is not
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
