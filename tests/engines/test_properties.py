"""What holds for every architecture: random ones, several calls, unusual weights, and what happens around a step."""

from __future__ import annotations

import re
from functools import cache, partial

import pytest
import torch
from torch import nn

import cats
from cats.engines.one_pass import Batch as OnePassBatch
from cats.engines.one_pass import probe
from cats.engines.one_pass.graph import find_uses
from cats.engines.one_pass.plan import Planner
from cats.engines.pending import UnsupportedError
from tests.engines.oracle import (
    ENGINES,
    WEIGHTS,
    Batch,
    backward,
    build,
    check,
    check_combined,
    draw,
    optimizer,
    seed_all,
    trained,
)
from tests.engines.zoo import ARCHITECTURES, BATCHES
from tests.engines.zoo.mixing import ClosedGate
from tests.engines.zoo.net import LENGTH
from tests.engines.zoo.random import RandomNet

# One of each family, with parameters that are used in several ways.
SOME = ("embedding = output, padding", "RMS norm twice", "translator", "overlapping parts", "sorted tokens")


@cache
def batches_of(seed: int) -> list[Batch]:
    return [draw(partial(RandomNet, seed), ids, torch.float64, seed=i) for i, ids in enumerate(BATCHES[:2])]


def check_refusal(engine: str, net: RandomNet, error: RuntimeError) -> None:
    """one_pass may refuse nets whose examples interact, and forward_mode those that it would get wrong."""
    if engine == "one_pass":
        assert net.mixed and "examples of different tasks meet" in str(error)
    else:
        assert engine == "forward_mode" and "its derivative along ḡ is" in str(error)


