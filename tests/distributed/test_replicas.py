"""Replicas give the same result as one process. These are real processes with gloo on the CPU."""

from __future__ import annotations

import math
import re
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

import cats
from cats import distributed
from cats.distributed import buckets
from cats.distributed.shares import Shares
from cats.engines.pending import UnsupportedError
from tests.distributed.common import TASKS, Model, batch, needs_gloo, results_of, train

pytestmark = needs_gloo


RUNS = [("proximal", 1), ("softmax", 2), ("lagrangian", 2), ("shared", 2), ("static", 1)]
RUNS += [("two_pass", 2), ("forward_mode", 2), ("momentum", 1), ("update", 2)]
RUNS += [("group_dro", 2), ("famo", 1), ("famo", 2), ("gradnorm", 2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both processes. They are started once for all tests, because starting them takes longest."""
    return results_of(everything, 2, tmp_path_factory.mktemp("processes"))


def everything(rank: int, count: int, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {f"{how}-{calls}": run(rank, count, how, calls) for how, calls in RUNS}
    result |= {"mixed": mixed(rank), "refused": refused(rank)}
    result |= {"differing": {case: differing(rank, case) for case in DIFFERING}}
    result |= {"saved": {flat: saved(folder / flat) for flat in FORMS}}
    result |= {"traffic": {kind: traffic(rank, kind) for kind in TRAFFIC}, "overlap": overlap(rank), "half": half(rank)}
    result |= {"float16": float16(), "late": late(rank), "no losses": no_losses()}
    result |= {"after the step": fails_after_the_step(rank)}
    result |= {"unequal": unequal(rank), "changing": {kind: changing(rank, kind) for kind in CHANGING}}
    return result


def run(rank: int, count: int, how: str, calls: int) -> dict[str, Any]:
    return train(rank, count, how, calls, form="callables" if how in ("forward_mode", "famo") else "tensors")


@pytest.mark.parametrize(("how", "calls"), RUNS)
def test_two_processes_are_one(found: list[dict[str, Any]], how: str, calls: int) -> None:
    """Batches of different sizes, a task in one process only, a process without losses, two backward() calls a step."""
    expected = run(0, 1, how, calls)
    both = [each[f"{how}-{calls}"] for each in found]
    for each in both:
        assert each["idle"]  # None stays None, otherwise AdamW would decay the weight
        for name, value in expected["model"].items():  # float64: only the order of the sums differs
            torch.testing.assert_close(each["model"][name], value, rtol=1e-10, atol=1e-12)
        for name in "alpha", "multipliers":
            assert each[name] == pytest.approx(expected[name], rel=1e-9)
        for ours, theirs in zip(each["history"], expected["history"], strict=True):
            assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-9)
            assert ours["dots"] == pytest.approx(theirs["dots"], rel=1e-9)
            assert ours["sqnorm"] == pytest.approx(theirs["sqnorm"], rel=1e-9, nan_ok=True)
    for name, value in both[0]["model"].items():
        assert torch.equal(value, both[1]["model"][name]), name
    assert both[0]["alpha"] == both[1]["alpha"] and both[0]["multipliers"] == both[1]["multipliers"]


def mixed(rank: int) -> dict[str, Any]:
    """bfloat16 and float32 parameters. A loss is nan in one process, in steps with and without per-task gradients."""
    torch.manual_seed(0)
    first, second = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2).bfloat16())
    optimizer = cats.CATS(torch.optim.SGD([first, second], lr=0.1), TASKS[:1], inner_steps=2)
    before = first.detach().clone()
    for factor in (math.nan if rank else 1.0), 1.0, (math.nan if rank else 1.0), 1.0:
        optimizer.zero_grad()
        optimizer.backward({"az": factor * ((rank + 1) * first.sum() + second.float().sum())})
        optimizer.step()
    return {"moved": before - first.detach(), "half": second.grad, **optimizer.statistics}


def test_a_step_is_taken_by_all_or_none(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["mixed"]["skipped"] == 2 and each["mixed"]["step"] == 2
        torch.testing.assert_close(each["mixed"]["moved"], torch.full((3,), 0.3))  # two steps: 2 * lr * mean of 1 and 2
        assert each["mixed"]["half"].dtype == torch.bfloat16 and each["mixed"]["half"].tolist() == [1.0, 1.0]


def float16() -> list[list[float]]:
    """Means of a gradient of 40,000 in both processes, in all ways to form them. The sum would be infinite."""
    means = []
    for dtype in None, torch.bfloat16:
        w = nn.Parameter(torch.ones(3, dtype=torch.float16))
        base = torch.optim.SGD([w], lr=0.1)
        optimizer = cats.MultiTask(base, ["az"], cats.weighting.Static([1.0]), communication_dtype=dtype)
        optimizer.backward({"az": 40000 * w.float().sum()})
        assert w.grad is not None
        shares = Shares([w], 1, distributed.Communication(None, dtype), frozenset([0]))
        (gathered,) = shares.gather(shares.scatter([torch.full_like(w, 40000.0)]))
        assert gathered is not None
        means += [w.grad.tolist(), gathered.tolist()]
    return means


def test_the_mean_of_large_float16_gradients_is_finite(found: list[dict[str, Any]]) -> None:
    rounded = torch.tensor(40000.0).bfloat16().item()
    for each in found:
        assert each["float16"] == [[40000.0] * 3] * 2 + [[rounded] * 3] * 2


def late(rank: int) -> str:
    """An engine refuses in one process, in the backward pass in which gradients are sent."""
    model = nn.Linear(4, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), ["az", "be"], inner_steps=1)

    def refuse(p: Tensor) -> None:
        raise UnsupportedError("engine one_pass: too late")

    if rank == 0:
        model.weight.register_post_accumulate_grad_hook(refuse)
    with pytest.raises(RuntimeError) as error:
        optimizer.backward(model(torch.ones(3, 4)).square().sum(1), tasks=torch.tensor([0, 1, 1]))
    return str(error.value)


def test_an_engine_that_refuses_while_gradients_are_sent_stops_all(found: list[dict[str, Any]]) -> None:
    assert found[0]["late"] == "engine one_pass: too late"
    assert found[1]["late"].startswith("process 0 failed with RuntimeError: engine one_pass: too late")


def fails_after_the_step(rank: int) -> str:
    """In one process, a callable fails when its loss is needed again after the step."""
    p, count = nn.Parameter(torch.ones(2)), 0
    optimizer = cats.MultiTask(torch.optim.SGD([p], lr=0.1), ["az"], cats.weighting.FAMO())

    def loss() -> Tensor:
        nonlocal count
        count += 1
        if rank == 0 and count == 2:
            raise ZeroDivisionError("no rows")
        return p.square().sum()

    optimizer.backward({"az": loss})
    try:
        optimizer.step()
    except (RuntimeError, ZeroDivisionError) as error:
        return str(error)
    return "no error"


def test_a_process_that_fails_after_the_step_stops_all(found: list[dict[str, Any]]) -> None:
    assert found[0]["after the step"] == "no rows"
    assert "process 0 failed with ZeroDivisionError: no rows" in found[1]["after the step"]


def no_losses() -> str:
    optimizer = cats.CATS(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), ["az"])
    optimizer.backward({})
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    return str(error.value)


def test_no_process_has_a_loss(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["no losses"].startswith("no process has a loss")


def refused(rank: int) -> str:
    model = Model()
    if rank:
        with torch.no_grad():
            model.body.weight[0, 0] += 1e-9
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS)
    with pytest.raises(RuntimeError) as error:
        optimizer.backward({"az": model(*batch(0)["az"], "az")})
    assert all(p.grad is None for p in model.parameters())
    return str(error.value)


def test_processes_with_other_parameters_are_refused(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert "the parameters differ between processes" in each["refused"]


# What differs in process 0 or 1 from some step on, and what the error of both says, at which step.
DIFFERING = {
    "order of the tasks": (1, r"task 0 \('az' in process 0, 'be' in process 1\), task 1"),
    "number of tasks": (1, "number of tasks"),
    "inner_steps": (1, r"period of the weighting \(2 in process 0, 3 in process 1\)"),
    "alpha_lr": (1, r"alpha_lr of the weighting \(1.0 in process 0, 2.0 in process 1\)"),
    "base": (1, r"weight_decay of group 0 \(0.1 in process 0, 0.0 in process 1\)"),
    "engine": (1, r"engine \('auto' in process 0, 'two_pass' in process 1\)"),
    "rows": (1, r"rows \(0.5 in process 0, None in process 1\)"),
    "communication_dtype": (1, r"communication_dtype \('None' in process 0, 'torch.bfloat16' in process 1\)"),
    "shared": (1, r"shared_parameters \(\[0\] in process 0, \[1\] in process 1\)"),
    "learning rate": (3, r"learning rate of group 0 \(0.5 in process 0, 0.05 in process 1\)"),
    "frozen": (3, r"parameter 1 \(frozen in process 0, trained in process 1\)"),
    "parameter added": (3, r"number of parameters \(3 in process 0, 2 in process 1\)"),
    "values": (4, r"the parameters differ between processes, in 1 of 2 tensors .* shape \(2,\)"),
    "state loaded": (3, r"call \(backward\(\) of step 2 in process 0, backward\(\) of step 3 in process 1\)"),
    "weighting loaded": (3, r"multiplier lambda_c \(0.0 in process 0"),
    "one more backward()": (3, r"call \(backward\(\) of step 3 in process 0, step\(\) of step 3 in process 1\)"),
    "zero_grad()": (3, r"backward\(\) calls gathered \(0 in process 0, 1 in process 1\)"),
    "step() before backward()": (3, "process 0 failed with RuntimeError: step\\(\\) before backward"),
    "scale": (3, r"scale of the GradScaler \(2.0 in process 0, 4.0 in process 1\)"),
    "a loss raises": (3, "process 0 failed with ZeroDivisionError: no rows"),
    "out of memory": (3, "process 0 failed with OutOfMemoryError: no memory for the combination"),
    "unknown task": (3, "process 0 failed with ValueError: unknown task 'xy'"),
    "a backward pass raises": (3, "process 0 failed with ZeroDivisionError: no gradient"),
    "an engine fails": (3, "process 0 failed with UnsupportedError: engine two_pass: loss of task 'az'"),
}


def differing(rank: int, case: str) -> dict[str, Any]:
    """Steps until an error. Nothing may have changed then, and after a failed loss training goes on."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    tasks = {"order of the tasks": ["az", "be"][:: 1 - 2 * rank], "number of tasks": ["az", "be", "cs"][: 2 + rank]}
    base = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1 * (case != "base" or rank == 0))
    optimizer = cats.CATS(
        base,
        tasks.get(case, ["az", "be"]),
        inner_steps=2 + rank * (case == "inner_steps") + (case in ("out of memory", "an engine fails")),
        engine="two_pass" if case == "an engine fails" or (case == "engine" and rank) else "auto",
        rows=0.5 if case == "rows" and rank == 0 else None,
        communication_dtype=torch.bfloat16 if case == "communication_dtype" and rank else None,
        alpha_lr=1.0 + rank * (case == "alpha_lr"),
        simplex="softmax",
        shared=[[model.weight, model.bias][rank]] if case == "shared" else None,
    )
    other = cats.CATS(torch.optim.AdamW(model.parameters()), ["az", "be"], simplex="softmax")
    saved = None

    def fails() -> Tensor:
        raise ZeroDivisionError("no rows")

    def fails_backward(gradient: Tensor) -> None:
        raise ZeroDivisionError("no gradient")

    def losses(step: int) -> dict[str, Any]:
        y = model(torch.full((3, 4), float(step + rank)))
        first = fails if case == "a loss raises" and step == 3 and rank == 0 else (y[:, 0] - 1).square().mean()
        if case == "a backward pass raises" and step == 3 and rank == 0:
            y.register_hook(fails_backward)
        if case == "an engine fails" and rank == 0:
            drift = iter(range(2))
            return {"az": lambda: (model(torch.ones(3, 4)) + next(drift)).sum()}
        name = "xy" if case == "unknown task" and step == 3 and rank == 0 else "az"
        return {name: first, "be": (y[:, 1] + 2).square().mean()}

    for step in range(1, 6):
        optimizer.zero_grad()
        if step == 3 and rank == 0:
            if case == "learning rate":
                optimizer.param_groups[0]["lr"] = 0.5
            elif case == "frozen":
                model.bias.requires_grad_(False)
            elif case == "parameter added":
                optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
            elif case == "values":
                model.bias.data += 0.5
            elif case == "state loaded":
                assert saved is not None
                optimizer.load_state_dict(saved)
            elif case == "weighting loaded":
                state = optimizer.state_dict()
                state["multitask"]["weighting"] = other.state_dict()["multitask"]["weighting"]
                optimizer.load_state_dict(state)
        before = [p.detach().clone() for p in model.parameters()]
        full = patch.object(cats.ops, "combine", side_effect=torch.OutOfMemoryError("no memory for the combination"))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 * (1 + rank), enabled=case == "scale" and step == 3)
        try:
            if not (case == "step() before backward()" and step == 3 and rank == 0):
                with full if case == "out of memory" and step == 3 and rank == 0 else nullcontext():
                    optimizer.backward(losses(step), scaler=scaler)
            if case == "zero_grad()" and step == 3 and rank == 0:
                optimizer.zero_grad()
            if step == 3 and (case == "zero_grad()" or (case == "one more backward()" and rank == 0)):
                optimizer.backward(losses(step))
            scaler.step(optimizer)
        except (RuntimeError, ValueError, ZeroDivisionError) as error:
            said = f"process {rank} failed with {type(error).__name__}: {error}"
            alone = (
                "step() before backward()",
                "a loss raises",
                "out of memory",
                "unknown task",
                "a backward pass raises",
                "an engine fails",
            )
            message = said if case in alone else str(error)
            break
        else:
            saved = saved or optimizer.state_dict()
    unchanged = all(map(torch.equal, model.parameters(), before))
    unchanged &= case in ("one more backward()", "scale", "zero_grad()", "an engine fails") or all(
        p.grad is None for p in model.parameters()
    )
    if case in ("a loss raises", "a backward pass raises"):
        optimizer.backward(losses(1))
        optimizer.step()
    return {"step": step, "message": message, "unchanged": unchanged, "end": [*model.parameters()]}


