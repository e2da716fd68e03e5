"""TorchJD 0.18: its two engines, from the losses to the combined gradient, and the products of the same step.

The Gram matrix has all <g_i, g_j>, so that v = Gram α. TorchJD's step has known weights: no solver is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from bench.common.measure import Unavailable

from .workload import Workload, eager, ours


def _module(name: str) -> Any:
    if importlib.util.find_spec("torchjd") is None:
        raise Unavailable("TorchJD is not installed; pip install torchjd")
    return importlib.import_module(f"torchjd.{name}")


class Autojac:
    """autojac.backward, which fills ``.jac`` with K gradients, and jac_to_grad.

    chunk: how many of the K backward passes run at once, under vmap; None: all.
    """

    def __init__(self, work: Workload, chunk: int | None) -> None:
        self.work, self.chunk = work, chunk
        self.loss = ours if chunk == 1 else eager
        self.autojac, aggregation = _module("autojac"), _module("aggregation")
        weights = torch.full((work.tasks,), 1 / work.tasks, device=work.target_ids.device)

        class Known(aggregation.Weighting):
            def forward(self, gramian: Tensor, /) -> Tensor:
                self.dots = gramian @ weights
                return weights

        self.weighting = Known()
        self.aggregator = aggregation.GramianWeightedAggregator(self.weighting)

    def __call__(self) -> Tensor:
        self.work.base.zero_grad()
        self.autojac.backward(self.work.task_losses(self.loss), parallel_chunk_size=self.chunk)
        params = self.work.model.parameters()
        self.autojac.jac_to_grad(params, self.aggregator, optimize_gramian_computation=True)
        self.work.base.step()
        return self.weighting.dots


class Autogram:
    """autogram.Engine, which gives the Gram matrix, and then a backward pass of the weighted loss.

    It sees only the parameters that a module uses in its own forward(), and only once per module. So it needs a model
    with separate embeddings, whose output projection is called as a module.
    """

    def __init__(self, work: Workload) -> None:
        self.work = work
        model: Any = work.model
        model.project = lambda hidden: model.output(hidden)
        self.engine = _module("autogram").Engine(work.model, batch_dim=None)
        self.weights = torch.full((work.tasks,), 1 / work.tasks, device=work.target_ids.device)

    def __call__(self) -> Tensor:
        self.work.base.zero_grad()
        losses = torch.stack(self.work.task_losses(eager))
        dots = self.engine.compute_gramian(losses) @ self.weights
        losses.backward(self.weights)
        self.work.base.step()
        return dots
