"""The engines inside the optimizer: the same numbers as per_task, over one or more backward() calls."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cats
from cats.engines.one_pass import run, segments

K, B, T, V = 3, 7, 4, 11
IDS = torch.tensor([0, 2, 1, 0, 2, 2, 0])


class Tiny(nn.Module):
    """An embedding tied with the output, Linear layers, a norm, and a position added."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, 6)
        self.position = nn.Parameter(torch.randn(T, 6))
        self.layers = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(dropout), nn.Linear(9, 6))
        self.norm = nn.LayerNorm(6)
        self.double()

    def forward(self, x):
        h = self.embedding(x) + self.position
        return F.linear(self.norm(h + self.layers(h)), self.embedding.weight)


def losses_of(model, x, y):
    return F.cross_entropy(model(x).transpose(1, 2), y, reduction="none")  # (B, T)


def data(seed=1, batch=B):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(V, (2, batch, T), generator=generator)


def optimizer(model, engine, **settings):
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return cats.CATS(base, K, inner_steps=1, alpha_lr=0.5, engine=engine, model=model, **settings)


def numbers(opt):
    return {name: dict(opt.statistics[name]) for name in ("losses", "dots")} | {"alpha": opt.alpha}


def assert_same(a, b, rtol=1e-10):
    for name, values in a.items():
        assert list(values) == list(b[name])
        assert list(values.values()) == pytest.approx(list(b[name].values()), rel=rtol, abs=1e-12)


def train(engine, steps=4, calls=(1, 1, 1, 1), **settings):
    model = Tiny()
    opt = optimizer(model, engine, **settings)
    seen = []
    for step in range(steps):
        x, y = data(step)
        opt.zero_grad()
        for part in torch.arange(B).tensor_split(calls[step]):
            opt.backward(losses_of(model, x[part], y[part]), tasks=IDS[part])
        opt.step()
        seen.append(numbers(opt))
    return model, opt, seen


@pytest.mark.parametrize("calls", [(1, 1, 1, 1), (2, 2, 2, 2)], ids=["one call", "two calls"])
@pytest.mark.parametrize("form", ["rows", "segments", "blocks"])
def test_one_pass_gives_the_numbers_of_per_task(calls, form, monkeypatch):
    if form == "segments":  # for such small layers too
        monkeypatch.setattr(segments, "_ROWS", 1)
        monkeypatch.setattr(segments, "_MULTIPLICATIONS", {"cpu": 1})
        monkeypatch.setattr(segments, "_ELEMENTS", 60)  # parts of a weight
    elif form == "blocks":
        monkeypatch.setattr(run, "_BLOCK", 100)
    expected, _, numbers_expected = train("per_task", calls=calls)
    model, opt, seen = train("one_pass", calls=calls)
    for a, b in zip(seen, numbers_expected, strict=True):
        assert_same(a, b)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert opt.statistics["engine"] == "one_pass"


def test_per_task_with_ids_is_per_task_with_one_loss_per_task():
    model, x, y = Tiny(), *data()
    opt, other = optimizer(model, "per_task"), optimizer(model, "per_task")
    opt.backward(losses_of(model, x, y), tasks=IDS)
    ids = opt.param_groups[0]["params"][0].grad.clone()
    opt.zero_grad()
    loss = losses_of(model, x, y)
    other.backward([loss[n == IDS].mean() for n in range(K)])
    torch.testing.assert_close(other.param_groups[0]["params"][0].grad, ids)


def test_auto_takes_one_pass_and_says_why(caplog):
    with caplog.at_level(logging.INFO, "cats"):
        _, opt, _ = train("auto")
    assert opt.statistics["engine"] == "one_pass" and "rows" in opt.statistics["engine_reason"]
    assert [record.message for record in caplog.records] == ["engine one_pass: the tasks of the rows are known"]