@pytest.mark.parametrize("case", DIFFERING)
def test_processes_that_differ_get_the_same_error(found: list[dict[str, Any]], case: str) -> None:
    step, message = DIFFERING[case]
    for each in found:
        told = each["differing"][case]
        assert told["step"] == step and told["unchanged"]
        assert re.search(message, told["message"]), told["message"]
        assert "\n" not in told["message"]
    if case in ("a loss raises", "a backward pass raises"):
        ends = [each["differing"][case]["end"] for each in found]
        assert all(map(torch.equal, *ends))


def layers() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    model.register_parameter("idle", nn.Parameter(torch.ones(5)))
    return model, torch.linspace(-1, 1, 12).reshape(3, 4)


TRAFFIC = {"per_task": 1, "one_pass": 1, "two_pass": 1, "no numbers due": 2}  # inner_steps


def traffic(rank: int, kind: str) -> list[tuple[str, int]]:
    """The collectives of the third step, and how many numbers each has. Step 3 does not compare all settings."""
    model, x = layers()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = "auto" if kind == "no numbers due" else kind
    optimizer = cats.CATS(base, TASKS, inner_steps=TRAFFIC[kind], engine=engine)
    seen: list[tuple[str, int]] = []

    def counted(name: str) -> Any:
        original = getattr(dist, name)

        def wrapper(tensor: Any, *args: Any, **options: Any) -> Any:
            seen.append((name, tensor.numel() if isinstance(tensor, Tensor) else -1))
            return original(tensor, *args, **options)

        return patch.object(dist, name, wrapper)

    for step in range(1, 4):
        optimizer.zero_grad()
        y = model(x + rank)
        with ExitStack() as patches:
            for name in ["all_reduce", "all_gather", "reduce_scatter_tensor", "broadcast"] if step == 3 else []:
                patches.enter_context(counted(name))
            if kind == "one_pass":
                optimizer.backward(y.square().mean(1), tasks=TASKS)
            else:
                optimizer.backward({"az": y.square().mean(), "be": y[:, 0].mean(), "cs": y[:, 1].exp().mean()})
            optimizer.step()
    return seen


