"""Models in DistributedDataParallel and fully_shard: the result of one process, or a clear error."""

from __future__ import annotations

import copy
import functools
import math
import re
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

import cats
from cats.distributed.wrapped import Wrapped
from tests.distributed.common import TASKS, Model, batch, needs_gloo, results_of, train, whole

pytestmark = needs_gloo

# The wrapper, the weighting, the number of backward() calls per step, and the form of the losses.
RUNS = [
    ("ddp", "static", 1, "tensors"),
    ("ddp", "static", 2, "callables"),
    ("fsdp", "proximal", 1, "callables"),
    ("fsdp", "proximal", 2, "tensors"),
    ("fsdp", "shared", 1, "tensors"),
    ("fsdp", "static", 1, "callables"),
    ("hybrid", "two_pass", 1, "callables"),
    ("fsdp", "two_pass", 2, "tensors"),
    ("hybrid", "softmax", 2, "callables"),
    ("replicas", "softmax", 2, "callables"),
    ("float32", "proximal", 1, "tensors"),
    ("replicas", "proximal", 2, "rows"),
    ("replicas", "two_pass", 1, "tensors"),
    ("replicas", "forward_mode", 2, "callables"),
    ("replicas", "gram", 2, "callables"),
    ("replicas", "halves", 2, "halves"),
    ("fsdp", "gram", 2, "tensors"),
    ("replicas", "groups", 2, "callables"),
    ("replicas", "graddrop", 2, "callables"),
    ("fsdp", "graddrop", 2, "tensors"),
    ("hybrid", "graddrop", 1, "tensors"),
    ("hybrid", "groups", 1, "tensors"),
    ("ddp", "proximal", 1, "rows"),
    ("ddp", "update", 1, "rows"),
    ("ddp", "preconditioned", 1, "rows"),
    ("fsdp", "preconditioned", 1, "callables"),
    ("replicas", "preconditioned", 2, "callables"),
    ("replicas", "preconditioned", 2, "rows"),
    ("fsdp", "momentum", 2, "tensors"),
    ("hybrid", "update", 1, "callables"),
    ("replicas", "update", 2, "rows"),
    ("ddp", "group_dro", 2, "tensors"),
    ("ddp", "famo", 1, "callables"),
    ("fsdp", "famo", 1, "callables"),
    ("hybrid", "famo", 2, "callables"),
    ("fsdp", "gradnorm", 2, "tensors"),
]
DDP = functools.partial(nn.parallel.DistributedDataParallel, find_unused_parameters=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of(everything, 4, tmp_path_factory.mktemp("processes"))


def everything(rank: int, count: int, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {run_name(run): run_of(rank, count, *run) for run in RUNS}
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = pairs[rank // 2]
    result["pair"] = run_of(rank % 2, 2, "group", "proximal", 2, "callables", process_group=pair)
    result |= {
        "traps": {case: trap(rank, case) for case in TRAPS},
        "refused": {case: refused(rank, case, pair) for case in REFUSED},
        "views": {case: gradients_in_buckets(rank, case) for case in VIEWS},
        "scaled": scaled(rank),
        "nonfinite": nonfinite(rank),
        "copied": copied(pair),
        "numbers": numbers_of_processes(rank, pair),
        "stranger": stranger(pairs[1 - rank // 2]),
        "checkpoints": checkpoints(rank, pairs, folder / "checkpoints"),
    }
    return result


def run_name(run: tuple[Any, ...]) -> str:
    return "-".join(map(str, run))


def mesh_of(how: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if how == "hybrid":
        return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(model: nn.Module, how: str = "fsdp") -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = mesh_of(how)
    for module in model.children():
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def run_of(place: int, count: int, wrapper: str, how: str, calls: int, form: str, **more: Any) -> dict[str, Any]:
    wrap = (
        DDP if wrapper == "ddp" else functools.partial(sharded, how=wrapper) if wrapper in ("fsdp", "hybrid") else None
    )
    dtype = torch.float32 if wrapper == "float32" else torch.float64
    return train(place, count, how, calls, wrap=wrap, form=form, dtype=dtype, **more)


@pytest.mark.parametrize("run", [*RUNS, ("pair", "proximal", 2, "callables")], ids=run_name)
def test_wrapped_models_are_one(found: list[dict[str, Any]], run: tuple[str, str, int, str]) -> None:
    """Batches of different sizes, a process without rows; shards of different sizes, and some that are empty."""
    wrapper, how, calls, form = run
    expected = train(0, 1, how, calls, form="tensors" if form == "rows" else form)
    # float64: only the order of the sums differs. float32: the rounding errors of seven steps, of values of size 1.
    relative, absolute = (1e-5, 1e-6) if wrapper == "float32" else (1e-9, 1e-12)
    for each in (found_by_rank["pair" if wrapper == "pair" else run_name(run)] for found_by_rank in found):
        assert each["idle"]
        for name, value in expected["model"].items():
            torch.testing.assert_close(each["model"][name].double(), value, rtol=relative / 10, atol=absolute)
        assert each["alpha"] == pytest.approx(expected["alpha"], rel=relative)
        for ours, theirs in zip(each["history"], expected["history"], strict=True):
            for name in "losses", "dots", "sqnorm":
                assert ours[name] == pytest.approx(theirs[name], rel=relative, nan_ok=True)
            # The mean gradients of all tasks exist. But with two calls, two_pass has only parts of them.
            if (wrapper in ("fsdp", "hybrid") or how in ("gram", "groups", "halves")) and (how, calls) != (
                "two_pass",
                2,
            ):
                assert ours["sqnorms"] == pytest.approx(theirs["sqnorms"], rel=relative)


# What one step does to a parameter, at learning rate 1 with gradient 2 (r + 1) in process r, or what the error says.
# The mean over four processes is 5.
TRAPS: dict[str, float | str] = {
    "one backward() with two forwards": 15.0,  # the second one with twice the input
    "no_sync() for all but the last": 15.0,
    "no_sync() around the backward pass only": 5.0,  # it has no effect there
    "parameters of others in the model": 5.0,
    "no_sync() for the last": r"checksum of p.grad, which DistributedDataParallel averages .*not under no_sync",
    "two forwards, then two backward()": r"checksum of p.grad, which DistributedDataParallel averages",
    "the module itself": r"checksum of p.grad, which DistributedDataParallel averages",
    "fsdp, no sync for all but the last": 15.0,
    "fsdp, no sync for the last": "did not average all gradients in the last backward.*set_requires_gradient_sync",
    "fsdp, no sync in a layer": "did not average all gradients in the last backward.*set_requires_gradient_sync",
    "fsdp, no sync in a frozen layer": 15.0,
    "fsdp, no sync with per-task gradients": "did not average the whole gradient of a task.*set_requires_gradient_sync",
    "fsdp, no sync in a layer with per-task gradients": "did not average the whole gradient of a task",
}


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: float) -> Tensor:
        return 2 * x * self.w + self.other


def trap(rank: int, case: str) -> float | str:
    if case.startswith("fsdp"):
        return trap_of_fully_shard(rank, case)
    model = Product()
    ddp = nn.parallel.DistributedDataParallel(model)
    params = [model.w] if case == "parameters of others in the model" else list(model.parameters())
    optimizer = cats.MultiTask(torch.optim.SGD(params, lr=1.0), ["az", "be"], cats.weighting.Static([1, 1]))
    x = rank + 1.0
    if case == "one backward() with two forwards":
        optimizer.backward({"az": ddp(x), "be": ddp(2 * x)})
    elif case.startswith("no_sync() for"):
        for k in range(2):
            with ddp.no_sync() if (k == 0) == (case == "no_sync() for all but the last") else nullcontext():
                optimizer.backward({"az": ddp((k + 1) * x)})
    elif case == "two forwards, then two backward()":
        first, second = ddp(x), ddp(2 * x)
        optimizer.backward({"az": first})
        optimizer.backward({"be": second})
    elif case == "the module itself":
        optimizer.backward({"az": model(x)})
    else:
        loss = ddp(x)
        with ddp.no_sync() if case == "no_sync() around the backward pass only" else nullcontext():
            optimizer.backward({"az": loss})
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return 1.0 - model.w.item()


def trap_of_fully_shard(rank: int, case: str) -> float | str:
    model = Product()
    model.layer = Product()
    model.layer.requires_grad_("frozen" not in case)
    sharded(model)
    period = 1 if "per-task gradients" in case else 10
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = cats.CATS(base, ["az", "be"], inner_steps=period, reduction="sum", engine="per_task")
    try:
        for k in range(2):
            if "layer" in case:
                model.layer.set_requires_gradient_sync(False)
            else:
                model.set_requires_gradient_sync((k == 1) == (case == "fsdp, no sync for all but the last"))
            optimizer.backward({"az": model((k + 1) * (rank + 1.0)) + model.layer(1.0)})
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return 1.0 - whole(model.w).item()


@pytest.mark.parametrize("case", TRAPS)
def test_traps_of_wrappers(found: list[dict[str, Any]], case: str) -> None:
    for each in found:
        expected, got = TRAPS[case], each["traps"][case]
        if isinstance(expected, float):
            assert got == expected
        else:
            assert re.search(expected, str(got)), got


REFUSED = {
    "per-task gradients": r"not see per-task gradients, and engine per_task was chosen "
    r"\(2 gradients take .*\): pass the loss of each row.*Or delete the DistributedDataParallel object",
    "no loss": r"with DistributedDataParallel each process needs a loss|process 3 failed with ValueError: with Dist",
    "a part wrapped": r"1 of 2 trained parameters are not in DistributedDataParallel.*wrap all of them, or none",
    "another group": "process_group is not that of DistributedDataParallel",
    "bf16 in ddp": "register torch.distributed.algorithms.*bf16_compress_hook",
    "bf16 in fsdp": "use MixedPrecisionPolicy",
    "other tasks": r"tasks with a loss \(\['az', 'be'\] in process 0, \['az'\] in process 3\).*one row times 0",
    "other order": r"tasks with a loss \(\['az', 'be'\] in process 0, \['be', 'az'\] in process 3\).*same order",
    "a part sharded": r"a trained parameter of shape \(1,\) is not sharded by fully_shard",
    "not by fully_shard": r"a trained parameter of shape \(8, 4\) is not sharded by fully_shard",
    "other mesh": r"process_group does not have the processes of the device mesh.*pass mesh.get_group\(\)",
    "one_pass in fsdp": r"engine one_pass: the parameters are sharded: use engine='per_task' or 'two_pass'",
    "replicas differ": r"the parameters differ between processes, in 1 of 6 tensors",
}


def refused(rank: int, case: str, pair: Any) -> str:
    """The error of a call, after which nothing has changed."""
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    model: nn.Module = Model()
    options: dict[str, Any] = {"communication_dtype": torch.bfloat16} if case.startswith("bf16") else {}
    inner_steps, names = 1 if case == "per-task gradients" else 5, ["az", "be"]
    wrapped: Callable[..., Tensor] = model
    if case in ("per-task gradients", "no loss", "bf16 in ddp"):
        wrapped = DDP(model)
    elif case == "a part wrapped":
        model = Product()
        inside = nn.ParameterList([model.w])
        wrapped = nn.parallel.DistributedDataParallel(inside)
    elif case == "another group":
        wrapped, options = DDP(model), {"process_group": pair}
    elif case == "a part sharded":
        from torch.distributed.fsdp import fully_shard

        model = Product()
        wrapped = fully_shard(model, mesh=mesh_of("fsdp"), ignored_params={model.other})
    elif case == "not by fully_shard":
        model = nn.Linear(4, 8, bias=False)
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh_of("fsdp"), [Shard(0)]))
    else:
        if case == "replicas differ" and rank >= 2:
            with torch.no_grad():
                model.body.weight[0, 0] += 1e-9  # type: ignore[index, union-attr]
        wrapped = sharded(model, "hybrid" if case == "replicas differ" else "fsdp")
        options |= {"process_group": pair} if case == "other mesh" else {}
    if case == "one_pass in fsdp":
        inner_steps, options = 1, {"engine": "one_pass"}
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS, inner_steps=inner_steps, **options)
    if case in ("other tasks", "other order") and rank == 3:
        names = ["az"] if case == "other tasks" else ["be", "az"]
    x, y = batch(0)["az"]

    def loss(task: str) -> Tensor:
        assert case == "no loss", "refused before the first forward pass"
        return wrapped(x, y, task)

    losses = {} if case == "no loss" and rank == 3 else {task: functools.partial(loss, task) for task in names}
    with pytest.raises((RuntimeError, ValueError)) as error:
        optimizer.backward(losses)
    assert all(p.grad is None for p in model.parameters())
    return str(error.value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exact_is_refused(found: list[dict[str, Any]], case: str) -> None:
    for each in found:
        assert re.search(REFUSED[case], each["refused"][case]), each["refused"][case]


def test_a_wrapper_that_was_refused_can_be_deleted() -> None:
    """As the errors advise. If the optimizer kept it, it would own the process group until the optimizer goes."""
    wrapper: Any = nn.Linear(2, 2)
    reducer = Wrapped(cast(Any, None), [wrapper])
    found = weakref.ref(wrapper)
    del wrapper
    assert found() is None
    reducer._check_wrappers([])


VIEWS = ["p.grad was set to zero", "p.grad has the gradient of another loss"]


def gradients_in_buckets(rank: int, case: str) -> dict[str, Any]:
    """Steps of DistributedDataParallel, which writes to the buckets that p.grad is a view of, and of replicas."""
    other_loss = case == "p.grad has the gradient of another loss"
    result: dict[str, Any] = {}
    for how in "buckets", "replicas":
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        forward = wrapped if how == "buckets" else model
        if how == "replicas":
            del wrapped  # an optimizer sees it as long as it exists
        optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS, inner_steps=1)
        result[how] = []
        for step in range(3):
            x = torch.randn(3, 4, generator=torch.Generator().manual_seed(4 * step + rank)).double()
            optimizer.zero_grad(set_to_none=other_loss)
            if other_loss:
                forward(x).square().mean().backward()
                if how == "replicas":
                    for p in model.parameters():
                        dist.all_reduce(p.grad)
                        p.grad /= dist.get_world_size()
            optimizer.backward((forward(x) - 1).square().sum(1), tasks=torch.arange(3))
            result[how] += [p.grad.clone() for p in model.parameters()]
            optimizer.step()
        result[how].append(torch.tensor([*optimizer.alpha.values()], dtype=torch.float64))
    return result


@pytest.mark.parametrize("case", VIEWS)
def test_gradients_that_are_views_of_buckets(found: list[dict[str, Any]], case: str) -> None:
    for each in found:
        run = each["views"][case]
        torch.testing.assert_close(run["buckets"], run["replicas"], rtol=1e-12, atol=1e-14)  # the order of the sums


def scaled(rank: int) -> dict[str, Any]:
    """Sharded parameters with a GradScaler, which sees an infinite gradient in the shard of one process."""
    results: dict[str, Any] = {}
    for scale in 1.0, 64.0:
        torch.manual_seed(0)
        model = nn.Linear(4, 8, bias=False)
        sharded(model)
        optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), ["az", "be"], inner_steps=2)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for step in range(5):
            optimizer.zero_grad()
            y = model(torch.linspace(-1, 1, 4)[None] + rank)
            factor = torch.ones(8)
            if step == 2:
                factor[0] = math.inf
            optimizer.backward({"az": (factor * y).square().mean(), "be": (y - 1).square().mean()}, scaler=scaler)
            if step == 3:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results[str(scale)] = whole(model.weight)
        results[f"skipped-{scale}"] = optimizer.statistics["skipped"]
        results[f"sqnorms-{scale}"] = optimizer.statistics["sqnorms"]
    return results


