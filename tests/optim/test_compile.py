"""torch.compile around a whole training step."""

from __future__ import annotations

import pytest
import torch

import cats
from tests.optim.common import TASKS, TinyNet


def build():
    model = TinyNet()
    return model, cats.CATS(torch.optim.AdamW(model.parameters(), lr=1e-2), TASKS, inner_steps=2)


def training_step(model, optimizer, shift):
    x = torch.linspace(-1, 1, 24).reshape(3, 8) + shift
    losses = {task: model.layers(x)[n].square().mean() for n, task in enumerate(TASKS)}
    optimizer.zero_grad()
    optimizer.backward(losses)
    optimizer.step()


def test_only_the_model_is_compiled():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    (model, optimizer), (plain, reference) = build(), build()
    torch.compiler.reset()
    compiled = torch.compile(training_step, backend=backend, dynamic=True)
    for t in range(4):
        compiled(model, optimizer, torch.tensor(float(t)))
        training_step(plain, reference, torch.tensor(float(t)))
    assert len(graphs) == 1  # zero_grad(), backward() and step() are not traced
    assert optimizer.statistics["step"] == 4 and optimizer.alpha == reference.alpha
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_losses_that_share_a_compiled_backward_pass():
    model, optimizer = build()
    torch.compiler.reset()
    compiled = torch.compile(training_step, backend="aot_eager", dynamic=True)
    compiled(model, optimizer, torch.tensor(0.0))
    with pytest.raises(RuntimeError, match="pass each loss as a callable"):  # the second step needs their gradients
        compiled(model, optimizer, torch.tensor(1.0))
    assert optimizer.statistics["step"] == 1