def test_a_step_all_reduces_one_gradient_and_k_numbers(found: list[dict[str, Any]]) -> None:
    model, _ = layers()
    count, size = len(list(model.parameters())), sum(p.numel() for p in model.parameters())
    for each in found:
        for kind in TRAFFIC:
            assert [tuple(one) for one in each["traffic"][kind]] == [
                ("all_reduce", 4),  # do all make the same call?
                ("all_reduce", size + count + 2),  # the gradient; who has which part of it, and did any fail?
                ("all_reduce", 4),
                ("all_reduce", 4 * (len(TASKS) + 1)),  # losses, inner products, norms
            ]


def overlap(rank: int) -> dict[str, Any]:
    """The order of events in two calls, where a bucket is one parameter. In the second, process 1 has no loss."""
    model, x = layers()
    optimizer = cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.1), ["az", "be"], cats.weighting.Static([1, 2]))
    seen: list[str] = []
    original = dist.all_reduce

    def noted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        if options.get("async_op"):
            seen.append(f"all-reduce of {tensor.numel()}")
        return original(tensor, *args, **options)

    model[0].weight.register_hook(lambda gradient: seen.append("the first weight"))
    calls: list[list[str]] = []
    with patch.object(dist, "all_reduce", noted), patch.object(buckets, "BUCKET_BYTES", 4):
        for losses in (
            # Two backward passes: the gradients are final in the second one. Then one pass.
            {"az": lambda: model(x).square().mean(), "be": lambda: (model(x + rank) - 1).square().mean()},
            {} if rank else {"az": model(2 * x).square().mean()},
        ):
            seen.clear()
            optimizer.backward(losses)
            calls.append(list(seen))
    return {"calls": calls, "grads": [p.grad for p in model.parameters()]}


