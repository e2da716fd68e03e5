"""What the engines must give, computed task by task by plain autograd in float64, and a step of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import cats
from tests.engines.zoo.net import TASKS, Net

WEIGHTS = (0.5, 2.0, 1.25, 0.25)  # of the tasks; binary fractions, so that float32 does not round them
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of ḡ relative to ‖ḡ‖, and of <g_n, ḡ> to ‖g_n‖ ‖ḡ‖


class Watched(cats.weighting.Static):
    """Fixed weights, with the numbers of every task in every step."""

    period = 1

    def update(self, *numbers: Any) -> None:
        pass


@dataclass
class Batch:
    """A batch, and the numbers that every engine must give for it.

    Attributes:
        ids: (B,) the tasks of the examples. inputs: what the net gets. seed: of the dropout masks.
        combined: ḡ of every parameter that is trained, in float64.
        dots, norms: {task: <g_n, ḡ>} and {task: ‖g_n‖} over the shared parameters.
    """

    ids: Tensor
    inputs: tuple[Any, ...]
    seed: int
    combined: list[Tensor]
    dots: dict[int, float]
    norms: dict[int, float]

    @property
    def norm(self) -> float:
        """‖ḡ‖."""
        return sum(float(g.square().sum()) for g in self.combined) ** 0.5


def build(architecture: Callable[[], Net], dtype: torch.dtype, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return architecture().to(dtype)


def trained(net: Net) -> list[Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


def draw(architecture: Callable[[], Net], ids: Tensor, dtype: torch.dtype, seed: int) -> Batch:
    """A batch for this architecture. Its numbers are from float64 copies of the net, one for each task."""
    net = build(architecture, dtype)
    torch.manual_seed(seed)
    inputs = _cast(net.inputs(ids), dtype)
    entries = net.loss_ids(ids, *inputs)
    gradients: dict[int, list[Tensor]] = {}
    for n in entries.unique().tolist():
        copy = build(architecture, torch.float64)
        copy.load_state_dict(net.state_dict())  # the parameters as this dtype has rounded them
        torch.manual_seed(seed)
        copy.losses(ids, *_cast(inputs, torch.float64))[entries == n].mean().backward()
        gradients[n] = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in trained(copy)]
    combined = [
        torch.stack([WEIGHTS[n] * g for n, g in zip(gradients, one, strict=True)]).sum(0)
        for one in zip(*gradients.values(), strict=True)
    ]
    private = {id(p) for p in net.private_parameters()}
    shared = [i for i, p in enumerate(trained(net)) if id(p) not in private]
    dots = {n: sum(float((g[i] * combined[i]).sum()) for i in shared) for n, g in gradients.items()}
    norms = {n: sum(float(g[i].square().sum()) for i in shared) ** 0.5 for n, g in gradients.items()}
    return Batch(ids, inputs, seed, combined, dots, norms)


def optimizer(net: Net, engine: str) -> cats.MultiTask:
    """An optimizer that leaves the parameters as they are."""
    private = {id(p) for p in net.private_parameters()}
    shared = [p for p in net.parameters() if id(p) not in private] if private else None
    return cats.MultiTask(torch.optim.SGD(net.named_parameters(), lr=0.0), TASKS, Watched(WEIGHTS), shared=shared)


def step(opt: cats.MultiTask, net: Net, batch: Batch) -> None:
    """One step, compared with the numbers of the batch."""
    opt.zero_grad()
    torch.manual_seed(batch.seed)
    losses, entries = net.losses(batch.ids, *batch.inputs), net.loss_ids(batch.ids, *batch.inputs)
    opt.backward({n: losses[entries == n].mean() for n in batch.dots})
    tolerance = TOLERANCE[losses.dtype]
    for p, g in zip(trained(net), batch.combined, strict=True):
        assert (g - (0 if p.grad is None else p.grad)).norm() <= tolerance * batch.norm
    opt.step()
    dots = opt.statistics["dots"]
    assert dots.keys() == batch.dots.keys()
    for n, dot in dots.items():
        assert abs(dot - batch.dots[n]) <= tolerance * batch.norms[n] * batch.norm, f"task {n}"


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
