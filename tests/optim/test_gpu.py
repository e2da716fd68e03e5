"""Steps on a GPU: the numbers of the CPU, autocast and GradScaler, torch.compile, checkpoints that change device."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cats
from cats import weighting
from tests.weighting.common import Net

pytestmark = pytest.mark.gpu

K, ROWS, WIDTH, CLASSES = 3, 24, 40, 7
TASKS = ["az", "be", "gl"]
IDS = torch.arange(ROWS) * 5 % 7 % K  # the task of each row


class Model(nn.Module):
    """An embedding, layers, a norm and an output, large enough that one_pass takes each of its ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        h = self.embedding(x)
        return self.output(self.norm(h + self.layers(h)))


def data(step, device):
    draw = torch.Generator().manual_seed(step)
    return tuple(torch.randint(CLASSES, (ROWS, 5), generator=draw).to(device) for _ in "xy")


def row_losses(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten(), reduction="none").view(x.shape).mean(1)


def losses_of(model, step, device, form):
    """form: "rows" with a task each, or "tensors" or "callables" with a loss for each task."""
    x, y = data(step, device)
    if form == "rows":
        return row_losses(model, x, y)
    ids = IDS.to(device)

    def one(n):
        return row_losses(model, x[ids == n], y[ids == n]).mean()

    calls = {task: functools.partial(one, n) for n, task in enumerate(TASKS)}
    return calls if form == "callables" else {task: call() for task, call in calls.items()}


def train(device, engine, form, dtype=torch.float64, steps=6, **settings):
    """The optimizer, the model and {losses, dots, alpha} of each step."""
    model = Model().to(device, dtype)
    base = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    optimizer = cats.CATS(base, TASKS, inner_steps=2, alpha_lr=0.3, engine=engine, model=model, **settings)
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        more = {"tasks": IDS.to(device)} if form == "rows" else {}
        optimizer.backward(losses_of(model, step, device, form), **more)
        optimizer.step()
        numbers = {name: dict(optimizer.statistics[name]) for name in ("losses", "dots")}
        seen.append(numbers | {"alpha": optimizer.alpha})
    return optimizer, model, seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("engine", "form"),
    [
        ("per_task", "tensors"),
        ("per_task", "callables"),
        ("per_task", "rows"),
        ("one_pass", "rows"),
        ("two_pass", "tensors"),
        ("two_pass", "callables"),
        ("forward_mode", "callables"),
    ],
)
def test_engines_give_the_numbers_of_the_cpu(engine, form, dtype):
    expected = train("cpu", "per_task", form)[2]
    optimizer, model, seen = train("cuda", engine, form, dtype)
    assert optimizer.statistics["engine"] == engine and next(model.parameters()).is_cuda
    # The losses are computed in float32; AdamW divides by small numbers, so their rounding grows from step to step.
    for step, (a, b) in enumerate(zip(seen, expected, strict=True)):
        for name in a:
            scale = max(map(abs, b[name].values()), default=0)
            close = pytest.approx(list(b[name].values()), rel=2e-3, abs=1e-3 * scale)
            assert list(a[name].values()) == close, (step, name)