def test_the_all_reduce_overlaps_the_backward_pass(found: list[dict[str, Any]]) -> None:
    sizes = [5, 19, 11, 67, 11], [35, 8]  # the buckets of other parameters; that of the first weight, and the idle one
    starts = [[f"all-reduce of {size}" for size in some] for some in sizes]
    whole = [*starts[0], "the first weight", *starts[1]]
    assert found[0]["overlap"]["calls"] == [["the first weight", *whole], whole]
    assert found[1]["overlap"]["calls"] == [["the first weight", *whole], [*starts[0], *starts[1]]]
    model, x = layers()
    for rank in range(2):
        (model(x).square().mean() / 2).backward()
        (model(x + rank) - 1).square().mean().backward()
    (model(2 * x).square().mean() / 2).backward()
    for each in found:
        for p, grad in zip(model.parameters(), each["overlap"]["grads"], strict=True):
            torch.testing.assert_close(grad, p.grad)


def changing(rank: int, kind: str) -> dict[str, Any]:
    """The first layer is used twice, the second time in a checkpoint that runs a backward pass of its own.

    So its gradient changes after it was sent. That is noticed in all processes, also where there is no checkpoint.
    """
    from torch.utils.checkpoint import checkpoint

    model, x = layers()
    optimizer = cats.MultiTask(torch.optim.SGD(model.parameters(), lr=0.1), ["az"], cats.weighting.Static([1]))
    seen: list[int] = []
    original = dist.all_reduce

    def noted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(tensor.numel())
        return original(tensor, *args, **options)

    def first(x: Tensor) -> Tensor:
        if kind == "function":
            return Double.apply(model[0](x))
        if kind == "checkpoint in one process" and rank:
            return model[0](x)
        return checkpoint(model[0], x, use_reentrant=True)

    counts = []
    with patch.object(dist, "all_reduce", noted), patch.object(buckets, "BUCKET_BYTES", 4):
        for _ in range(2):
            seen.clear()
            optimizer.zero_grad()
            optimizer.backward({"az": model(first((x + rank).requires_grad_())[:, :4]).square().mean()})
            counts.append(len(seen))
    return {"grads": [p.grad for p in model.parameters()], "counts": counts}