def test_auto_logs_each_choice_once(caplog):
    """Also if the form of the losses alternates from step to step."""
    model, (x, y) = Tiny(), data()
    opt = optimizer(model, "auto")
    with caplog.at_level(logging.INFO, "cats"):
        for step in range(4):
            opt.zero_grad()
            loss = losses_of(model, x, y)
            if step % 2:
                opt.backward([loss[n == IDS].mean() for n in range(K)])
            else:
                opt.backward(loss, tasks=IDS)
            opt.step()
    assert [record.message.split(":")[0] for record in caplog.records] == ["engine one_pass", "engine per_task"]
    assert caplog.records[1].message.endswith("3 gradients take 5.3 KiB")  # of 225 numbers in float64


def test_another_number_of_calls_makes_the_numbers_unknown_once():
    _, opt, seen = train("one_pass", calls=(1, 2, 2, 2))
    assert (opt.statistics["step"], opt.statistics["task_gradient_steps"]) == (4, 3)
    assert seen[1]["alpha"] == seen[0]["alpha"] and seen[1]["dots"] == seen[0]["dots"]  # not updated
    _, _, expected = train("per_task", calls=(1, 2, 2, 2))
    assert set(seen[3]["dots"]) == set(expected[3]["dots"]) and seen[3]["alpha"] != seen[1]["alpha"]


def test_the_last_call_may_be_named():
    """Then the number of calls may change, and nothing is computed twice."""
    seen = []
    for engine in ("per_task", "one_pass"):
        model = Tiny()
        opt = optimizer(model, engine)
        for step, calls in enumerate((1, 3, 1, 2)):
            x, y = data(step)
            opt.zero_grad()
            for i, part in enumerate(torch.arange(B).tensor_split(calls)):
                opt.backward(losses_of(model, x[part], y[part]), tasks=IDS[part], last=i == calls - 1)
            opt.step()
            seen.append(numbers(opt))
    for a, b in zip(seen[:4], seen[4:], strict=True):
        assert_same(a, b)


def test_gradients_of_other_code_are_no_part_of_the_numbers():
    model, x, y = Tiny(), *data()
    seen = []
    for engine in ("per_task", "one_pass"):
        opt = optimizer(model, engine)
        opt.zero_grad()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for part in torch.arange(B).tensor_split(2):
            opt.backward(losses_of(model, x[part], y[part]), tasks=IDS[part])
        grads = [p.grad.clone() for p in model.parameters()]
        for group in opt.param_groups:
            group["lr"] = 0.0
        opt.step()
        seen.append((numbers(opt), grads))
    assert_same(seen[0][0], seen[1][0])
    for a, b in zip(seen[0][1], seen[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_batch_normalisation_is_refused_by_name_and_auto_takes_per_task():
    x, y = data()

    class Mixing(Tiny):
        def forward(self, x):
            h = self.embedding(x)
            return F.linear(F.batch_norm(h.flatten(0, 1), None, None, training=True).view_as(h), self.embedding.weight)

    model = Mixing()
    with pytest.raises(RuntimeError, match=r"embedding.weight.*batch normalisation"):
        optimizer(model, "one_pass").backward(losses_of(model, x, y), tasks=IDS)
    assert all(p.grad is None for p in model.parameters())
    opt = optimizer(model, "auto")
    opt.backward(losses_of(model, x, y), tasks=IDS)
    opt.step()
    assert opt.statistics["engine"] == "per_task" and "batch normalisation" in opt.statistics["engine_reason"]


def test_rows_of_another_number_need_rows():
    model, x, y = nn.Embedding(V, 6).double(), *data()
    keep = torch.arange(B * T) % 3 != 0
    ids = IDS.repeat_interleave(T)[keep]
    opt = optimizer(model, "one_pass")

    def loss():
        return F.cross_entropy(
            model(x.flatten()[keep]) @ torch.ones(6, V).double(), y.flatten()[keep], reduction="none"
        )

    def by_example():
        return torch.zeros(B).double().index_add(0, torch.arange(B).repeat_interleave(T)[keep], loss())

    with cats.engines.rows(ids):
        opt.backward(by_example(), tasks=IDS)
    opt.step()
    assert opt.statistics["engine"] == "one_pass"


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        (torch.tensor([0, 1]), ValueError, r"shape \(2,\).*\(7, 4\)"),
        (torch.tensor([0.0] * B), TypeError, "integer"),
        (torch.tensor([3] * B), ValueError, "index 3; there are 0 to 2"),
        (["x"] * B, ValueError, "unknown task 'x'"),
        ("az", TypeError, "str"),
    ],
)
def test_tasks_that_are_refused(ids, error, match):
    model, x, y = Tiny(), *data()
    with pytest.raises(error, match=match):
        optimizer(model, "auto").backward(losses_of(model, x, y), tasks=ids)