MAKERS = {
    kind.__name__: kind
    for kind in [
        weighting.RLW,
        weighting.GradNorm,
        weighting.GroupDRO,
        weighting.CVaRDRO,
        weighting.ChiSquareDRO,
        weighting.Uncertainty,
        weighting.DWA,
        weighting.FAMO,
        weighting.MGDA,
        weighting.PCGrad,
        weighting.GradVac,
        weighting.GradDrop,
    ]
} | {
    "CATS": lambda: weighting.CATS(inner_steps=1),
    "lagrangian": lambda: weighting.CATS(inner_steps=1, simplex="lagrangian", loss_term=True, multiplier_lr=0.1),
    "TargetProjection": lambda: weighting.TargetProjection("gl"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_weightings_train_as_on_the_cpu(name):
    """In float64, so that only the order of sums differs."""
    trained = []
    for device in ("cpu", "cuda"):
        net = Net().to(device)
        net.x, net.y = net.x.to(device), net.y.to(device)
        optimizer = cats.MultiTask(torch.optim.SGD(net.parameters(), lr=0.1), TASKS, MAKERS[name]())
        for _ in range(8):  # the loss of one task is turned round, so that gradients conflict
            optimizer.zero_grad()
            optimizer.backward([lambda n=n, net=net: net.loss(n) * (1 - 2 * (n == 1)) + 9 for n in range(K)])
            optimizer.step()
        trained.append([p.detach().cpu() for p in net.parameters()])
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("engine", ["per_task", "one_pass", "two_pass"])
def test_fp16_with_a_scaler(engine):
    """The scaler starts too high: some steps are skipped, and none of the others sees it."""
    model = Model().cuda()
    base = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    optimizer = cats.CATS(base, TASKS, inner_steps=2, alpha_lr=0.3, engine=engine, model=model)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**30)
    first = last = None
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            losses = losses_of(model, 0, "cuda", "rows")
        optimizer.backward(losses, tasks=IDS.cuda(), scaler=scaler)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        last = losses.mean().item()
        first = last if first is None else first
    assert 0 < optimizer.statistics["skipped"] < 30 and scaler.get_scale() < 2.0**30
    assert last < 0.9 * first  # one batch is learnt by heart
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sum(optimizer.alpha.values()) == pytest.approx(1)


def test_a_compiled_model():
    found = []
    for compiled in (False, True):
        model = Model().cuda()
        forward = torch.compile(model) if compiled else model
        base = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        optimizer = cats.CATS(base, TASKS, inner_steps=2, alpha_lr=0.3, model=model)
        for step in range(4):
            optimizer.zero_grad()
            optimizer.backward(losses_of(forward, step, "cuda", "callables"))
            optimizer.step()
        found.append(list(optimizer.alpha.values()))
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_a_checkpoint_moves_between_devices():
    """Saved on the GPU, loaded on the CPU: the next steps are those that the GPU makes."""
    optimizer, model, _ = train("cuda", "per_task", "tensors")
    here = copy.deepcopy(model).cpu()
    base = torch.optim.AdamW(here.parameters(), lr=1e-2, fused=True)
    other = cats.CATS(base, TASKS, inner_steps=2, alpha_lr=0.3, engine="per_task", model=here)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch may share the tensors
    assert all(p.device.type == "cpu" for state in other.state.values() for p in state.values() if p.dim())
    for step in range(4):
        for each, net, device in ((optimizer, model, "cuda"), (other, here, "cpu")):
            each.zero_grad()
            each.backward(losses_of(net, step, device, "tensors"))
            each.step()
    assert list(optimizer.alpha.values()) == pytest.approx(list(other.alpha.values()), rel=1e-3)


@contextlib.contextmanager
def counted_waits():
    """A list that gets an entry for each time that the host waits for the GPU."""
    waits = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # warns that it does not see all kinds of waiting
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [w for w in seen if "called a synchronizing CUDA operation" in str(w.message)]


@pytest.mark.parametrize("form", ["indices", "names", "tensors", "callables"])
def test_an_inner_step_waits_once_for_the_device(form):
    """backward() of a step that does not update α does not wait, if the tasks of the entries are on the host: a tensor
    on the CPU, or names. step() waits once: it reads the losses and whether the gradients are finite.
    """
    model = Model().cuda()
    base = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    optimizer = cats.CATS(base, TASKS, inner_steps=3, model=model)
    more = {"indices": {"tasks": IDS}, "names": {"tasks": [TASKS[n] for n in IDS.tolist()]}}.get(form, {})
    for step in range(8):
        x, y = data(step, "cuda")
        parts = [(x[n::K], y[n::K]) for n in range(K)]
        losses = [lambda a=a, b=b: row_losses(model, a, b).mean() for a, b in parts]
        if form == "tensors":
            losses = [one() for one in losses]
        elif more:
            losses = row_losses(model, x, y)
        optimizer.zero_grad()
        with counted_waits() as in_backward:
            optimizer.backward(losses, **more)
        with counted_waits() as in_step:
            optimizer.step()
        if step >= 3 and step % 3 != 2:  # the first steps set things up
            assert (len(in_backward), len(in_step)) == (0, 1), [str(w) for w in in_backward + in_step]
