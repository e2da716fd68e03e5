"""What the engines must give, computed task by task by plain autograd in float64, and a step of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import cats
from tests.engines.zoo.net import TASKS, Net

ENGINES = ("per_task", "two_pass", "forward_mode", "one_pass", "auto")
WEIGHTS = (
    0.5,
    2.0,
    1.25,
    0.25,
    1.0,
    3.0,
    0.75,
    1.5,
)  # of the tasks; binary fractions, so that float32 does not round them
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of ḡ relative to ‖ḡ‖, and of <g_n, ḡ> to ‖g_n‖ ‖ḡ‖


class Watched(cats.weighting.Static):
    """Fixed weights, with the numbers of every task in every step."""

    period = 1

    def update(self, *numbers: Any) -> None:
        pass


@dataclass
class Numbers:
    """What every engine must give.

    Attributes:
        gradients: {task: g_n, one tensor for each parameter that is trained}, in float64.
        shared: the positions of the parameters that enter the inner products and norms.
        weights: of all tasks.
    """

    gradients: dict[int, list[Tensor]]
    shared: list[int]
    weights: Sequence[float] = WEIGHTS

    @cached_property
    def combined(self) -> list[Tensor]:
        """ḡ."""
        rows = zip(*self.gradients.values(), strict=True)
        return [
            torch.stack([self.weights[n] * g for n, g in zip(self.gradients, row, strict=True)]).sum(0) for row in rows
        ]

    @cached_property
    def norm(self) -> float:
        """‖ḡ‖, over all parameters."""
        return sum(float(g.square().sum()) for g in self.combined) ** 0.5

    @cached_property
    def dots(self) -> dict[int, float]:
        """{task: <g_n, ḡ>}."""
        return {n: sum(float((g[i] * self.combined[i]).sum()) for i in self.shared) for n, g in self.gradients.items()}

    @cached_property
    def norms(self) -> dict[int, float]:
        """{task: ‖g_n‖}."""
        return {n: sum(float(g[i].square().sum()) for i in self.shared) ** 0.5 for n, g in self.gradients.items()}

    def __add__(self, other: Numbers) -> Numbers:
        """The numbers of a step with the losses of both."""
        gradients = {n: self.gradients.get(n) or other.gradients[n] for n in self.gradients | other.gradients}
        for n in self.gradients.keys() & other.gradients.keys():
            gradients[n] = [a + b for a, b in zip(self.gradients[n], other.gradients[n], strict=True)]
        return Numbers(gradients, self.shared, self.weights)


@dataclass
class Batch:
    """A batch, and what every engine must give for it.

    Attributes:
        ids: (B,) the tasks of the examples. inputs: what the net gets. seed: of the dropout masks.
    """

    ids: Tensor
    inputs: tuple[Any, ...]
    seed: int
    expected: Numbers


def seed_all(seed: int) -> None:
    """Seeds torch's generator of the CPU. torch.manual_seed would take longer than a step of a small net."""
    torch.default_generator.manual_seed(seed)


def build(architecture: Callable[[], Net], dtype: torch.dtype, seed: int = 0) -> Net:
    seed_all(seed)
    return architecture().to(dtype)


def trained(net: Net) -> list[Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


def draw(architecture: Callable[[], Net], ids: Tensor, dtype: torch.dtype, seed: int) -> Batch:
    """A batch for this architecture. Its numbers are from float64 copies of the net, one for each task."""
    net = build(architecture, dtype)
    seed_all(seed)
    inputs = _cast(net.inputs(ids), dtype)
    entries = net.loss_ids(ids, *inputs)
    gradients: dict[int, list[Tensor]] = {}
    for n in entries[entries >= 0].unique().tolist():
        copy = build(architecture, torch.float64)
        copy.load_state_dict(net.state_dict())  # the parameters as this dtype has rounded them
        seed_all(seed)
        copy.losses(ids, *_cast(inputs, torch.float64))[entries == n].mean().backward()
        gradients[n] = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in trained(copy)]
    private = {id(p) for p in net.private_parameters()}
    shared = [i for i, p in enumerate(trained(net)) if id(p) not in private]
    return Batch(ids, inputs, seed, Numbers(gradients, shared))


def optimizer(net: Net, engine: str, weights: Sequence[float] = WEIGHTS) -> cats.MultiTask:
    """An optimizer that leaves the parameters as they are."""
    private = {id(p) for p in net.private_parameters()}
    shared = [p for p in net.parameters() if id(p) not in private] if private else None
    base = torch.optim.SGD(net.named_parameters(), lr=0.0)
    return cats.MultiTask(base, TASKS, Watched(weights), shared=shared, engine=engine, model=net)


def backward(opt: cats.MultiTask, net: Net, batch: Batch, engine: str) -> None:
    seed_all(batch.seed)
    losses = partial(net.losses, batch.ids, *batch.inputs)  # forward_mode evaluates the losses twice
    opt.backward(losses if engine == "forward_mode" else losses(), tasks=net.loss_ids(batch.ids, *batch.inputs))


def check_combined(net: Net, expected: Numbers) -> None:
    """Compares ``p.grad`` with ḡ."""
    for p, g in zip(trained(net), expected.combined, strict=True):
        assert (g - (0 if p.grad is None else p.grad)).norm() <= TOLERANCE[p.dtype] * expected.norm


def check(opt: cats.MultiTask, net: Net, expected: Numbers) -> None:
    """Takes the step, and compares ḡ and <g_n, ḡ> with the expected numbers."""
    check_combined(net, expected)
    opt.step()
    dots = opt.statistics["dots"]
    assert dots.keys() == expected.dots.keys()
    tolerance = TOLERANCE[trained(net)[0].dtype]
    for n, dot in dots.items():
        assert abs(dot - expected.dots[n]) <= tolerance * expected.norms[n] * expected.norm, f"task {n}"


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
