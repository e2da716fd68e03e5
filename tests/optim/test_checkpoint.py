"""torch.distributed.checkpoint, and state_dicts that do not fit."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import distributed as dist
from torch import nn

import cats
from tests.optim.common import TASKS, RunningNorm, same, take_step


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.x = torch.linspace(-1, 2, 12).reshape(4, 3)

    @property
    def losses(self):
        y = self.layer(self.x)
        return {task: (y[:, n] - n).square().mean() for n, task in enumerate(TASKS)}


BASES = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
}


def build(net, base="AdamW", rule="cats"):
    groups = [{"params": [net.layer.bias]}, {"params": [net.layer.weight], "lr": 0.05}]
    weighting = RunningNorm() if rule == "gram" else cats.weighting.CATS(inner_steps=2, alpha_lr=0.5)
    return cats.MultiTask(BASES[base](groups), TASKS, weighting)


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize(
    ("base", "rule"), [("AdamW", "cats"), ("AdamW", "gram"), ("SGD", "cats"), ("momentum", "cats")]
)
@pytest.mark.parametrize(("before", "into"), [(0, 0), (3, 0), (3, 2)])
def test_distributed_checkpoint_continues_bitwise(before, into, base, rule, flat, tmp_path):
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    net, other = Net(), Net()
    optimizer, resumed = build(net, base, rule), build(other, base, rule)
    for _ in range(before):
        take_step(optimizer, net.losses)
    optimizer.zero_grad()
    alone = copy.deepcopy((net, optimizer))  # is never saved
    dcp.save({"optimizer": get_optimizer_state_dict(net, optimizer, options=options)}, checkpoint_id=tmp_path)
    for _ in range(into):
        take_step(resumed, other.losses)
    resumed.zero_grad()
    other.load_state_dict(net.state_dict())
    read = {"optimizer": get_optimizer_state_dict(other, resumed, options=options)}
    dcp.load(read, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, read["optimizer"], options=options)
    assert same(resumed.alpha, optimizer.alpha) and same(resumed.statistics, optimizer.statistics)
    for _ in range(4):
        for model, each in ((net, optimizer), (other, resumed), alone):
            take_step(each, model.losses)
        assert torch.equal(other.layer.weight, net.layer.weight)
        assert torch.equal(alone[0].layer.weight, net.layer.weight)
    for each in (resumed, alone[1]):
        assert same(each.state_dict()["multitask"], optimizer.state_dict()["multitask"])


def test_only_a_step_that_creates_state_needs_no_backward():
    net = Net()
    optimizer = build(net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        optimizer.step()  # the learning rates are not 0
    assert not optimizer.state and optimizer.statistics["step"] == 0


def test_the_groups_of_the_base_have_one_key_more():
    optimizer = build(Net())
    plain = optimizer.base.state_dict()
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[0]["multitask"] is None and "multitask" not in optimizer.param_groups[1]
    with pytest.raises(ValueError, match=r"multitask.*\.base"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    optimizer.base.load_state_dict(plain)  # of an optimizer that was never wrapped
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["multitask"] is None


def test_a_plain_optimizer_that_has_loaded_the_second_copy_loses_it():
    """Otherwise repr() and everything else that prints groups would show it."""
    params = list(Net().parameters())
    plain = torch.optim.SGD(params, lr=0.1)
    plain.load_state_dict(cats.CATS(torch.optim.SGD(params, lr=0.1), 2).state_dict())
    assert isinstance(plain.param_groups[0]["multitask"], bytes)
    optimizer = cats.CATS(plain, 2)
    assert plain.param_groups[0]["multitask"] is None and len(repr(optimizer)) < 1000


def changed(entry, path, value):
    """A copy of the state_dict's entry with another value at a path, or without it if the value is Ellipsis."""
    entry = copy.deepcopy(entry)
    place = entry
    for name in path[:-1]:
        place = place[name]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return entry


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["weights"], torch.ones(2, dtype=torch.float64), r"3 floating-point numbers.*float64 of shape \(2,\)"),
        (["weights"], torch.ones(3, dtype=torch.int64), "3 floating-point numbers"),
        (["weights"], [1.0, 1.0, 1.0], "3 floating-point numbers"),
        (["weights"], torch.tensor([1.0, 1.0, math.inf]), r"must be finite, got \[1.0, 1.0, inf\]"),
        (["weights"], ..., "has no 'weights'"),
        (["tasks"], 3, "is for tasks 3"),
        (["tasks"], TASKS[:2], "is for tasks"),
        (["counts"], ..., "has no 'counts'"),
        (["counts", "step"], ..., "'step'"),
        (["counts", "step"], 1.5, "'step'.*1.5"),
        (["counts", "skipped"], -1, "'skipped'.*-1"),
        (["last", "losses"], [1.0], "'losses' in 'last' must be a number for each task"),
        (["last", "losses"], {"az": "high"}, "'losses'"),
        (["last", "sqnorm"], {}, "'sqnorm' in 'last' must be a number"),
        (["weighting"], ..., "has no 'weighting'"),
        (["weighting"], {}, "simplex"),
        (["weighting"], 7, "CATS"),
        (["weighting", "a"], torch.zeros(2, dtype=torch.float64), "'a'"),
        (["weighting", "a"], torch.full((3,), math.nan, dtype=torch.float64), "it gives"),
        (["weighting", "a"], "zero", "'a'"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_whole(path, value, match):
    net = Net()
    optimizer = build(net)
    for _ in range(2):
        take_step(optimizer, net.losses)
    bad = optimizer.state_dict()
    bad["multitask"] = changed(bad["multitask"], path, value)
    take_step(optimizer, net.losses)
    check_refused(optimizer, bad, match)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["weighting", "", "mean"], ..., "not one of the rule RunningNorm"),
        (["weighting", "", "mean"], 1.5, "does not fit the weighting Gramian"),
        (["weighting"], {"simplex": "softmax"}, "not one of the rule RunningNorm"),
    ],
)
def test_a_state_of_another_rule_is_refused_whole(path, value, match):
    net = Net()
    optimizer = build(net, rule="gram")
    take_step(optimizer, net.losses)
    bad = optimizer.state_dict()
    bad["multitask"] = changed(bad["multitask"], path, value)
    take_step(optimizer, net.losses)
    check_refused(optimizer, bad, match)


