"""The engine one_pass beside other code: other optimizers, hooks, views, and data that it does not know.

Each result is compared with one backward pass per task of plain autograd, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import cats
from tests.engines.oracle import Watched

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
IDS = torch.arange(2).repeat_interleave(64)


@pytest.fixture(autouse=True)
def in_double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def expected(losses: Tensor, ids: Tensor, params: list[Tensor]) -> tuple[list[Tensor | None], list[float]]:
    """ḡ of the sum of the tasks' mean losses, and <g_n, ḡ>."""
    per_task = losses.reshape(len(ids), -1).mean(1)
    rows = [
        torch.autograd.grad(per_task[ids == n].mean(), params, retain_graph=True, allow_unused=True) for n in range(2)
    ]
    combined = [
        None if a is None and b is None else sum(x for x in (a, b) if x is not None) for a, b in zip(*rows, strict=True)
    ]
    dots = [
        sum(float((g * c).sum()) for g, c in zip(row, combined, strict=True) if g is not None and c is not None)
        for row in rows
    ]
    return combined, dots  # type: ignore[return-value]


def check_steps(
    losses_of: Callable[[int], Tensor],
    params: list[Tensor],
    ids: Tensor = IDS,
    engine: str = "one_pass",
    steps: int = 9,
    rows: float | None = None,
) -> cats.MultiTask:
    """Nine steps: those at which the engine checks what it knows, and those in between."""
    optimizer = cats.MultiTask(torch.optim.SGD(params, lr=0.01), 2, Watched([1.0, 1.0]), engine=engine, rows=rows)
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        losses = losses_of(step)
        gradient, dots = expected(losses, ids, params)
        torch.manual_seed(step)
        optimizer.backward(losses_of(step), tasks=ids, last=True)
        for p, g in zip(params, gradient, strict=True):
            assert (p.grad is None) == (g is None), step
            if p.grad is not None and g is not None:
                torch.testing.assert_close(p.grad, g, **CLOSE)
        optimizer.step()
        found = optimizer.statistics["dots"]
        torch.testing.assert_close(torch.tensor([found[0], found[1]]), torch.tensor(dots), **CLOSE)
    return optimizer


def test_inputs_that_require_a_gradient_that_nobody_asks_for() -> None:
    """An embedding of another optimizer, or data: the backward pass does not run for them."""
    embedding, net = nn.Embedding(50, 256), nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
    words = torch.randint(50, (128,))
    check_steps(lambda _: net(embedding(words)).squeeze(-1) ** 2, list(net.parameters()))
    assert embedding.weight.grad is None
    x = torch.randn(128, 256, requires_grad=True)
    check_steps(lambda _: net[0](x).square().mean(1), list(net[0].parameters()))


def test_a_dimension_of_time_whose_size_was_one() -> None:
    """(T, B) flattened: with T = 1 it does not show that the tasks repeat as a whole."""
    net, ids = nn.Linear(6, 1), torch.tensor([0, 1, 0, 1])
    lengths = (1, 1, 3, 1, 4, 2)

    def losses(step: int) -> Tensor:
        return net(torch.randn(lengths[step], 4, 6)).squeeze(-1).square().mean(0)

    check_steps(losses, list(net.parameters()), ids, steps=len(lengths))


