"""The default form: no task is given up, scale does not matter, and equal weights are the gradient of the sum."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import cats
from tests.optim.common import BASES, TASKS, Quadratics, same, take_step


def regression(scale, factor=1.0, steps=400):
    """Two equal tasks on a shared network; the second loss is multiplied by scale, both by factor."""
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    y = x @ torch.randn(16, 2) + 0.1 * torch.randn(512, 2)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = cats.CATS(torch.optim.AdamW(model.parameters(), lr=3e-3, eps=0.0, weight_decay=0.0), ["a", "b"])
    for _ in range(steps):
        errors = (model(x) - y).square().mean(0)
        take_step(optimizer, {"a": factor * errors[0], "b": factor * scale * errors[1]})
    return optimizer.alpha, (model(x) - y).square().mean(0).tolist()


@pytest.mark.parametrize("scale", [1, 10, 100, 0.01])
def test_no_task_is_given_up(scale):
    alpha, errors = regression(scale)
    assert min(alpha.values()) >= 0.05 * (1 - 1e-12)  # the floor ρ π_n
    assert max(errors) < 0.5  # the targets have a variance of about 16


def test_a_common_factor_of_all_losses_changes_nothing():
    alpha, errors = regression(3)
    scaled_alpha, scaled_errors = regression(3, factor=2.0**20)  # exact in floating point, and Adam cancels it
    assert scaled_alpha == alpha and scaled_errors == errors


@pytest.mark.parametrize("inner_steps", [1, 100])
@pytest.mark.parametrize("simplex", ["proximal", "softmax", "lagrangian"])
def test_equal_weights_give_the_gradient_of_the_sum_bit_for_bit(simplex, inner_steps):
    """Where α has not moved and autograd adds the tasks: a step without per-task gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(32, 8)
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), 3, simplex=simplex, inner_steps=inner_steps)
    losses = [lambda n=n: model(x + n)[:, n].square().mean() for n in range(3)]
    sum(loss() for loss in losses).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    assert optimizer.weighting.weights().tolist() == [1.0] * 3
    optimizer.backward([loss() for loss in losses])
    for p, q in zip(model.parameters(), expected, strict=True):
        if inner_steps == 100:
            assert torch.equal(p.grad, q)
        else:  # K float32 gradients are formed and then added; autograd adds the activations' gradients first
            torch.testing.assert_close(p.grad, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("simplex", ["proximal", "softmax"])
def test_reduction_leaves_adam_and_alpha_unchanged(simplex):
    finals = []
    for reduction in ("sum", "mean"):
        problem = Quadratics(k=4)  # a power of two, so that the factor is exact
        base = torch.optim.Adam(problem.params, lr=0.05, eps=0.0)
        optimizer = cats.CATS(base, 4, simplex=simplex, reduction=reduction, inner_steps=2, multiplier_lr=0.1)
        for _ in range(10):
            take_step(optimizer, problem.losses())
        finals.append([problem.theta, optimizer.alpha, optimizer.multipliers, optimizer.statistics])
    for one, other in zip(*finals, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
    assert finals[0][1] == pytest.approx(finals[1][1], rel=1e-12)
    assert finals[0][2] == pytest.approx(finals[1][2], rel=1e-12)
    assert finals[0][3]["sqnorm"] == pytest.approx(finals[1][3]["sqnorm"], rel=1e-11)
    assert finals[0][3]["dots"] == pytest.approx(finals[1][3]["dots"], rel=1e-11)


@pytest.mark.parametrize("base", BASES)
def test_strength_0_is_the_sum_of_the_losses(base):
    plain, ours = Quadratics(), Quadratics()
    reference = BASES[base](plain.params)
    optimizer = cats.CATS(BASES[base](ours.params), TASKS, strength=0.0, inner_steps=2)
    for _ in range(6):
        reference.zero_grad()
        sum(plain.losses()).backward()
        reference.step()
        take_step(optimizer, ours.losses())
        torch.testing.assert_close(ours.theta, plain.theta, rtol=1e-10, atol=1e-12)


def test_prior_of_the_optimizer():
    problem = Quadratics()
    optimizer = cats.CATS(
        torch.optim.SGD(problem.params, lr=0.1), TASKS, prior={"az": 3, "be": 1, "gl": 0}, inner_steps=1
    )
    assert optimizer.prior == optimizer.alpha == {"az": 0.75, "be": 0.25, "gl": 0.0}
    optimizer.prior = [1, 1, 2]
    assert optimizer.alpha == {"az": 0.25, "be": 0.25, "gl": 0.5}
    optimizer.backward(problem.losses())
    with pytest.raises(RuntimeError, match=r"zero_grad"):
        optimizer.prior = [1, 1, 1]
    optimizer.step()
    optimizer.zero_grad()
    other = cats.CATS(torch.optim.SGD(Quadratics().params, lr=0.1), TASKS, inner_steps=1)
    other.load_state_dict(optimizer.state_dict())
    assert same(other.alpha, optimizer.alpha) and other.prior == optimizer.prior
    with pytest.raises(ValueError, match="unknown task 'xx'"):
        optimizer.prior = {"xx": 1}
    optimizer.prior = {"az": 1}  # the others are absent from the next batch
    assert optimizer.prior == {"az": 1.0, "be": 0.0, "gl": 0.0}
    with pytest.raises(AttributeError, match=r"set the prior of cats\.CATS"):
        optimizer.alpha = {"az": 1.0}
    with pytest.raises(ValueError, match="each of the 3 tasks"):
        optimizer.prior = [1, 1]
    with pytest.raises(ValueError, match="proximal"):
        _ = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, simplex="softmax").prior


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_warnings_name_the_task(inner_steps):
    problem = Quadratics()
    optimizer = cats.CATS(
        torch.optim.SGD(problem.params, lr=0.0), TASKS, simplex="softmax", inner_steps=inner_steps, alpha_lr=50.0
    )
    with pytest.warns(UserWarning, match=r"task '(az|be|gl)' has been at its lower bound for 100 updates"):
        for _ in range(120 * inner_steps):
            take_step(optimizer, problem.losses())


def test_a_warning_says_that_one_task_per_step_leaves_alpha_as_it_is():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=1e-4), TASKS, inner_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(40):  # each task alone, but at times two of them
            losses = dict(zip(TASKS, problem.losses(), strict=True))
            few = TASKS[:2] if step % 10 == 9 else [TASKS[step % 3]]
            take_step(optimizer, {task: losses[task] for task in few})
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=1e-4), TASKS, inner_steps=1)
    with pytest.warns(UserWarning, match=r"the last 20 updates of α had one task each, the last one 'be'") as caught:
        for step in range(60):
            losses = dict(zip(TASKS, problem.losses(), strict=True))
            take_step(optimizer, {TASKS[step % 3]: losses[TASKS[step % 3]]})
    assert len(caught) == 1
    assert optimizer.alpha == dict.fromkeys(TASKS, 1 / 3)