def test_a_weighting_without_state_refuses_that_of_another():
    net = Net()
    optimizer = cats.MultiTask(torch.optim.SGD(net.parameters(), lr=0.1), TASKS, cats.weighting.Static())
    bad = optimizer.state_dict()
    bad["multitask"]["weighting"] = build(Net()).state_dict()["multitask"]["weighting"]
    check_refused(optimizer, bad, "Static has no state")


@pytest.mark.parametrize("damage", [b"", b"not a file of torch", None])
def test_a_damaged_second_copy_is_refused(damage):
    optimizer = build(Net())
    bad = optimizer.state_dict()
    del bad["multitask"]
    packed = bad["param_groups"][0]["multitask"]
    bad["param_groups"][0]["multitask"] = packed[: len(packed) // 2] if damage is None else damage
    check_refused(optimizer, bad, "of the first parameter group is damaged")


def test_a_base_that_fails_after_it_has_loaded_is_restored():
    class Fragile(torch.optim.AdamW):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            raise KeyError("amsgrad")

    net = Net()
    optimizer = cats.CATS(Fragile(net.parameters(), lr=0.1), TASKS, inner_steps=1)
    take_step(optimizer, net.losses)
    bad = copy.deepcopy(optimizer.state_dict())
    take_step(optimizer, net.losses)
    check_refused(optimizer, bad, "amsgrad", KeyError)


def check_refused(optimizer, bad, match, error=ValueError):
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=match) as caught:
        optimizer.load_state_dict(bad)
    assert "\n" not in str(caught.value)
    assert same(optimizer.state_dict(), before)


def test_weights_stay_on_the_cpu_wherever_a_checkpoint_is_loaded(monkeypatch):
    net, other = Net(), Net()
    optimizer, resumed = build(net, rule="gram"), build(other, rule="gram")
    take_step(optimizer, net.losses)
    state = optimizer.state_dict()
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self) or self.to("cpu"))
    resumed.load_state_dict(state)  # torch.load(map_location="cuda") would have put its tensors on the GPU
    assert any(t is state["multitask"]["weights"] for t in moved)
    assert any(t is state["multitask"]["weighting"][""]["mean"] for t in moved)


def test_a_state_dict_without_the_second_copy_is_read():
    net, other = Net(), Net()
    optimizer, resumed = build(net), build(other)
    for _ in range(3):
        take_step(optimizer, net.losses)
    old = optimizer.state_dict()
    del old["param_groups"][0]["multitask"]  # as it was written before torch.distributed.checkpoint worked
    file = io.BytesIO()
    torch.save(old, file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(resumed.state_dict(), optimizer.state_dict())