def test_a_hook_after_the_gradient_runs_in_each_step() -> None:
    net = nn.Sequential(nn.Linear(6, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
    calls: list[int] = []
    net[2].weight.register_post_accumulate_grad_hook(lambda p: calls.append(1))
    check_steps(lambda _: net(torch.randn(128, 6)).squeeze(-1) ** 2, list(net.parameters()))
    assert len(calls) == 9


class Scaled(nn.Module):
    """The hook of a copy of the weight, which autograd does not show. The temperature has no rows of its own."""

    def __init__(self, temperature: bool) -> None:
        super().__init__()
        self.weight, self.temperature = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.zeros(()))
        self.uses = temperature

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.clone()
        weight.register_hook(lambda g: 3 * g)
        y = (x @ weight.t()).squeeze(-1)
        return y.square() * self.temperature.exp() if self.uses else y.square()


@pytest.mark.parametrize("temperature", [False, True])
def test_a_hook_out_of_sight_is_noticed(temperature: bool) -> None:
    net = Scaled(temperature)
    params = [net.weight, net.temperature] if temperature else [net.weight]
    optimizer = check_steps(lambda _: net(torch.randn(128, 6)), params, engine="auto", steps=3)
    assert "a use of a parameter was missed" in optimizer.statistics["engine_reason"]
    optimizer.zero_grad()
    optimizer = cats.MultiTask(torch.optim.SGD(params, lr=0.01), 2, Watched([1.0, 1.0]), engine="one_pass")
    with pytest.raises(RuntimeError, match="a use of a parameter was missed"):
        optimizer.backward(net(torch.randn(128, 6)), tasks=IDS)
    assert all(p.grad is None for p in params)


def test_the_check_is_made_with_a_weight_of_zero() -> None:
    net = Scaled(temperature=False)
    optimizer = cats.MultiTask(torch.optim.SGD([net.weight], lr=0.1), 2, Watched([1.0, 0.0]), engine="one_pass")
    with pytest.raises(RuntimeError, match="a use of a parameter was missed"):
        optimizer.backward(net(torch.randn(128, 6)), tasks=IDS)


UNUSUAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "complex": lambda x, p: (torch.fft.rfft(x) * p[0, :4]).abs().sum(1),
    "complex parameter": lambda x, p: (torch.fft.rfft(x) @ p[:, :4].to(torch.complex128).t()).abs().sum(1),
    "sparse": lambda x, p: torch.mm(x.relu().to_sparse(), p).square().sum(1),
    "slice without bounds": lambda x, p: (x @ torch.ops.aten.slice(p, 0, None, 5)[:, :5].t()).square().sum(1),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_it_does_not_know_goes_to_another_engine(name: str) -> None:
    p = nn.Parameter(torch.randn(6, 6))
    check_steps(lambda _: UNUSUAL[name](torch.randn(128, 6)[:, : 5 if "slice" in name else 6], p), [p], engine="auto")


def test_a_gradient_that_is_also_that_of_a_parameter_outlives_the_call() -> None:
    """x + p with one row: δ of the sum becomes p.grad itself, to which the second backward() call adds."""
    p, last, ids = nn.Parameter(torch.randn(1, 6)), nn.Linear(6, 4), torch.tensor([0])
    params = [p, *last.parameters()]
    x = torch.randn(2, 1, 6)
    losses = [last(each + p).square().sum(1) for each in x]
    gradient = torch.autograd.grad(sum(each.sum() for each in losses), params, retain_graph=True)
    optimizer = cats.MultiTask(torch.optim.SGD(params, lr=0.01), 2, Watched([1.0, 1.0]), engine="one_pass")
    for number, each in enumerate(losses):
        optimizer.backward(each, tasks=ids, last=number == 1)
    optimizer.step()
    dot = sum(float(g.square().sum()) for g in gradient)
    assert optimizer.statistics["dots"] == {0: pytest.approx(dot, rel=1e-9)}


def test_a_bias_with_a_row_for_each_example() -> None:
    """Also in a sample of rows. 0.999 of the 64 rows of a task are all of them, so the numbers are exact."""
    p, weight = nn.Parameter(torch.randn(128, 5)), nn.Parameter(torch.randn(6, 5))
    for rows in None, 0.999:
        check_steps(
            lambda _: torch.addmm(p, torch.randn(128, 6), weight).square().mean(1), [p, weight], steps=3, rows=rows
        )
    optimizer = cats.MultiTask(torch.optim.SGD([p, weight], lr=0.01), 2, Watched([1.0, 1.0]), rows=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.backward(torch.addmm(p, torch.randn(128, 6), weight).square().mean(1), tasks=IDS)
        optimizer.step()
    assert optimizer.statistics["engine"] == "one_pass"
    assert sum(optimizer.statistics["dots"].values()) == pytest.approx(optimizer.statistics["sqnorm"])
