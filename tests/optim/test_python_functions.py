"""Functions written in Python that run a backward pass of their own: reentrant checkpointing and its relatives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import cats
from tests.optim.common import RunningNorm

TASKS = ["az", "be"]


class Recomputed(torch.autograd.Function):
    """Like checkpointing in other libraries: a plain backward() inside, and no check of how it was called."""

    @staticmethod
    def forward(ctx, layer, x):
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.layer(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


FORMS = {
    "plain": lambda layer, x: layer(x),
    "reentrant": lambda layer, x: checkpoint(layer, x, use_reentrant=True),
    "other library": Recomputed.apply,
}


class Model(nn.Module):
    """An embedding that may be frozen, two layers that may be recomputed, a tied layer and an adapter outside."""

    def __init__(self, form, frozen):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.first, self.second = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.outside = nn.Parameter(torch.ones(4))
        self.double()
        self.embedding.requires_grad_(not frozen)
        self.run = FORMS[form]

    def losses(self, tokens):
        x = self.embedding(tokens)
        if not x.requires_grad:  # as PEFT does, so that checkpointing has an input that requires grad
            x.requires_grad_()
        self.input = x
        hidden = self.run(self.second, self.run(self.first, x).tanh() * self.outside)
        hidden = self.first(hidden.tanh())
        return {"az": hidden.square().mean(), "be": (hidden - 1).square().sum()}


def steps(form, weighting, *, frozen, callables):
    model = Model(form, frozen)
    params = [p for p in model.parameters() if p is not model.outside]
    optimizer = cats.MultiTask(torch.optim.SGD(params, lr=0.05), TASKS, weighting())
    seen = []
    for step in range(2):
        tokens = torch.tensor([[step, 1, 2], [3, 4, 5]])
        losses = model.losses(tokens)
        if callables:
            losses = {task: (lambda task=task, rows=tokens: model.losses(rows)[task]) for task in TASKS}
        optimizer.backward(losses)
        if step == 0:
            optimizer.backward(losses if callables else model.losses(tokens))  # adds to gradients that are there
        seen += [p.grad.clone() for p in params if p.requires_grad]
        assert model.outside.grad is None and not (frozen and model.input.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    return seen


WEIGHTINGS = {
    "weighted": lambda: cats.weighting.Static([1.0, 2.0]),
    "per task": lambda: cats.weighting.CATS(inner_steps=1, simplex="softmax", loss_term=True),
    "gram": RunningNorm,
}


@pytest.mark.parametrize("callables", [False, True], ids=["tensors", "callables"])
@pytest.mark.parametrize("frozen", [False, True], ids=["embedding", "frozen embedding"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("form", ["reentrant", "other library"])
def test_gradients_are_those_without_recomputation(form, weighting, frozen, callables):
    expected = steps("plain", WEIGHTINGS[weighting], frozen=frozen, callables=callables)
    found = steps(form, WEIGHTINGS[weighting], frozen=frozen, callables=callables)
    assert len(found) == len(expected) == 2 * (4 if frozen else 5)
    for ours, theirs in zip(found, expected, strict=True):  # float64: only the order of sums differs
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_failure_inside_leaves_all_gradients_as_they_were():
    layer, head = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizer = cats.CATS(torch.optim.SGD([*layer.parameters(), *head.parameters()]), TASKS, inner_steps=1)
    fail = False

    def run(x):
        if fail:
            raise ZeroDivisionError("inside")
        return layer(x)

    x = torch.ones(2, 3, requires_grad=True)
    x.grad = torch.full_like(x, 7.0)
    head.bias.grad = torch.full_like(head.bias, 5.0)
    y = head(checkpoint(run, x, use_reentrant=True)).sum()
    fail = True
    with pytest.raises(ZeroDivisionError, match="inside"):
        optimizer.backward([y, y.square()])
    assert head.weight.grad is None and layer.weight.grad is None
    assert head.bias.grad.item() == 5 and (x.grad == 7).all()
