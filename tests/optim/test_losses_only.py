"""Weightings that need the losses of a step: known after it, before its backward pass, or once more after it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import cats
import cats.accumulate
from cats.weighting import Weighting
from tests.optim.common import TASKS, Quadratics, take_step


class Inverse(Weighting):
    """w_n = 1 / (the loss at the last update), and all that it was shown."""

    losses_only = True

    def __init__(self, period=1):
        self.period, self._w, self._seen = period, torch.ones(3, dtype=torch.float64), []

    def weights(self):
        return self._w

    def update(self, losses, dots, sqnorms, present):
        assert dots.isnan().all() and sqnorms.isnan().all() and dots.shape == sqnorms.shape == losses.shape
        self._seen.append((losses.tolist(), list(present)))
        self._w = self._w.clone()
        self._w[list(present)] = 1 / losses

    def state_dict(self):
        return {"w": self._w.clone()}

    def load_state_dict(self, state):
        self._w = state["w"].clone()


class Follows(Weighting):
    """w_n = s / L_n with the losses of the step itself; s counts the changes of the losses in the steps."""

    needs_losses = losses_only = losses_again = True

    def __init__(self):
        self._s, self._seen = 1.0, []

    def weights_from_losses(self, losses, present):
        assert losses.dtype == torch.float64 and losses.isfinite().all()
        return self._s / losses

    def update_after(self, before, after, present):
        self._seen.append((before.tolist(), after.tolist(), list(present)))
        self._s += float((before - after).sum()) / 100

    def state_dict(self):
        return {"s": self._s}

    def load_state_dict(self, state):
        self._s = state["s"]


class Norms(Weighting):
    """w_n = 1 / ‖g_n‖ of the step before."""

    needs_sqnorms = True

    def __init__(self):
        self._w = torch.ones(3, dtype=torch.float64)

    def weights(self):
        return self._w

    def update(self, losses, dots, sqnorms, present):
        self._w = 1 / sqnorms.sqrt()

    def state_dict(self):
        return {"w": self._w.clone()}

    def load_state_dict(self, state):
        self._w = state["w"].clone()


@pytest.fixture
def no_task_gradients(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("one gradient per task was computed")

    monkeypatch.setattr(cats.accumulate, "task_gradients", refuse)


def sgd(problem, weighting, **more):
    return cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, weighting, **more)


def test_losses_only_never_forms_task_gradients(no_task_gradients):
    problem, weighting = Quadratics(), Inverse(period=2)
    optimizer = sgd(problem, weighting)
    theta, w = problem.start.copy(), np.ones(3)
    for step in range(5):
        assert not optimizer.needs_task_gradients
        found = [problem.numpy_loss(theta, n) for n in range(3)]
        here = [0, 2] if step == 1 else [0, 1, 2]
        theta = theta - 0.05 * sum(w[n] * found[n][1] for n in here)
        losses = problem.losses()
        take_step(optimizer, {TASKS[n]: losses[n] for n in here})
        if step % 2:
            w[here] = [1 / found[n][0] for n in here]
        np.testing.assert_allclose(problem.theta, theta, rtol=1e-12)
        np.testing.assert_allclose(list(optimizer.alpha.values()), w, rtol=1e-12)
    assert [present for _, present in weighting._seen] == [[0, 2], [0, 1, 2]]
    assert optimizer.statistics["task_gradient_steps"] == 0


def test_losses_only_accumulates_with_ids_and_a_scaler(no_task_gradients):
    torch.manual_seed(0)
    model, x, ids = nn.Embedding(6, 1, sparse=True), torch.tensor([0, 1, 2, 3, 5]), torch.tensor([0, 2, 0, 2, -1])
    weighting = Inverse()
    optimizer = cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.1), TASKS, weighting)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(2):
        values = (model(x).squeeze(1) - 3).square()
        want = [values[ids == n].mean().item() for n in (0, 2)]
        optimizer.zero_grad()
        for _ in range(2):
            optimizer.backward(0.5 * (model(x).squeeze(1) - 3).square(), tasks=ids, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        np.testing.assert_allclose(weighting._seen[-1][0], want, rtol=1e-6)  # float32
        assert weighting._seen[-1][1] == [0, 2]
    bad = [(p - math.inf).sum() for p in model.parameters()]
    optimizer.backward({"az": bad[0]}, scaler=scaler)
    scaler.step(optimizer)
    assert len(weighting._seen) == 2 and optimizer.statistics["skipped"] == 1


@pytest.mark.parametrize("form", ["callables", "one by one", "ids"])
def test_weights_that_follow_from_the_losses_of_the_step(form):
    problem, weighting = Quadratics(), Follows()
    optimizer = sgd(problem, weighting)
    theta, s = problem.start.copy(), 1.0
    for step in range(4):
        here = [1, 2] if step == 2 else [0, 1, 2]
        found = {n: problem.numpy_loss(theta, n) for n in here}
        theta = theta - 0.05 * sum(s / loss * slope for loss, slope in found.values())
        after = {n: problem.numpy_loss(theta, n)[0] for n in here}
        optimizer.zero_grad()
        if form == "ids":
            optimizer.backward(lambda here=here: torch.stack([problem.loss(n) for n in here]), tasks=torch.tensor(here))
        elif form == "callables":
            optimizer.backward({TASKS[n]: problem.losses(form)[n] for n in here})
        else:  # the loss of one task in each call: K gradients, which are combined with the weights of the last call
            for n in here:
                half = [lambda n=n: problem.loss(n) / 2] * 2
                for i in (0, 1):
                    optimizer.backward({TASKS[n]: half[i]}, last=(n, i) == (here[-1], 1))
        optimizer.step()
        np.testing.assert_allclose([optimizer.alpha[TASKS[n]] for n in here], [s / found[n][0] for n in here])
        s += sum(found[n][0] - after[n] for n in here) / 100
        np.testing.assert_allclose(problem.theta, theta, rtol=1e-11)
        np.testing.assert_allclose(weighting._seen[-1][:2], [[x[0] for x in found.values()], [*after.values()]])
        np.testing.assert_allclose(weighting._s, s, rtol=1e-11)
    assert len(weighting._seen) == 4 and weighting._seen[2][2] == [1, 2]


def test_losses_after_the_step_have_the_same_dropout_and_buffers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    weighting = Follows()
    optimizer = cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.0), TASKS, weighting, model=model)
    optimizer.backward({t: lambda: (model(x) - 1).square().mean() for t in TASKS})
    statistics = model[1].running_mean.clone()
    numbers = torch.get_rng_state()
    optimizer.step()  # with a learning rate of 0 the losses stay
    before, after, _ = weighting._seen[0]
    assert before == after and len(set(before)) == 3  # each task has its own mask
    assert torch.equal(model[1].running_mean, statistics) and torch.equal(torch.get_rng_state(), numbers)


def test_what_losses_again_refuses():
    problem = Quadratics()
    optimizer = sgd(problem, Follows())
    with pytest.raises(TypeError, match="Follows evaluates the losses once more after the step: pass callables"):
        optimizer.backward(problem.losses())
    optimizer.backward(problem.losses("callables"))
    kept = [p.grad.clone() for p in problem.params]
    with pytest.raises(RuntimeError, match="pass last=False to all but the last one"):
        optimizer.backward(problem.losses("callables"))
    assert all(torch.equal(p.grad, g) for p, g in zip(problem.params, kept, strict=True))
    optimizer.step()


def test_skipped_and_failed_steps_leave_the_weighting_as_it_was():
    problem, weighting = Quadratics(), Follows()
    optimizer = sgd(problem, weighting)
    bad = [lambda n=n: problem.loss(n) * (math.nan if n == 1 else 1) for n in range(3)]
    take_step(optimizer, bad)
    assert weighting._s == 1.0 and optimizer.statistics["skipped"] == 1
    count = []

    def fails():
        count.append(1)
        if len(count) > 1:
            raise OSError("gone")
        return problem.loss(0)

    optimizer.zero_grad()
    optimizer.backward({"az": fails})
    with pytest.raises(OSError, match="gone") as caught:
        optimizer.step()
    assert "had changed parameters" in caught.value.__notes__[0]
    assert weighting._s == 1.0 and optimizer.statistics["step"] == 0


def test_norms_of_the_gradients():
    problem = Quadratics()
    optimizer = sgd(problem, Norms())
    optimizer.backward(torch.stack(problem.losses()), tasks=torch.tensor([0, 1, 2]))  # "auto" would take one_pass
    optimizer.step()
    want = [1 / np.linalg.norm(problem.numpy_loss(problem.start, n)[1]) for n in range(3)]
    np.testing.assert_allclose(list(optimizer.alpha.values()), want, rtol=1e-12)
    assert optimizer.statistics["engine"] == "per_task"
    other = Quadratics()
    two = sgd(other, Norms(), engine="two_pass")
    take_step(two, other.losses())
    np.testing.assert_allclose(list(two.alpha.values()), want, rtol=1e-12)
    for last in (False, True):
        two.backward(other.losses(), last=last)
    weights = two.alpha
    with pytest.raises(RuntimeError, match="Norms needs the norms of the tasks' gradients, which engine two_pass"):
        two.step()
    assert two.alpha == weights


@pytest.mark.parametrize(
    ("needs", "engine", "message"),
    [
        ({"needs_losses"}, "auto", "with needs_losses must be losses_only"),
        ({"losses_again"}, "auto", "with losses_again must be losses_only"),
        ({"needs_sqnorms", "losses_only"}, "auto", "with needs_sqnorms cannot be losses_only"),
        ({"needs_sqnorms"}, "one_pass", "'one_pass' does not compute what a weighting with needs_sqnorms needs"),
        ({"cross_batch"}, "two_pass", "'two_pass' does not compute what a weighting with cross_batch needs"),
    ],
)
def test_needs_that_cannot_be_had(needs, engine, message):
    weighting = type("Some", (Weighting,), dict.fromkeys(needs, True))()
    with pytest.raises(ValueError, match=message):
        sgd(Quadratics(), weighting, engine=engine)