def test_a_grad_scaler_with_sharded_parameters(found: list[dict[str, Any]]) -> None:
    for each in found:
        run = each["scaled"]
        assert run["skipped-1.0"] == run["skipped-64.0"] == 1
        # The scale is a power of two, so scaling changes no bit.
        assert torch.equal(run["1.0"], run["64.0"]) and torch.equal(run["1.0"], found[0]["scaled"]["1.0"])
        assert run["sqnorms-1.0"] == run["sqnorms-64.0"]


def nonfinite(rank: int) -> str:
    """One process has an infinite loss. All name the task, because all have a shard of its gradient."""
    model = nn.Linear(4, 8)
    sharded(model)
    optimizer = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), TASKS[:2], max_nonfinite=1)
    y = model(torch.ones(1, 4))
    with pytest.raises(cats.NonFiniteError) as error:
        optimizer.backward({"az": y.sum(), "be": y.mean() * (math.inf if rank == 2 else 1.0)})
        optimizer.step()
    return str(error.value)


def test_a_task_that_is_not_finite_is_named(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert "the last one of task 'be'" in each["nonfinite"]


def copied(group: Any) -> list[float]:
    """A copy of an optimizer averages over the same processes."""
    w = nn.Parameter(torch.ones(1))
    optimizer = copy.deepcopy(cats.CATS(torch.optim.SGD([w], lr=1.0), ["az"], process_group=group))
    (own,) = optimizer.param_groups[0]["params"]
    optimizer.backward({"az": (own * dist.get_rank()).sum()})
    return own.grad.tolist()


def test_a_copy_has_the_same_process_group(found: list[dict[str, Any]]) -> None:
    assert [each["copied"] for each in found] == [[0.5], [0.5], [2.5], [2.5]]


def numbers_of_processes(rank: int, pair: Any) -> list[str]:
    """The errors of two processes in a group, which differ, and of which then one fails."""
    errors = []
    w = nn.Parameter(torch.ones(1))
    for rate, task in (1.0 + rank % 2, "az"), (1.0, "xy" if rank % 2 else "az"):
        optimizer = cats.CATS(torch.optim.SGD([w], lr=rate), ["az"], process_group=pair)
        with pytest.raises((RuntimeError, ValueError)) as error:
            optimizer.backward({task: w.sum()})
        errors.append(str(error.value))
    return errors


def test_errors_in_a_group_name_global_ranks(found: list[dict[str, Any]]) -> None:
    for each in found[2:]:
        assert "1.0 in process 2, 2.0 in process 3" in each["numbers"][0]
    assert "process 3 failed with ValueError: unknown task 'xy'" in found[2]["numbers"][1]


def stranger(group: Any) -> str:
    with pytest.raises(ValueError) as error:
        cats.CATS(torch.optim.SGD([nn.Parameter(torch.ones(1))]), 2, process_group=group)
    return str(error.value)


def test_a_group_without_this_process(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["stranger"] == "this process is not in process_group"


def checkpoints(rank: int, pairs: list[Any], folder: Path) -> dict[str, Any] | None:
    """Two processes train and save their shards, then one with the whole parameters, and then four."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as dcp_state
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    groups = {2: pairs[0], 1: dist.new_group([0]), 4: None}
    # async_save talks to the other processes while they train, so it needs a group of its own.
    savers = {2: dist.new_group([0, 1]), 1: dist.new_group([0])}
    meshes = {count: DeviceMesh("cpu", list(range(count))) for count in (2, 4)}
    result = None
    before: Path | None = None
    for count, group in groups.items():
        if rank < count:
            model, optimizer = small(group)
            if count > 1:
                fully_shard(model, mesh=meshes[count])
                optimizer = build_small(model, group)
            names = list(dict(model.named_parameters()))

            def state(model: nn.Module = model, optimizer: cats.MultiTask = optimizer) -> dict[str, Any]:
                return {
                    "model": dcp_state.get_model_state_dict(model),
                    "optimizer": dcp_state.get_optimizer_state_dict(model, optimizer),
                }

            if before is not None:
                read = state()
                dcp.load(read, checkpoint_id=before, process_group=group)
                dcp_state.set_model_state_dict(model, read["model"])
                dcp_state.set_optimizer_state_dict(model, optimizer, read["optimizer"])
            take_steps(model, optimizer, 3)
            result = {name: whole(p) for name, p in zip(names, model.parameters(), strict=True)}
            result |= {"alpha": optimizer.alpha, "statistics": optimizer.statistics}
            if count in savers:
                saved = dcp.async_save(
                    state(), checkpoint_id=folder / str(count), process_group=savers[count], no_dist=count == 1
                )
                take_steps(model, optimizer, 1)  # must not change what is saved
                saved.result()
        dist.barrier()
        before = folder / str(count)
    return result


def small(group: Any = None) -> tuple[nn.Module, cats.MultiTask]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    return model, build_small(model, group)


def build_small(model: nn.Module, group: Any = None) -> cats.MultiTask:
    base = torch.optim.AdamW(model.parameters(), lr=0.05)
    return cats.CATS(base, TASKS, inner_steps=2, alpha_lr=0.5, process_group=group)


def take_steps(model: nn.Module, optimizer: cats.MultiTask, count: int) -> None:
    """All processes have the same rows."""
    for _ in range(count):
        step = optimizer.statistics["step"]
        y = model(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4) + step)
        optimizer.backward({task: (y[:, n] - n).square().mean() for n, task in enumerate(TASKS)})
        optimizer.step()
        optimizer.zero_grad()


def test_two_processes_save_and_one_and_four_go_on(found: list[dict[str, Any]]) -> None:
    model, optimizer = small()
    take_steps(model, optimizer, 9)
    for each in found:
        run = each["checkpoints"]
        assert run["statistics"]["step"] == 9 and run["statistics"]["task_gradient_steps"] == 4
        # float64: only the order of the sums differs
        assert run["alpha"] == pytest.approx(optimizer.alpha, rel=1e-12)
        assert run["statistics"]["sqnorms"] == pytest.approx(optimizer.statistics["sqnorms"], rel=1e-12)
        for name, value in model.named_parameters():
            torch.testing.assert_close(run[name], value.detach(), rtol=1e-12, atol=1e-14)