class Double(torch.autograd.Function):
    """A function written in Python, without a backward pass inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


CHANGING = ["checkpoint", "checkpoint in one process", "function"]


@pytest.mark.parametrize("kind", CHANGING)
def test_a_gradient_that_changes_after_it_was_sent(found: list[dict[str, Any]], kind: str) -> None:
    model, x = layers()
    for rank in range(2):
        hidden = model[0](x + rank) * (2 if kind == "function" else 1)
        (model(hidden[:, :4]).square().mean() / 2).backward()
    for each in found:
        run = each["changing"][kind]
        for p, grad in zip(model.parameters(), run["grads"], strict=True):
            torch.testing.assert_close(grad, p.grad)
        # The first call has two more for the settings and the parameters, and may send all buckets again.
        extra = 2 if kind == "function" else 2 + len(run["grads"])
        assert run["counts"] == [run["counts"][1] + extra, 1 + len(run["grads"])]


def half(rank: int) -> list[Tensor | None]:
    """The gradients of steps without and with per-task gradients, exchanged in bfloat16."""
    model, x = layers()
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = cats.CATS(base, ["az"], inner_steps=2, communication_dtype=torch.bfloat16)
    grads: list[Tensor | None] = []
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.backward({"az": model(x + rank).square().mean()})
        optimizer.step()
        grads += [p.grad for p in model.parameters()]
    return grads


def test_gradients_exchanged_in_bfloat16(found: list[dict[str, Any]]) -> None:
    model, x = layers()
    ours = [torch.autograd.grad(model(x + r).square().mean(), [*model.parameters()], allow_unused=True) for r in (0, 1)]
    for each in found:
        for got, one, other in zip(each["half"], ours[0] * 2, ours[1] * 2, strict=True):
            assert (got is None) == (one is None)
            if one is not None:  # each gradient is rounded to 8 bits, and so is their sum
                assert got.dtype == torch.float32
                assert ((got - (one + other) / 2).abs() <= 2**-8 * (one.abs() + other.abs()) + 1e-30).all()
                assert torch.equal(got, got.bfloat16().float())


def unequal(rank: int) -> list[dict[str, float]]:
    """The weights after each step. Process 1 has no rows in the first step, and in the first call of the third.

    The third step has two calls and the fourth has one again, which one_pass does not expect: process 0 does not know
    <g_n, ḡ> then.
    """
    model, x = layers()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = cats.CATS(base, ["az", "be"], inner_steps=1, engine="one_pass")
    alphas = []
    for step in range(5):
        optimizer.zero_grad()
        for call in range(2 if step == 2 else 1):
            if rank == 1 and call == 0 and step in (0, 2):
                optimizer.backward({})
            else:
                y = model[:3](x + rank).square().mean(1)
                optimizer.backward(y, tasks=["az", "be", "az"])
        optimizer.step()
        alphas.append(optimizer.alpha)
    return alphas


def test_weights_do_not_move_if_one_process_lacks_the_numbers(found: list[dict[str, Any]]) -> None:
    one, other = (each["unequal"] for each in found)
    assert one == other
    assert one[0] != one[1] == one[2] == one[3] != one[4]


FORMS = ["nested", "flat"]  # the forms of a checkpoint of torch.distributed.checkpoint


def small() -> tuple[nn.Module, cats.MultiTask]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    return model, cats.CATS(torch.optim.AdamW(model.parameters(), lr=0.05), TASKS, inner_steps=2, alpha_lr=0.5)


def take_steps(model: nn.Module, optimizer: cats.MultiTask, count: int) -> dict[str, Any]:
    for step in range(count):
        optimizer.zero_grad()
        y = model(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4) + step)
        optimizer.backward({task: (y[n] - n).square().mean() for n, task in enumerate(TASKS)})
        optimizer.step()
    optimizer.zero_grad()
    return {"model": model.state_dict(), "alpha": optimizer.alpha, "step": optimizer.statistics["step"]}


def optimizer_state(model: nn.Module, optimizer: cats.MultiTask, form: str) -> tuple[dict[str, Any], Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=form == "flat")
    return {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, options


def saved(folder: Path) -> dict[str, Any]:
    """Two processes save in the middle of a run, and go on."""
    from torch.distributed import checkpoint as dcp

    model, optimizer = small()
    take_steps(model, optimizer, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dcp.save(optimizer_state(model, optimizer, folder.name)[0], checkpoint_id=folder)
    return {"folder": str(folder), "before": before, "after": take_steps(model, optimizer, 4)}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("form", FORMS)
def test_one_process_goes_on_from_a_checkpoint_of_two(found: list[dict[str, Any]], form: str) -> None:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    run = found[0]["saved"][form]
    model, optimizer = small()
    model.load_state_dict(run["before"])
    state, options = optimizer_state(model, optimizer, form)
    dcp.load(state, checkpoint_id=run["folder"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    here = take_steps(model, optimizer, 4)
    assert here["step"] == run["after"]["step"] == 7
    assert here["alpha"] == pytest.approx(run["after"]["alpha"], rel=1e-12)  # float64: only the order of sums differs
    for name, value in run["after"]["model"].items():
        torch.testing.assert_close(here["model"][name], value, rtol=1e-12, atol=1e-14)


def test_the_reducer_is_kept_while_the_number_of_processes_stays() -> None:
    alone = distributed.Communication()
    first = distributed.reducer([], alone)
    assert isinstance(first, distributed.Local) and distributed.reducer([], alone, first) is first
    assert isinstance(distributed.reducer([], alone, distributed.Replicated(alone)), distributed.Local)


def test_tasks_with_numbers_that_are_not_finite() -> None:
    losses, sqnorms = torch.tensor([1.0, math.inf, 2.0]), torch.tensor([math.nan, 1.0, 3.0])
    numbers = distributed.Statistics([0, 2, 5], losses, losses, sqnorms, known=True, sqnorms_known=True, finite=False)
    assert numbers.nonfinite_tasks() == [0, 2]
    numbers.sqnorms_known = False  # nan then says nothing about the task
    assert numbers.nonfinite_tasks() == [2]