def check_random_net(engine: str, seed: int) -> None:
    """Two steps."""
    net = build(partial(RandomNet, seed), torch.float64)
    opt = optimizer(net, engine)
    for batch in batches_of(seed):
        opt.zero_grad()
        try:
            backward(opt, net, batch, engine)
        except RuntimeError as error:
            check_refusal(engine, net, error)
            return
        check(opt, net, batch.expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_random_architectures(engine):
    for seed in range(30):
        check_random_net(engine, seed)


@pytest.mark.parametrize("engine", ENGINES)
def test_as_many_tasks_as_there_are(engine):
    """one_pass checks eight tasks with five masked backward passes, so that no task has one of its own."""
    ids = torch.tensor([7, 3, 0, 5, 1, 6, 2, 4, 3, 5, 7])
    for architecture in [ARCHITECTURES[name] for name in SOME] + [partial(RandomNet, seed) for seed in range(10)]:
        net = build(architecture, torch.float64)
        opt = optimizer(net, engine)
        batch = draw(architecture, ids, torch.float64, seed=1)
        try:
            backward(opt, net, batch, engine)
        except RuntimeError as error:
            check_refusal(engine, net, error)
        else:
            check(opt, net, batch.expected)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_many_random_architectures(engine):
    for seed in range(30, 500):
        check_random_net(engine, seed)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("engine", ENGINES)
def test_several_calls_are_one_step(engine, name):
    """<g_n, ḡ> is that of the sums. In the second step the engine expects as many calls as in the first."""
    net = build(ARCHITECTURES[name], torch.float64)
    opt = optimizer(net, engine)
    batches = [draw(ARCHITECTURES[name], ids, torch.float64, seed=i) for i, ids in enumerate(BATCHES)]
    for used in (batches[:2], batches[1:], batches):
        opt.zero_grad()
        for batch in used:
            backward(opt, net, batch, engine)
        expected = sum((batch.expected for batch in used[1:]), used[0].expected)
        if len(used) == 2:
            check(opt, net, expected)
        else:  # one call more than in the step before: the engine may have dropped what <g_n, ḡ> needs, but ḡ is right
            check_combined(net, expected)
            opt.step()


@pytest.mark.parametrize("name", SOME)
def test_losses_of_tasks_that_share_a_graph(name):
    """With one loss for each task, one_pass finds the rows of the tasks by masked backward passes."""
    net = build(ARCHITECTURES[name], torch.float64)
    opt = optimizer(net, "one_pass")
    for i, ids in enumerate(BATCHES):
        batch = draw(ARCHITECTURES[name], ids, torch.float64, seed=i)
        opt.zero_grad()
        seed_all(batch.seed)
        losses, entries = net.losses(ids, *batch.inputs), net.loss_ids(ids, *batch.inputs)
        opt.backward({n: losses[entries == n].mean() for n in batch.expected.gradients})
        check(opt, net, batch.expected)


@pytest.mark.parametrize(
    "weights", [(0.0, 2.0, 1.0, 0.25), (0.0, 0.0, 0.0, 0.5), (1.0, -1.0, 0.5, -2.0), (1e-30, 1.0, 1.0, 1e-30)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_may_be_zero_negative_or_tiny(engine, weights, dtype):
    net = build(ARCHITECTURES["translator"], dtype)
    weights = (*weights, *WEIGHTS[4:])
    opt = optimizer(net, engine, weights)
    batch = draw(ARCHITECTURES["translator"], BATCHES[0], dtype, seed=1)
    batch.expected.weights = weights
    backward(opt, net, batch, engine)
    check(opt, net, batch.expected)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 1.0, 0.25), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("name", SOME)
def test_all_tasks_with_weight_0_take_one_more_backward_pass(name, weights, monkeypatch):
    """No δ of the weighted loss shows their gradients. With many such tasks, a pass for each would be slow."""
    passes, grad, counts = [], torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: passes.append(1) or grad(*args, **options))
    for each in ((1.0, 2.0, 3.0, 4.0), weights):
        net = build(ARCHITECTURES[name], torch.float64)
        opt = optimizer(net, "one_pass", (*each, *WEIGHTS[4:]))
        for _ in range(2):  # the first step also finds out how the rows of each layer are placed
            batch = draw(ARCHITECTURES[name], BATCHES[0], torch.float64, seed=1)
            batch.expected.weights = (*each, *WEIGHTS[4:])
            opt.zero_grad()
            passes.clear()
            backward(opt, net, batch, "one_pass")
            check(opt, net, batch.expected)
        counts.append(len(passes))
    assert counts[1] == counts[0] + 1


@pytest.mark.parametrize("name", ["scale and shift", "LoRA, merged", "product of parameters"])
def test_tasks_with_weight_0_and_parameters_outside_of_layers(name):
    """Such parameters need a pass for each task anyway."""
    net = build(ARCHITECTURES[name], torch.float64)
    weights = (0.0, 0.0, 1.0, 0.25, *WEIGHTS[4:])
    opt = optimizer(net, "one_pass", weights)
    batch = draw(ARCHITECTURES[name], BATCHES[0], torch.float64, seed=1)
    batch.expected.weights = weights
    backward(opt, net, batch, "one_pass")
    check(opt, net, batch.expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_task_and_examples_of_no_task(engine):
    """Examples with the index -1 have no loss, and a batch may have one task."""
    architecture = ARCHITECTURES["sequence first, flat"]
    net = build(architecture, torch.float64)
    opt = optimizer(net, engine)
    for ids in (torch.tensor([2, 2, 2]), torch.tensor([-1, 2, -1, 2]), torch.tensor([-1, 0, 3, -1, 0])):
        batch = draw(architecture, ids, torch.float64, seed=1)
        opt.zero_grad()
        backward(opt, net, batch, engine)
        check(opt, net, batch.expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_not_finite_skips_the_step(engine):
    architecture = ARCHITECTURES["branches"]
    net = build(architecture, torch.float64)
    opt = optimizer(net, engine)
    for i, ids in enumerate(BATCHES):
        batch = draw(architecture, ids, torch.float64, seed=i)
        opt.zero_grad()
        if i == 2:
            backward(opt, net, batch, engine)
            check(opt, net, batch.expected)
        else:
            batch.inputs[0][1, 2] = (float("inf"), float("nan"))[i]
            backward(opt, net, batch, engine)
            opt.step()
    assert (opt.statistics["step"], opt.statistics["skipped"]) == (1, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_may_be_overwritten_after_backward(engine):
    """Static buffers get the next batch. An engine that needs the old values until ḡ is final must notice."""
    architecture = ARCHITECTURES["mlp"]
    net = build(architecture, torch.float64)
    opt = optimizer(net, engine)
    first, second = (draw(architecture, BATCHES[0], torch.float64, seed=seed) for seed in (1, 2))
    buffer = first.inputs[0]
    backward(opt, net, first, engine)
    buffer.copy_(second.inputs[0])
    second.inputs = first.inputs
    try:
        backward(opt, net, second, engine)
    except RuntimeError as error:
        assert re.search("changed in place|must compute the same both times", str(error))
    else:
        check(opt, net, first.expected + second.expected)


def test_lists_that_say_the_same_need_no_check(monkeypatch):
    """The tasks of examples and those of all their tokens fit the same layer. That is no reason to check every step."""
    net = build(ARCHITECTURES["RMS norm twice"], torch.float64)
    opt = optimizer(net, "one_pass")
    for i, ids in enumerate(BATCHES):
        if i == 2:
            monkeypatch.setattr("cats.engines.one_pass.plan.masked_gradients_show", None)
        batch = draw(ARCHITECTURES["RMS norm twice"], ids, torch.float64, seed=i)
        opt.zero_grad()
        with cats.engines.rows(ids.repeat_interleave(LENGTH)):
            backward(opt, net, batch, "one_pass")
        check(opt, net, batch.expected)


def test_an_interaction_of_all_tasks_that_only_values_show_is_found_by_the_next_check():
    """one_pass cannot see that a gate opens between examples: the graph is the same. It checks in calls 1, 2, 4, ..."""
    net = build(ClosedGate, torch.float64)
    opt = optimizer(net, "one_pass")
    for ids in (*BATCHES[:2], BATCHES[1]):
        opt.zero_grad()
        backward(opt, net, draw(ClosedGate, ids, torch.float64, seed=1), "one_pass")
        opt.step()
    opt.zero_grad()
    with pytest.raises(RuntimeError, match="examples of different tasks meet in the layer of layers"):
        backward(opt, net, draw(ClosedGate, BATCHES[2], torch.float64, seed=1), "one_pass")


@pytest.mark.parametrize("pair", [(0, 1), (4, 7), (7, 3)], ids=str)
def test_an_interaction_of_two_tasks_is_found_by_one_of_the_next_checks(pair, monkeypatch):
    """Eight tasks have five sets. After the first call, a check is a pass with one of them: the next one each time."""
    passes = []
    masked_passes = probe._masked_passes

    def counted(uses, batch, params, members):
        passes.append(len(members))
        return masked_passes(uses, batch, params, members)

    monkeypatch.setattr(probe, "_masked_passes", counted)
    layers, ids = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("first", "second", "third")}), torch.arange(8)
    names, params = zip(*layers.named_parameters(), strict=True)
    planner = Planner()

    def plan(mixing):
        hidden = layers["second"](layers["first"](torch.randn(8, 4)))
        losses = layers["third"](mixing @ hidden).square().sum(1)
        batch = OnePassBatch([losses], lambda weights: [torch.tensor(weights)[ids]], list(range(8)), 8, [ids])
        planner.plan(batch, params, len(params), names)

    for _ in range(64):
        plan(torch.eye(8))
    assert passes == [5, 1, 1, 1, 1, 1, 1]  # calls 1, 2, 4, 8, 16, 32, 64
    mixing = torch.eye(8)
    mixing[pair] = 1.0  # the loss of one task depends on the example of another one
    with pytest.raises(UnsupportedError, match="examples of different tasks meet in the layer of second"):
        for call in (100, 200, 300, 400, 500):
            planner.plans = call - 1
            plan(mixing)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", ["mlp", "module in a loop", "parameter of two modules", "translator"])
def test_no_use_is_left_out(name, step, monkeypatch):
    """If one_pass did not see some use of a parameter, Σ α_n <g_n, ḡ> would not be ‖ḡ‖², and it says so.

    In the first step it is not known in backward() whether ḡ is final, in the second it is.
    """

    def all_but_the_last(roots, params):
        graph = find_uses(roots, params)
        graph.uses.pop()
        return graph

    net = build(ARCHITECTURES[name], torch.float64)
    opt = optimizer(net, "one_pass")
    for i in range(step):
        backward(opt, net, draw(ARCHITECTURES[name], BATCHES[i], torch.float64, seed=i), "one_pass")
        opt.step()
        opt.zero_grad()
    monkeypatch.setattr("cats.engines.one_pass.plan.find_uses", all_but_the_last)
    with pytest.raises(RuntimeError, match=r"a use of a parameter was missed|out of sight of autograd"):
        backward(opt, net, draw(ARCHITECTURES[name], BATCHES[step], torch.float64, seed=step), "one_pass")
    assert all(p.grad is None for p in trained(net))