def test_entries_of_no_task_do_not_count():
    model, x, y = Tiny(), *data()
    ids = IDS[:, None].expand(B, T).clone()
    ids[:, 2:] = -1
    opt, other = optimizer(model, "per_task"), optimizer(model, "per_task")
    opt.backward(losses_of(model, x, y), tasks=ids)
    grad = model.position.grad.clone()
    opt.zero_grad()
    other.backward(losses_of(model, x, y)[:, :2], tasks=IDS)
    torch.testing.assert_close(model.position.grad, grad)


def test_padding_marked_by_entries_of_no_task():
    """With ids (B, T), layers with rows (B, T, ...) need the task of each example."""
    model, x, y = Tiny(), *data()
    ids = IDS[:, None].expand(B, T).clone()
    ids[::2, 2:] = -1
    seen = []
    for engine in ("per_task", "one_pass"):
        opt = optimizer(model, engine)
        opt.zero_grad()
        opt.backward(losses_of(model, x, y), tasks=ids)
        for group in opt.param_groups:
            group["lr"] = 0.0
        opt.step()
        seen.append(numbers(opt))
    assert_same(*seen)


def test_a_hook_that_changes_a_gradient_is_part_of_the_numbers():
    seen = []
    for engine in ("per_task", "one_pass"):
        model, x, y = Tiny(), *data()
        model.layers[0].weight.register_hook(lambda g: 3 * g)
        opt = optimizer(model, engine)
        opt.backward(losses_of(model, x, y), tasks=IDS)
        opt.step()
        seen.append(numbers(opt))
    assert_same(*seen)


def test_a_task_of_weight_zero_has_numbers_too():
    seen = []
    for engine in ("per_task", "one_pass"):
        model, x, y = Tiny(), *data()
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        opt = cats.CATS(base, K, inner_steps=1, simplex="lagrangian", alpha_lr=50.0, engine=engine)
        for _ in range(3):
            opt.zero_grad()
            opt.backward(losses_of(model, x, y), tasks=IDS)
            opt.step()
            seen.append(numbers(opt))
    assert 0 in seen[1]["alpha"].values() or 0 in seen[0]["alpha"].values()
    for a, b in zip(seen[:3], seen[3:], strict=True):
        assert_same(a, b, rtol=1e-8)


@pytest.mark.parametrize("engine", ["per_task", "one_pass", "two_pass", "forward_mode"])
def test_a_step_leaves_no_graph_to_the_collector_of_cycles(engine):
    """One of the tasks has weight 0: one_pass keeps the graph for its gradient."""
    model, x, ids = nn.Linear(4, 1), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    opt = cats.CATS(torch.optim.Adam(model.parameters()), K, inner_steps=1, engine=engine, prior=[1, 1, 0])
    alive = []

    def losses():
        z = model(x)
        alive.append(weakref.ref(z))
        return z.pow(2)[:, 0]

    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            opt.zero_grad()
            opt.backward(losses if engine == "forward_mode" else losses(), tasks=ids)
            opt.step()
        left = sum(each() is not None for each in alive)  # before anything can be collected
    finally:
        gc.enable()
    assert alive and left == 0


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="parameters of this torch have no grad_dtype")
def test_gradients_in_another_dtype_than_the_parameters(monkeypatch):
    monkeypatch.setattr(segments, "_ROWS", 0)
    for multiplications in (0, 2**40):  # both ways to compute a Linear layer
        monkeypatch.setattr(segments, "_MULTIPLICATIONS", {"cpu": multiplications})
        seen = []
        for engine in ("per_task", "one_pass", "two_pass"):
            model, x, y = Tiny().bfloat16(), *data()
            for p in model.parameters():
                p.grad_dtype = torch.float32
            base = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
            opt = cats.CATS(base, K, inner_steps=1, alpha_lr=0.5, engine=engine)
            for _ in range(3):  # the first step checks its result, so it does not compute layers task by task
                opt.zero_grad()
                opt.backward(losses_of(model, x, y), tasks=IDS, last=True)
            assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
            for p in model.parameters():  # torch's optimizers do not mix dtypes
                p.grad_dtype, p.grad = None, p.grad.bfloat16()
            opt.step()
            seen.append(numbers(opt) | {"alpha": {}})
        assert_same(seen[0], seen[1], rtol=0.05)
        assert_same(seen[0], seen[2], rtol=0.05)


