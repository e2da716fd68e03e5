"""A program of a user. Type checkers check it with the installed package: a public type that gets lost is an error."""

from __future__ import annotations

from typing import Any, assert_type

import torch
from torch import Tensor, nn

import cats
from cats import curvature, ops, weighting


def operators() -> None:
    grads: list[list[Tensor | None]] = [[torch.ones(3), torch.ones(2, 2)], [torch.zeros(3), None]]
    weights = torch.tensor([0.5, 0.5])
    combined, dots, sqnorms = ops.combine_dots(grads, weights)
    assert_type(combined, list[Any])  # tensors, and None where no task has a gradient
    assert_type(dots, Tensor)
    assert_type(sqnorms, Tensor)
    assert_type(ops.gram(grads), Tensor)
    assert_type(ops.backends(), dict[str, str | None])


def optimizers(model: nn.Module) -> None:
    base = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer = cats.CATS(base, tasks=["az", "be"], prior={"az": 0.7, "be": 0.3}, direction="momentum")
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    losses = {task: (model(x) - y).square().mean() for task in ("az", "be")}
    optimizer.backward(losses)
    optimizer.step()
    optimizer.zero_grad()
    assert_type(optimizer.alpha, dict[str | int, float])
    assert_type(optimizer.state_dict(), dict[str, Any])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    assert_type(scheduler.get_last_lr(), list[float | Tensor])


def weightings(model: nn.Module) -> None:
    base = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer = cats.MultiTask(base, tasks=2, weighting=weighting.Static([1.0, 2.0]))
    ids = torch.tensor([0, 1, 1])
    optimizer.backward(model(torch.randn(3, 3)).square().mean(1), tasks=ids)
    optimizer.step()


class Softmax(weighting.Weighting):
    """A weighting of the user's own."""

    losses_only = True

    def start(self, tasks: int) -> None:
        self.current = torch.full((tasks,), 1 / tasks)

    def weights(self) -> Tensor:
        return self.current

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Any) -> None:
        self.current[present] = losses.softmax(0)


def landscape(model: nn.Module) -> None:
    x = torch.randn(4, 3)
    found = curvature.eigenvalues(lambda: model(x).square().mean(), model)
    assert_type(found.top, float)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    operators()
    optimizers(model)
    weightings(model)
    cats.MultiTask(torch.optim.SGD(model.parameters()), tasks=["az", "be"], weighting=Softmax())
    landscape(model)


if __name__ == "__main__":
    main()
