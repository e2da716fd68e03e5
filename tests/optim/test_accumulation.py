"""Several backward() calls before one step()."""

from __future__ import annotations

import pytest
import torch

import cats
import cats.accumulate
from tests.optim.common import TASKS, Quadratics, same, take_step


def micro_batches(problem, how):
    """The losses of several backward() calls, which add up to problem.losses()."""
    if how == "halves":
        return [{t: problem.loss(n) * w for n, t in enumerate(TASKS)} for w in (0.25, 0.75)]
    return [{"gl": problem.loss(2)}, {"az": problem.loss(0), "be": lambda: problem.loss(1)}]


@pytest.mark.parametrize("how", ["halves", "tasks apart"])
@pytest.mark.parametrize("simplex", ["softmax", "lagrangian"])
def test_accumulation_is_the_one_large_batch(how, simplex):
    whole, parts = (Quadratics() for _ in range(2))
    options = {"inner_steps": 2, "simplex": simplex, "loss_term": True, "alpha_lr": 0.3, "multiplier_lr": 0.1}
    one = cats.CATS(torch.optim.Adam(whole.params, lr=0.05), TASKS, **options)
    many = cats.CATS(torch.optim.Adam(parts.params, lr=0.05), TASKS, **options)
    for _ in range(8):
        take_step(one, whole.losses())
        many.zero_grad()
        for losses in micro_batches(parts, how):
            many.backward(losses)
        many.step()
        # float64: only the order of the sums differs
        torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-11, atol=1e-12)
        for name in ("losses", "dots", "sqnorms"):
            assert many.statistics[name] == pytest.approx(one.statistics[name], rel=1e-10)
        assert many.alpha == pytest.approx(one.alpha, rel=1e-11)


def test_accumulation_across_halves():
    whole, parts = (Quadratics() for _ in range(2))
    one, many = (
        cats.CATS(torch.optim.SGD(p.params, lr=0.05), TASKS, inner_steps=1, cross_batch=True, multiplier_lr=0.1)
        for p in (whole, parts)
    )
    for _ in range(3):
        take_step(one, list(zip(whole.losses(shift=0.3), whole.losses(shift=-0.3), strict=True)))
        many.zero_grad()
        for w in (0.5, 0.5):
            pairs = zip(parts.losses(shift=0.3), parts.losses(shift=-0.3), strict=True)
            many.backward([(w * a, w * b) for a, b in pairs])
        many.step()
    torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-12, atol=1e-13)
    assert many.alpha == pytest.approx(one.alpha, rel=1e-12)


def test_backward_adds_to_gradients_of_other_code():
    for inner_steps in (1, 2):
        problem, alone = Quadratics(), Quadratics()
        optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=inner_steps)
        reference = cats.CATS(torch.optim.SGD(alone.params, lr=0.1), TASKS, inner_steps=inner_steps)
        reference.backward(alone.losses())
        problem.weight.square().sum().backward()  # a regulariser that the user adds
        optimizer.backward({"az": problem.loss(0)})
        (3 * problem.weight).sum().backward()  # another one, between two calls
        optimizer.backward({"be": problem.loss(1), "gl": problem.loss(2)})
        torch.testing.assert_close(problem.weight.grad, alone.weight.grad + 2 * problem.weight.detach() + 3)
        torch.testing.assert_close(problem.bias.grad, alone.bias.grad)
        optimizer.step()
        reference.step()
        assert optimizer.statistics["dots"] == pytest.approx(
            reference.statistics["dots"]
        )  # the regularisers do not enter v


@pytest.mark.parametrize("clear", ["optimizer", "by hand", "to zero"])
def test_clearing_gradients_discards_what_was_gathered(clear):
    problem, fresh = Quadratics(), Quadratics()
    optimizer, reference = (
        cats.CATS(torch.optim.SGD(p.params, lr=0.1), TASKS, inner_steps=1) for p in (problem, fresh)
    )
    optimizer.backward(problem.losses(shift=5.0))
    if clear == "by hand":
        for p in problem.params:
            p.grad = None
    else:
        optimizer.zero_grad(set_to_none=clear == "optimizer")
    for o, p in ((optimizer, problem), (reference, fresh)):
        o.backward(p.losses())
        o.step()
    assert torch.equal(problem.theta, fresh.theta)
    assert same(optimizer.statistics, reference.statistics)


@pytest.mark.parametrize("engine", ["per_task", "two_pass"])
def test_gradients_that_are_dropped_between_two_calls_stay_dropped(engine):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    x = torch.randn(8, 4, dtype=torch.float64)

    def losses():
        y = model(x)
        return [y[:, 0].square().mean(), y[:, 1].abs().mean(), (y[:, 2] - 1).square().mean()]

    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), 3, inner_steps=1, engine=engine)
    optimizer.zero_grad()
    optimizer.backward(losses())
    expected = model[0].weight.grad.clone()
    optimizer.zero_grad()
    optimizer.backward(losses(), last=False)
    model[0].zero_grad()  # of a part of the parameters
    optimizer.backward(losses(), last=True)
    torch.testing.assert_close(model[0].weight.grad, expected)
    assert not torch.allclose(model[2].weight.grad, torch.zeros((), dtype=torch.float64))
