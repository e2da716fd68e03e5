"""Shared and private, tied, frozen and untouched parameters; parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn

import cats
import cats.accumulate
from tests.optim.common import TASKS, Heads, Quadratics, take_step


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_heads_stay_out_of_the_statistics(inner_steps):
    model, twin = Heads(), Heads()
    x = torch.randn(6, 5, dtype=torch.float64)
    optimizer = cats.CATS(
        torch.optim.SGD(model.parameters(), lr=0.1),
        TASKS,
        inner_steps=inner_steps,
        simplex="lagrangian",
        shared=model.trunk.parameters(),
    )
    take_step(optimizer, model.losses(x))
    sum(twin.losses(x).values()).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad, rtol=1e-12, atol=1e-13)
    if inner_steps == 1:
        trunk = list(twin.trunk.parameters())
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk, retain_graph=True)])
            for loss in twin.losses(x).values()
        ]
        gram = torch.stack(rows) @ torch.stack(rows).T
        statistics = optimizer.statistics
        np.testing.assert_allclose(list(statistics["dots"].values()), gram.sum(1), rtol=1e-12)
        np.testing.assert_allclose(list(statistics["sqnorms"].values()), gram.diagonal(), rtol=1e-12)
        assert statistics["sqnorm"] == pytest.approx(gram.sum().item(), rel=1e-12)


def test_tied_frozen_and_untouched_parameters():
    torch.manual_seed(0)
    embedding, output = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    output.weight = embedding.weight
    frozen, nobodys, only_az = (nn.Parameter(torch.ones(4)) for _ in range(3))
    frozen.requires_grad_(False)
    params = [embedding.weight, frozen, nobodys, only_az]
    optimizer = cats.CATS(torch.optim.AdamW(params, lr=0.1, weight_decay=0.1), ["az", "be"], inner_steps=2)

    def losses():
        logits = output(embedding(torch.tensor([1, 2])) * frozen)
        return {
            "az": (logits * only_az.sum()).logsumexp(-1).mean(),
            "be": lambda: output(embedding(torch.tensor([3]))).square().mean(),
        }

    for _step in range(2):  # a step without per-task gradients, then one with them
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        optimizer.backward(losses())
        assert nobodys.grad is None and frozen.grad is None
        expected = torch.autograd.grad(sum(v() if callable(v) else v for v in losses().values()), embedding.weight)
        torch.testing.assert_close(embedding.weight.grad, expected[0])
        assert (only_az.grad is not None) and (only_az.grad != 0).all()
        optimizer.step()
        assert torch.equal(frozen, before[1]) and torch.equal(nobodys, before[2])  # no weight decay either
        assert not torch.equal(embedding.weight, before[0])
    frozen.requires_grad_(True)
    for _ in range(2):
        take_step(optimizer, losses())
    assert not torch.equal(frozen, torch.ones(4))


def test_parameter_groups_and_layout():
    problem = Quadratics()
    base = torch.optim.SGD([{"params": [problem.weight], "lr": 0.1}, {"params": [problem.bias]}], lr=0.01)
    optimizer = cats.CATS(base, TASKS, inner_steps=1)
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    start = problem.theta
    gradient = torch.tensor(sum(problem.numpy_loss(problem.start, n)[1] for n in range(3)))
    take_step(optimizer, problem.losses())
    torch.testing.assert_close(problem.theta, start - torch.tensor([0.1] * 4 + [0.01] * 3) * gradient)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    assert base.param_groups[2]["params"] == [late]
    take_step(optimizer, [loss + late.sum() for loss in problem.losses()])
    torch.testing.assert_close(late.detach(), torch.full((2,), -0.5, dtype=torch.float64))  # 3 tasks, and Σα = 1
    assert min(optimizer.statistics["sqnorms"].values()) > 2  # the new parameter is shared: its gradient is (1, 1)

    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    conv_optimizer = cats.CATS(torch.optim.AdamW(conv.parameters(), fused=True), 2, inner_steps=1)
    y = conv(torch.ones(1, 2, 4, 4))
    conv_optimizer.backward([y.sum(), y.square().sum()])
    assert conv.weight.grad.stride() == conv.weight.stride()


def complex_parameter():
    return nn.Parameter(torch.ones(2, dtype=torch.complex64))


def test_complex_parameters_are_refused_before_any_step():
    real = nn.Parameter(torch.ones(3))
    with pytest.raises(
        TypeError, match=r"parameter 1 of group 0 \(a tensor of shape \(2,\)\) is torch.complex64.*view"
    ):
        cats.CATS(torch.optim.Adam([real, complex_parameter()]), 2)
    optimizer = cats.CATS(torch.optim.Adam([real]), 2)
    with pytest.raises(TypeError, match="parameter 0 of group 1"):
        optimizer.add_param_group({"params": [complex_parameter()]})
    assert len(optimizer.param_groups) == 1
    frozen = complex_parameter().requires_grad_(False)
    optimizer.add_param_group({"params": [frozen]})  # it is not trained
    take_step(optimizer, [real.sum(), real.square().sum()])
    frozen.requires_grad_(True)
    with pytest.raises(TypeError, match="parameter 0 of group 1"):
        optimizer.backward([real.sum(), real.square().sum()])


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("how", ["FullyShardedDataParallel", "DTensor", "after the optimizer was made"])
def test_shards_that_are_not_of_fully_shard_are_refused_in_one_process_too(one_process, how):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    def replace(placements):
        mesh = init_device_mesh("cpu", (1,) * len(placements))
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, placements))

    model = nn.Linear(4, 2)
    expected = "parameter 0 of group 0 .* is a DTensor with placements .*shard with fully_shard alone"
    if how == "FullyShardedDataParallel":
        expected = "parameter 0 of group 0 .* is sharded by FullyShardedDataParallel.*use fully_shard"
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    elif how == "DTensor":
        replace([Shard(0), Shard(1)])  # tensor parallel in one dimension of the mesh
    else:
        optimizer = cats.CATS(torch.optim.SGD(model.parameters()), 2)
        replace([Replicate()])
        optimizer.param_groups[0]["params"] = list(model.parameters())  # as accelerate does
    with pytest.raises(RuntimeError, match=expected):
        if not how.startswith("after"):
            cats.CATS(torch.optim.SGD(model.parameters()), 2)
        optimizer.backward([model.bias.sum(), model.bias.square().sum()])


def words(sparse, base):
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 2, sparse=sparse)
    return embedding, base(list(embedding.parameters()), lr=0.1)


def losses_of(embedding, factor=1.0):
    rows = embedding(torch.tensor([1, 3]))
    return [factor * rows.square().sum(), (rows - 1).square().sum()]


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.SparseAdam])
@pytest.mark.parametrize("weighting", [lambda: cats.weighting.CATS(inner_steps=3), lambda: lambda gram: torch.ones(2)])
def test_sparse_gradients_are_refused_at_once_if_a_later_step_cannot_use_them(base, weighting):
    embedding, optimizer = words(True, base)
    optimizer = cats.MultiTask(optimizer, 2, weighting())
    with pytest.raises(TypeError, match=r"sparse gradient.*sparse=False in embeddings"):
        optimizer.backward(losses_of(embedding))
    assert embedding.weight.grad is None


def test_sparse_gradients_with_fixed_weights():
    embedding, optimizer = words(True, torch.optim.SparseAdam)
    twin, plain = words(True, torch.optim.SparseAdam)
    optimizer = cats.MultiTask(optimizer, 2, cats.weighting.Static())
    for _ in range(3):
        take_step(optimizer, losses_of(embedding))
        plain.zero_grad()
        sum(losses_of(twin)).backward()
        plain.step()
    torch.testing.assert_close(embedding.weight, twin.weight)
    optimizer = cats.MultiTask(optimizer.base, ["az", "be"], cats.weighting.Static(), max_nonfinite=2)
    take_step(optimizer, losses_of(embedding, float("nan")))
    with pytest.raises(cats.NonFiniteError, match="of task 'az'"):
        take_step(optimizer, losses_of(embedding, float("nan")))


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.SparseAdam])
def test_sparse_gradients_stay_sparse_at_the_last_attempt(base):
    """It computes one gradient per task. Tasks have rows of their own, and one that they share."""
    results = []
    for sparse in (True, False):
        embedding, plain = words(sparse, base if sparse else torch.optim.SGD)
        optimizer = cats.MultiTask(plain, 2, cats.weighting.Static([1.0, 3.0]), max_nonfinite=2)
        take_step(optimizer, losses_of(embedding, float("nan")))
        assert optimizer.needs_task_gradients
        optimizer.zero_grad()
        for shift in range(2):  # two backward() calls
            first, second = torch.tensor([1, 3]) + shift, torch.tensor([2, 3]) + shift
            optimizer.backward([embedding(first).square().sum(), (embedding(second) - 1).square().sum()])
        assert embedding.weight.grad.is_sparse == sparse
        results.append(embedding.weight.grad.to_dense() if sparse else embedding.weight.grad.clone())
        optimizer.step()
        assert optimizer.statistics["step"] == 1
    torch.testing.assert_close(*results)


def test_a_table_with_sparse_and_dense_gradients():
    """One task reads rows of a table, the other one all of it. Its gradient is dense then, as in torch."""
    embedding, base = words(True, torch.optim.SGD)
    losses = [lambda: embedding(torch.tensor([1, 3])).square().sum(), lambda: embedding.weight.exp().sum()]
    for order in (1, -1):
        optimizer = cats.MultiTask(base, 2, cats.weighting.Static([1.0, 3.0]), max_nonfinite=2)
        optimizer.zero_grad()
        optimizer.backward([factor * loss() for factor, loss in zip((float("nan"), 1.0), losses, strict=True)])
        optimizer.step()
        optimizer.zero_grad()
        losses[0]().backward()  # of other code
        for n in (0, 1)[::order]:  # two backward() calls
            optimizer.backward({n: losses[n]()})
        found, embedding.weight.grad = embedding.weight.grad, None
        (2 * losses[0]() + 3 * losses[1]()).backward()
        torch.testing.assert_close(found, embedding.weight.grad)


def test_sparse_gradients_in_two_backward_calls_of_famo():
    tables = []
    for sparse in (True, False):
        embedding, base = words(sparse, torch.optim.SparseAdam if sparse else torch.optim.Adam)
        optimizer = cats.MultiTask(base, 2, cats.weighting.FAMO())
        for _ in range(3):
            optimizer.zero_grad()
            for last in (False, True):
                ids = torch.arange(6).split(3)[last]
                losses = [lambda e=embedding, ids=ids, n=n: (e(ids) - n).square().sum() for n in range(2)]
                optimizer.backward(losses, last=last)
            assert embedding.weight.grad.is_sparse == sparse
            optimizer.step()
        tables.append(embedding.weight)
    torch.testing.assert_close(*tables)