def test_losses_that_share_a_graph_in_two_backward_passes():
    match = (
        "Pass losses that share a graph as tensors in one backward.. call, or compute all of it inside each callable"
    )
    model = nn.Linear(4, 1)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    x, ids = torch.ones(4, 4), torch.tensor([0, 1, 0, 1])
    for engine in ("per_task", "one_pass", "two_pass", "auto"):
        for inner_steps in (1, 100):
            opt = cats.CATS(base, 2, inner_steps=inner_steps, engine=engine)
            losses = model(x)[:, 0].square()
            if engine != "one_pass":
                with pytest.raises(RuntimeError, match=match):
                    opt.backward([lambda losses=losses, n=n: losses[n] for n in range(2)])
                assert model.weight.grad is None
            losses = model(x)[:, 0].square()
            with pytest.raises(RuntimeError, match=match):
                for _ in range(2):
                    opt.backward(losses, tasks=ids, last=True)
            opt.zero_grad()
            losses = model(x)[:, 0].square()
            losses.mean().backward(retain_graph=True)  # a penalty that comes first
            opt.backward(losses, tasks=ids)
            opt.step()
            opt.zero_grad()


def test_compiled_layers_in_checkpoints_stay_uncompiled_in_the_backward_pass():
    """A checkpoint runs its layers again there, and refuses another number of saved tensors."""
    model, (x, y) = Tiny(), data()
    layers = torch.compile(model.layers, backend="aot_eager")
    seen = []
    for engine in ("per_task", "one_pass"):
        opt = optimizer(model, engine)

        def losses():
            h = model.embedding(x)
            h = model.norm(h + torch.utils.checkpoint.checkpoint(layers, h, use_reentrant=False))
            return F.cross_entropy(F.linear(h, model.embedding.weight).transpose(1, 2), y, reduction="none")

        for group in opt.param_groups:
            group["lr"] = 0.0
        opt.backward(losses, tasks=IDS)
        opt.step()
        opt.zero_grad()
        seen.append(numbers(opt))
    assert_same(*seen)


def test_a_compiled_model_needs_a_callable(monkeypatch):
    x, y = data()
    model = Tiny()
    compiled = torch.compile(model, backend="aot_eager")
    opt = optimizer(model, "one_pass")
    with pytest.raises(RuntimeError, match=r"compiled.*force_eager"):
        opt.backward(losses_of(compiled, x, y), tasks=IDS)
    opt.zero_grad()
    opt.backward(lambda: losses_of(compiled, x, y), tasks=IDS)
    opt.step()
    assert opt.statistics["engine"] == "one_pass"


def test_checkpointed_activations_give_the_same_numbers():
    class Saving(Tiny):
        def forward(self, x):
            h = self.embedding(x) + self.position
            h = h + torch.utils.checkpoint.checkpoint(self.layers, h, use_reentrant=False)
            h = torch.utils.checkpoint.checkpoint(self.norm, h, use_reentrant=False)
            return F.linear(h, self.embedding.weight)

    seen = []
    for kind in (Tiny, Saving):
        model, x, y = kind(dropout=0.5), *data()
        opt = optimizer(model, "one_pass")
        for step in range(2):
            torch.manual_seed(step)
            opt.zero_grad()
            opt.backward(losses_of(model, x, y), tasks=IDS)
            opt.step()
        seen.append(numbers(opt))
    assert_same(*seen)


