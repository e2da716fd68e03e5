"""TorchJD 0.18 as a baseline: its jac_to_grad, which turns .jac fields into .grad fields.

The .jac fields hold K rows in one tensor. Filling them is not part of the time. TorchJD has no outputs to reuse.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.common.measure import Unavailable

from ..cases import GRADDROP, TWO_PASSES, Problem
from ..contender import TORCHJD, Contender
from ..oracle import Outcome


def contenders(operator: str, problem: Problem) -> Iterator[Contender]:
    """TorchJD's public functions from per-task gradients to the combined gradient.

    With known weights: aggregation.Constant. With the Gram matrix: a GramianWeightedAggregator whose weighting returns
    the same known weights, so that no solver is timed.

    Raises:
        Unavailable: TorchJD is not installed, or has no such operation.
    """
    if operator not in ("combine", "combine_dots", GRADDROP, TWO_PASSES):
        raise Unavailable("TorchJD has no such operation")
    if importlib.util.find_spec("torchjd") is None:
        raise Unavailable("TorchJD is not installed; pip install torchjd")
    aggregation: Any = importlib.import_module("torchjd.aggregation")
    autojac: Any = importlib.import_module("torchjd.autojac")

    weights = problem.weights.to(problem.dtype)

    class Known(aggregation.Weighting):
        def forward(self, gramian: Tensor, /) -> Tensor:
            return weights

    params = [torch.zeros_like(t).requires_grad_() for t in problem.out]
    lengths = [t.numel() for t in problem.out]
    whole = problem.stacked if len(params) == 1 else problem.stacked.clone()
    for p, jac in zip(params, whole.split(lengths, 1), strict=True):
        p.jac = jac.reshape(problem.tasks, *p.shape)  # type: ignore[attr-defined]

    def to_grad(**options: Any) -> Callable[[], Outcome]:
        def run() -> Outcome:
            for p in params:
                p.grad = None
            autojac.jac_to_grad(params, retain_jac=True, **options)
            found = [p.grad for p in params if p.grad is not None]
            return Outcome(signs=found) if operator == GRADDROP else Outcome(combined=found)

        return run

    if operator == GRADDROP:
        yield Contender("TorchJD jac_to_grad", TORCHJD, to_grad(aggregator=aggregation.GradDrop()))
    elif operator == TWO_PASSES:
        aggregator = aggregation.GramianWeightedAggregator(Known())
        yield Contender("TorchJD jac_to_grad", TORCHJD, to_grad(aggregator=aggregator))
        without_copy = to_grad(aggregator=aggregator, optimize_gramian_computation=True)
        yield Contender("TorchJD jac_to_grad, optimize_gramian_computation", TORCHJD, without_copy)
    else:
        yield Contender("TorchJD jac_to_grad", TORCHJD, to_grad(aggregator=aggregation.Constant(weights)))
