"""Weightings that need the Gram matrix of the step."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import cats
import cats.accumulate
from tests.optim.common import TASKS, Heads, Quadratics, RunningNorm, same, take_step


def test_gram_weighting_step_by_step():
    problem = Quadratics()
    rule = RunningNorm()
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, rule)
    theta, mean = problem.start.copy(), None
    for _ in range(5):
        assert optimizer.needs_task_gradients
        rows = np.array([problem.numpy_loss(theta, n)[1] for n in range(3)])
        gram = rows @ rows.T
        mean = np.diag(gram) if mean is None else (mean + np.diag(gram)) / 2
        w = 1 / mean + 0.01 * np.tanh(gram.sum(1))
        theta = theta - 0.05 * w @ rows
        take_step(optimizer, problem.losses())
        np.testing.assert_allclose(problem.theta, theta, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(list(optimizer.alpha.values()), w, rtol=1e-11)
        np.testing.assert_allclose(list(optimizer.statistics["dots"].values()), gram @ w, rtol=1e-11)
        np.testing.assert_allclose(list(optimizer.statistics["sqnorms"].values()), np.diag(gram), rtol=1e-11)
        assert optimizer.statistics["sqnorm"] == pytest.approx(w @ gram @ w)


def test_gram_weighting_accumulates_and_resumes():
    whole, parts, resumed = (Quadratics() for _ in range(3))
    one, many = (cats.MultiTask(torch.optim.SGD(p.params, lr=0.05), TASKS, RunningNorm()) for p in (whole, parts))
    for _ in range(4):
        take_step(one, whole.losses())
        for shift in (1.0, 0.0):  # the first is discarded: it must not change the rule's state
            many.zero_grad()
            for w in (0.25, 0.75):
                many.backward([w * loss for loss in parts.losses(shift=shift)])
        many.step()
        torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-12, atol=1e-13)
    other = cats.MultiTask(torch.optim.SGD(resumed.params, lr=0.05), TASKS, RunningNorm())
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(other.alpha, one.alpha)
    with torch.no_grad():
        for p, q in zip(resumed.params, whole.params, strict=True):
            p.copy_(q)
    take_step(one, whole.losses())
    take_step(other, resumed.losses())
    assert torch.equal(whole.theta, resumed.theta)


def test_gram_weighting_of_shared_parameters_with_heads_and_scaler():
    model = Heads().float()
    x = torch.randn(6, 5)
    seen = []
    optimizer = cats.MultiTask(
        torch.optim.SGD(model.parameters(), lr=0.1),
        TASKS,
        lambda gram: seen.append(gram) or torch.tensor([1.0, 2.0, 3.0]),
        shared=model.trunk.parameters(),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trunk = list(model.trunk.parameters())
    rows = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in model.losses(x).values()]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    head = model.heads[1].bias.detach().clone()
    (slope,) = torch.autograd.grad(model.losses(x)["be"], model.heads[1].bias)
    optimizer.backward(model.losses(x), scaler=scaler)
    scaler.step(optimizer)
    torch.testing.assert_close(seen[0], rows @ rows.T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model.heads[1].bias.detach(), head - 0.1 * 2 * slope)


class PerGroup(cats.weighting.Weighting):
    """w_n of each group: 1 + log of the norm of the task's gradient there, twice as large for the last task of all."""

    needs_gram = True

    def __init__(self, groups):
        self.groups = groups

    def weights_from_grams(self, grams, losses, present):
        self.seen = grams
        weights = 1 + torch.log1p(grams.diagonal(dim1=1, dim2=2).sqrt())
        return weights * torch.tensor([1.0, 1.0, 2.0]).double()[list(present)]


