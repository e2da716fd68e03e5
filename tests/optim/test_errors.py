"""Wrong arguments and losses give clear errors."""

from __future__ import annotations

import pytest
import torch

import cats
import cats.accumulate
from tests.optim.common import TASKS, Quadratics, take_step


def sgd():
    return torch.optim.SGD(Quadratics().params, lr=0.1)


class GramAcrossHalves(cats.weighting.Weighting):
    needs_gram = cross_batch = True


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: cats.CATS(torch.optim.SGD, TASKS), TypeError, "Optimizer instance"),
        (lambda: cats.CATS([torch.zeros(2)], TASKS), TypeError, "Optimizer instance, got list"),
        (lambda: cats.CATS(cats.CATS(sgd(), 2), 2), TypeError, "already"),
        (lambda: cats.CATS(torch.optim.LBFGS(Quadratics().params), 2), TypeError, "LBFGS.*closure"),
        (lambda: cats.CATS(sgd(), ["az", "be", "az"]), ValueError, "'az' is named twice"),
        (lambda: cats.CATS(sgd(), []), ValueError, "at least one task"),
        (lambda: cats.CATS(sgd(), 0), TypeError, "positive number or names"),
        (lambda: cats.CATS(sgd(), "az"), TypeError, "names, got 'az'"),
        (lambda: cats.CATS(sgd(), {"az", "be"}), TypeError, r"tasks is a set, .* order .* sorted\(tasks\)"),
        (lambda: cats.CATS(sgd(), frozenset(TASKS)), TypeError, "tasks is a frozenset"),
        (lambda: cats.CATS(sgd(), [1.5]), TypeError, "name must be"),
        (lambda: cats.CATS(sgd(), 2, shared=[torch.zeros(3)]), ValueError, r"shared\[0\].*\(3,\).*not a parameter"),
        (lambda: cats.CATS(sgd(), 2, shared=[]), ValueError, "shared is empty"),
        (lambda: cats.CATS(sgd(), 2, shared=torch.zeros(3)), TypeError, "iterable of parameters"),
        (lambda: cats.CATS(sgd(), 2, engine="jvp"), ValueError, "'jvp' does not exist; available: 'auto'"),
        (lambda: cats.CATS(sgd(), 2, backend="abacus"), ValueError, "no backend 'abacus'"),
        (lambda: cats.MultiTask(sgd(), 2, GramAcrossHalves()), ValueError, "cannot be cross_batch"),
        (lambda: cats.CATS(sgd(), 2, max_nonfinite=0), ValueError, "max_nonfinite"),
        (lambda: cats.CATS(sgd(), 2, simplex="box"), ValueError, "simplex"),
        (lambda: cats.MultiTask(sgd(), 2, cats.weighting.Static([1])), ValueError, "1 weights for 2 tasks"),
        (lambda: cats.MultiTask(sgd(), 2, cats.weighting.Static({0: 1})), ValueError, "Static: no number for task 1"),
        (lambda: cats.MultiTask(sgd(), 2, cats.weighting.Static({0: 1, 2: 1})), ValueError, "no number for task 1"),
        (
            lambda: cats.CATS(sgd(), TASKS, prior={"az": 1}),
            ValueError,
            "prior: no number for task 'be', 'gl'; give each",
        ),
        (lambda: cats.MultiTask(sgd(), 2, [0.5, 0.5]), TypeError, "callable"),
    ],
)
def test_construction_errors(build, error, match):
    with pytest.raises(error, match=match) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_the_tasks_of_rows_are_names_or_a_tensor_of_indices():
    losses = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"unknown task 0; the tasks are .*; pass indices as a tensor"):
        cats.CATS(sgd(), TASKS).backward(losses, tasks=[0, 1])
    with pytest.raises(ValueError, match=r'got \(\), .*; a loss with reduction="none" has one for each example'):
        cats.CATS(sgd(), TASKS).backward(losses.sum(), tasks=torch.tensor([0, 1]))


def test_a_backend_that_cannot_work_here_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(cats.ops, "backends", lambda: {"reference": None, "native": "not compiled"})
    with pytest.raises(RuntimeError, match="'native' cannot be used here: not compiled"):
        cats.CATS(sgd(), 2, backend="native")
    cats.CATS(sgd(), 2, backend="reference")


def test_the_keys_of_a_dict_have_an_order():
    assert cats.CATS(sgd(), dict.fromkeys(["cs", "az"]).keys()).tasks == ("cs", "az")


def leaf():
    return torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("losses", "error", "match"),
    [
        ({"xx": leaf()}, ValueError, r"unknown task 'xx'; the tasks are \['az', 'be', 'gl'\]"),
        ([leaf(), leaf()], ValueError, "2 losses for 3 tasks"),
        ({}, ValueError, "at least one task"),
        (leaf(), TypeError, r"sequence of losses, got a tensor of shape \(\): pass the losses themselves, not their"),
        ({"be": 1.0}, TypeError, "task 'be'.*float"),
        ({"be": torch.ones(2, requires_grad=True)}, ValueError, r"task 'be'.*\(2,\)"),
        ({"be": torch.ones(())}, ValueError, "task 'be'.*require grad"),
        ({"be": lambda: None}, TypeError, "task 'be'.*NoneType"),
        ({"be": (leaf(), leaf())}, ValueError, "task 'be'.*single loss, got 2"),
    ],
)
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_loss_errors(losses, error, match, inner_steps):
    optimizer = cats.CATS(sgd(), TASKS, inner_steps=inner_steps)
    with pytest.raises(error, match=match) as caught:
        optimizer.backward(losses)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        optimizer.step()


def test_cross_batch_wants_pairs_where_it_needs_them():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=2, cross_batch=True)
    take_step(optimizer, problem.losses())
    with pytest.raises(ValueError, match=r"task 'az'.*pair of losses.*halves"):
        optimizer.backward(problem.losses())
    with pytest.raises(ValueError, match=r"task 'az'.*single loss or a pair, got 3"):
        optimizer.backward([[loss] * 3 for loss in problem.losses()])


def test_no_parameters():
    optimizer = cats.CATS(torch.optim.SGD([{"params": []}], lr=0.1), TASKS)
    with pytest.raises(ValueError, match="no parameter of the optimizer requires grad"):
        optimizer.backward([leaf(), leaf(), leaf()])
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        optimizer.step()


def test_an_attribute_error_inside_a_property_keeps_its_message():
    class Own(cats.CATS):
        @property
        def progress(self):
            return self.alpha.progres

    with pytest.raises(AttributeError, match="'dict' object has no attribute 'progres'"):
        _ = Own(sgd(), TASKS).progress
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'progress'"):
        _ = cats.CATS(sgd(), TASKS).progress


def test_nothing_to_train():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=1, shared=[problem.bias])
    problem.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="no shared parameter requires grad"):
        optimizer.backward(problem.losses())
    problem.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the optimizer requires grad"):
        optimizer.backward(problem.losses())
