"""What torch expects of an optimizer: schedulers, hooks, state_dict, copies."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch

import cats
import cats.accumulate
from tests.optim.common import BASES, TASKS, Quadratics, options_of, same, take_step


def test_schedulers():
    def schedule(optimizer):
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=3)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[3])

    plain, ours = Quadratics(k=1), Quadratics(k=1)
    reference = torch.optim.Adam(plain.params, lr=0.1)
    optimizer = cats.CATS(torch.optim.Adam(ours.params, lr=0.1), 1, inner_steps=2)
    assert isinstance(optimizer, torch.optim.Optimizer)
    a = schedule(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The epoch parameter")  # SequentialLR of torch 2.6 uses it
        b = schedule(optimizer)
        for _ in range(8):
            reference.zero_grad()
            plain.loss(0).backward()
            reference.step()
            take_step(optimizer, ours.losses())
            b.step()
            a.step()
            assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
            assert torch.equal(plain.theta, ours.theta)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        for metric in (1.0, 2.0):
            plateau.step(metric)
    assert optimizer.param_groups[0]["lr"] < reference.param_groups[0]["lr"]


def test_hooks():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS)
    calls = []
    optimizer.register_step_pre_hook(lambda o, *_: calls.append(("pre", o)))
    optimizer.register_step_post_hook(lambda o, *_: calls.append(("post", o)))
    optimizer.base.register_step_pre_hook(lambda o, *_: calls.append(("base", o)))
    take_step(optimizer, problem.losses())
    assert calls == [("pre", optimizer), ("base", optimizer.base), ("post", optimizer)]
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, s: calls.append(s.pop("note")))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[3:] == ["save", 1, "loaded"]


@pytest.mark.parametrize("simplex", ["softmax", "lagrangian"])
@pytest.mark.parametrize("base", BASES)
def test_state_dict_continues_bitwise(base, simplex):
    problem, resumed = Quadratics(dtype=torch.float32), Quadratics(dtype=torch.float32)
    optimizer = cats.CATS(BASES[base](problem.params), TASKS, **options_of(simplex))
    for _ in range(4):  # inner_steps is 3: the last step is the first of a new round
        take_step(optimizer, problem.losses())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    with torch.no_grad():
        for p, q in zip(resumed.params, problem.params, strict=True):
            p.copy_(q)
    file.seek(0)
    other = cats.CATS(BASES[base](resumed.params), TASKS, **options_of(simplex))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.param_groups is other.base.param_groups and other.state is other.base.state
    assert same(other.statistics, optimizer.statistics)
    for _ in range(5):
        assert optimizer.needs_task_gradients == other.needs_task_gradients
        take_step(optimizer, problem.losses())
        take_step(other, resumed.losses())
        assert torch.equal(problem.theta, resumed.theta)
        assert same(optimizer.state_dict(), other.state_dict())


def test_load_state_dict_refuses_what_does_not_fit():
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS)
    with pytest.raises(ValueError, match=r"multitask.*\.base"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    other = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), ["az", "gl", "be"])
    with pytest.raises(ValueError, match="is for tasks"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("what", ["weighting", "base"])
def test_a_state_that_does_not_fit_changes_nothing(what):
    problem = Quadratics()
    optimizer = cats.CATS(torch.optim.SGD(problem.params, lr=0.1), TASKS, inner_steps=1)
    take_step(optimizer, problem.losses())
    before = copy.deepcopy(optimizer.state_dict())
    if what == "weighting":
        other = cats.CATS(torch.optim.SGD(problem.params, lr=0.2), TASKS, simplex="lagrangian")
    else:  # a different number of parameter groups
        groups = [{"params": [p]} for p in problem.params]
        other = cats.CATS(torch.optim.SGD(groups, lr=0.2), TASKS)
    with pytest.raises(ValueError, match="simplex" if what == "weighting" else "parameter groups"):
        optimizer.load_state_dict(other.state_dict())
    assert same(optimizer.state_dict(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_continue_bitwise(copied):
    problem = Quadratics()
    optimizer = cats.CATS(
        torch.optim.Adam(problem.params, lr=0.1), TASKS, shared=[problem.weight], **options_of("softmax")
    )
    torch.optim.lr_scheduler.StepLR(optimizer, 10)  # wraps step() in something that cannot be pickled
    optimizer.register_step_post_hook(lambda *_: None)
    for _ in range(2):
        take_step(optimizer, problem.losses())
    optimizer.backward(problem.losses())  # torch does not copy p.grad, so the copy has gathered nothing
    twin, other = copied((problem, optimizer))
    assert other.param_groups[0]["params"][0] is twin.weight is not problem.weight
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        other.step()
    for _ in range(4):
        take_step(optimizer, problem.losses())
        take_step(other, twin.losses())
    assert torch.equal(problem.theta, twin.theta)
    assert same(optimizer.state_dict(), other.state_dict())


def test_repr_names_the_tasks_and_the_base():
    optimizer = cats.CATS(torch.optim.SGD(Quadratics().params, lr=0.1), TASKS)
    assert "be" in repr(optimizer) and "SGD" in repr(optimizer)


def test_names_of_a_kind_of_str_come_back_from_a_file(tmp_path):
    optimizer = cats.CATS(torch.optim.SGD(Quadratics(k=2).params, lr=0.1), np.unique(["be", "az"]))
    assert [type(task) for task in optimizer.tasks] == [str, str]
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_a_prior_of_an_earlier_version_has_the_sum_1():
    optimizer = cats.CATS(torch.optim.SGD(Quadratics().params, lr=0.1), TASKS, prior=[2, 3, 5], reduction="mean")
    before, state = optimizer.alpha, optimizer.state_dict()
    entry = state["multitask"]["weighting"]
    del entry["reduction"]
    entry["prior"] = entry["prior"] / 3
    optimizer.load_state_dict(state)
    assert optimizer.alpha == pytest.approx(before, rel=1e-12)
    assert sum(optimizer.prior.values()) == pytest.approx(1, rel=1e-12)