def test_autocast_and_a_scaler():
    seen = []
    for engine, dtype in (("per_task", torch.float32), ("one_pass", torch.float32), ("one_pass", torch.bfloat16)):
        model, x, y = Tiny().float(), *data()
        opt = optimizer(model, engine)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float().transpose(1, 2), y, reduction="none")
        opt.backward(loss, tasks=IDS, scaler=scaler)
        scaler.step(opt)
        scaler.update()
        seen.append(numbers(opt))
    assert_same(seen[0], seen[1], rtol=1e-5)
    assert_same(seen[0] | {"alpha": {}}, seen[2] | {"alpha": {}}, rtol=0.05)  # bfloat16 has 8 bits


@pytest.mark.parametrize("tasks", [2, 40])
def test_a_layer_is_freed_as_soon_as_its_gradient_is_final(tasks, monkeypatch):
    """In the second step it is known that ḡ is final in backward(). No more than one layer's rows are held then."""
    alive, held = weakref.WeakSet(), []

    class Tracked(run.Record):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            alive.add(self)
            held.append(sum(each.delta.numel() for each in alive))

    monkeypatch.setattr(run, "Record", Tracked)
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(5, 5), nn.Tanh())))
    opt = cats.CATS(torch.optim.SGD(model.parameters(), lr=0.1), tasks, inner_steps=1, engine="one_pass")
    for layers in (6, 1):
        held.clear()
        opt.zero_grad()
        opt.backward(model(torch.randn(40, 5)).square().mean(1), tasks=torch.arange(40) % tasks)
        opt.step()
        assert max(held) == layers * 40 * 5 and not alive


def test_a_share_of_the_rows_gives_an_unbiased_estimate():
    model, x, y = Tiny(), *data(batch=28)
    found = {}
    for rows, count in ((None, 1), (0.25, 60)):
        base = torch.optim.SGD(model.parameters(), lr=0.0)
        opt = cats.CATS(base, K, inner_steps=1, strength=0.0, engine="one_pass", rows=rows)  # alpha stays
        found[rows] = []
        for _ in range(count):
            opt.zero_grad()
            opt.backward(losses_of(model, x, y), tasks=IDS.repeat(4))
            opt.step()
            found[rows].append(torch.tensor(list(opt.statistics["dots"].values())))
    exact, estimates = found[None][0], torch.stack(found[0.25])
    error = estimates.std(0) / len(estimates) ** 0.5
    assert (error > 0).all() and ((estimates.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize("order", ["examples first", "tokens first"])
def test_losses_and_tasks_per_token_of_padded_batches(order):
    """The losses are flat (B * T,), or the layers have (T, B, d) with T = B."""

    class Sequences(Tiny):
        def forward(self, x):
            return super().forward(x) if order == "examples first" else super().forward(x.t()).transpose(0, 1)

    seen = []
    ids = torch.tensor([0, 2, 1, 0])
    for engine in ("per_task", "one_pass"):
        model, (x, y) = Sequences(), data(batch=T)
        opt = optimizer(model, engine)
        loss = losses_of(model, x, y)
        if order == "examples first":
            opt.backward(loss.flatten(), tasks=ids.repeat_interleave(T))
        else:  # the rows are found by masked backward passes: both sizes are T
            opt.backward(loss, tasks=ids)
        opt.step()
        seen.append(numbers(opt))
    assert_same(*seen)


def test_numbers_that_are_never_known_give_a_warning():
    with pytest.warns(UserWarning, match="number changes: pass last="):
        _, opt, seen = train("one_pass", steps=8, calls=(1, 2, 1, 2, 1, 2, 1, 2))
    assert opt.statistics["task_gradient_steps"] == 1 and seen[-1]["alpha"] == seen[0]["alpha"]


def test_an_empty_batch_is_refused_in_one_line():
    model, x, y = Tiny(), *data(batch=0)
    with pytest.raises(ValueError, match="at least one task"):
        optimizer(model, "auto").backward(losses_of(model, x, y), tasks=IDS[:0])