def test_groups_of_parameters_have_their_own_gram_matrix_and_weights():
    problem = Quadratics()
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, PerGroup("parameter"))
    theta = problem.start.copy()
    for present in [0, 1, 2], [0, 2], [0, 1, 2]:
        rows = np.array([problem.numpy_loss(theta, n)[1] for n in present])
        parts = rows[:, :4], rows[:, 4:]  # of the two parameters
        factor = np.array([1, 1, 2.0])[present]
        w = np.array([factor * (1 + np.log1p(np.linalg.norm(part, axis=1))) for part in parts])
        combined = np.concatenate([v @ part for v, part in zip(w, parts, strict=True)])
        theta = theta - 0.05 * combined
        optimizer.zero_grad()
        for share in (0.25, 0.75):  # two calls
            losses = problem.losses("callables")
            optimizer.backward({TASKS[n]: lambda n=n, f=losses[n], share=share: share * f() for n in present})
        optimizer.step()
        np.testing.assert_allclose(problem.theta, theta, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose([optimizer.alpha[TASKS[n]] for n in present], w.mean(0), rtol=1e-11)
        seen = optimizer.statistics
        np.testing.assert_allclose(list(seen["dots"].values()), rows @ combined, rtol=1e-10)
        np.testing.assert_allclose(list(seen["sqnorms"].values()), (rows**2).sum(1), rtol=1e-11)
        assert seen["sqnorm"] == pytest.approx(combined @ combined, rel=1e-11)


def test_names_and_lists_make_groups_too():
    names = ["trunk", "trunk", "heads.0", "heads.0", "heads.1", "heads.1", "heads.2", "heads.2"]
    for groups in ("layer", lambda name, p: name.rpartition(".")[0], names):
        model = Heads()
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = cats.MultiTask(base, TASKS, PerGroup(groups), model=model)
        optimizer.backward(model.losses(torch.randn(6, 5).double()))
        grams = optimizer.weighting.seen
        assert grams.shape == (4, 3, 3)
        assert (grams[1:] != 0).nonzero().tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]  # a head has one task


def test_frozen_parameters_do_not_move_the_other_groups():
    model = Heads()
    optimizer = cats.MultiTask(torch.optim.SGD(model.named_parameters(), lr=0.1), TASKS, PerGroup("layer"))
    take_step(optimizer, model.losses(torch.ones(6, 5).double()))
    model.trunk.requires_grad_(False)
    model.heads[2].requires_grad_(False)
    optimizer.zero_grad()
    optimizer.backward({t: loss for t, loss in model.losses(torch.ones(6, 5).double()).items() if t != "gl"})
    assert optimizer.weighting.seen.diagonal(dim1=1, dim2=2).count_nonzero(dim=1).tolist() == [0, 1, 1, 0]


def test_groups_that_do_not_fit():
    model = Heads()

    def run(groups, **more):
        cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.1), TASKS, PerGroup(groups), **more)

    with pytest.raises(ValueError, match=r"'parameter', 'layer'.*got 'layers'"):
        run("layers")
    with pytest.raises(TypeError, match="got int"):
        run(3)
    with pytest.raises(ValueError, match="3 entries for 8 parameters"):
        run([0, 1, 2])
    with pytest.raises(ValueError, match="need their names: pass model="):
        run("layer")
    with pytest.raises(ValueError, match="exclude each other"):
        run("layer", shared=model.trunk.parameters(), model=model)
    wrong = PerGroup("parameter")
    wrong.weights_from_grams = lambda grams, losses, present: grams[:3, 0]
    optimizer = cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.1), TASKS, wrong)
    with pytest.raises(ValueError, match="3 groups of parameters, not 8"):
        optimizer.backward(model.losses(torch.ones(6, 5).double()))


def test_weights_of_the_wrong_length():
    problem = Quadratics()
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.1), TASKS, lambda gram: torch.ones(2))
    with pytest.raises(ValueError, match=r"\(2,\) for 3 tasks"):
        optimizer.backward(problem.losses())


@pytest.mark.parametrize("name", ["MeanWeighting", "MGDAWeighting", "PCGradWeighting", "AlignedMTLWeighting"])
def test_torchjd_weightings(name):
    aggregation = pytest.importorskip("torchjd.aggregation")
    problem = Quadratics()
    rule = getattr(aggregation, name)()
    torch.manual_seed(0)
    optimizer = cats.MultiTask(torch.optim.SGD(problem.params, lr=0.05), TASKS, rule)
    rows = torch.tensor(np.array([problem.numpy_loss(problem.start, n)[1] for n in range(3)]))
    take_step(optimizer, problem.losses())
    torch.manual_seed(0)
    expected = getattr(aggregation, name)()(rows @ rows.T)
    torch.testing.assert_close(torch.tensor(list(optimizer.alpha.values())).double(), expected.double())
    moved = torch.tensor(problem.start) - 0.05 * expected.double() @ rows
    torch.testing.assert_close(problem.theta, moved, rtol=1e-10, atol=1e-11)
    optimizer.load_state_dict(optimizer.state_dict())
