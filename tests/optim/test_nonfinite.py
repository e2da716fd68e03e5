"""Steps with a loss or gradient that is not finite are skipped and counted."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import cats
import cats.accumulate
from tests.optim.common import TASKS, Heads, Quadratics, RunningNorm, options_of, same, take_step


def spoiled(problem, n, kind):
    """The losses, where that of task n or its gradient is not finite."""
    losses = problem.losses()
    if kind == "loss nan":
        losses[n] = losses[n] * float("nan")
    elif kind == "loss inf":
        losses[n] = losses[n] + float("inf")  # the gradient stays finite
    else:
        losses[n] = losses[n] + (problem.bias * 0).abs().sum().sqrt()  # adds 0; the gradient is 0/0
    return losses


@pytest.mark.parametrize("kind", ["loss nan", "loss inf", "gradient nan"])
@pytest.mark.parametrize("weighting", ["softmax", "lagrangian", "static", "gram"])
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_nothing_moves_when_something_is_not_finite(kind, weighting, taken):
    def build(problem):
        base = torch.optim.Adam(problem.params, lr=0.1)
        if weighting == "static":
            return cats.MultiTask(base, TASKS, cats.weighting.Static())
        if weighting == "gram":
            return cats.MultiTask(base, TASKS, RunningNorm())
        return cats.CATS(base, TASKS, **options_of(weighting))

    problem, clean = Quadratics(), Quadratics()
    optimizer, reference = build(problem), build(clean)
    for _ in range(taken):  # inner_steps is 3: after two steps, the next one updates α
        take_step(optimizer, problem.losses())
        take_step(reference, clean.losses())
    for n in (1, 2):
        optimizer.zero_grad()
        optimizer.backward(spoiled(problem, n, kind))
        if taken:
            nn.utils.clip_grad_norm_(problem.params, 1.0)
        optimizer.step()
        before, after = reference.state_dict(), optimizer.state_dict()
        assert torch.equal(problem.theta, clean.theta)
        assert same(before["state"], after["state"])
        assert same(before["multitask"]["weighting"], after["multitask"]["weighting"])
        assert same(optimizer.alpha, reference.alpha) and same(optimizer.multipliers, reference.multipliers)
        assert optimizer.needs_task_gradients == reference.needs_task_gradients
    statistics = optimizer.statistics
    assert (statistics["step"], statistics["skipped"], statistics["nonfinite_in_a_row"]) == (taken, 2, 2)
    for _ in range(4):  # afterwards training goes on unchanged
        take_step(optimizer, problem.losses())
        take_step(reference, clean.losses())
    assert torch.equal(problem.theta, clean.theta) and same(optimizer.alpha, reference.alpha)
    assert optimizer.statistics["nonfinite_in_a_row"] == 0 and optimizer.statistics["skipped"] == 2


def test_non_finite_gradient_of_a_head():
    model = Heads()
    optimizer = cats.CATS(
        torch.optim.SGD(model.parameters(), lr=0.1), TASKS, inner_steps=1, shared=model.trunk.parameters()
    )
    before = copy.deepcopy(model.state_dict())
    losses = model.losses(torch.ones(2, 5, dtype=torch.float64))
    losses["be"] = losses["be"] + (model.heads[1].bias * 0).abs().sum().sqrt()
    take_step(optimizer, losses)
    assert same(dict(before), dict(model.state_dict())) and optimizer.statistics["skipped"] == 1


@pytest.mark.parametrize("kind", ["loss nan", "gradient nan"])
@pytest.mark.parametrize("weighting", ["cats", "static"])
def test_too_many_in_a_row_names_the_task(kind, weighting):
    problem = Quadratics()
    base = torch.optim.SGD(problem.params, lr=0.1)
    rule = cats.weighting.Static() if weighting == "static" else cats.weighting.CATS(inner_steps=100)
    optimizer = cats.MultiTask(base, TASKS, rule, max_nonfinite=3)
    for attempt in range(2):
        assert not optimizer.needs_task_gradients, attempt
        take_step(optimizer, spoiled(problem, 1, kind))
    assert optimizer.needs_task_gradients  # the last attempt computes per-task gradients, to name the task
    optimizer.zero_grad()
    optimizer.backward(spoiled(problem, 1, kind))
    with pytest.raises(RuntimeError, match=r"3 steps in a row .* of task 'be'"):
        optimizer.step()
    assert np.array_equal(problem.theta, problem.start)
    take_step(optimizer, problem.losses())  # the caller may go on training
    assert optimizer.statistics["step"] == 1 and not optimizer.needs_task_gradients


def test_the_last_attempt_does_not_move_alpha():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, loss_term=True, max_nonfinite=2)
    take_step(optimizer, spoiled(problem, 0, "loss nan"))
    assert optimizer.needs_task_gradients
    take_step(optimizer, problem.losses())
    assert optimizer.statistics["step"] == 1 and set(optimizer.alpha.values()) == {1 / 3}
