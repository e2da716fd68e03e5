"""Whether what a weighting returns are weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def checked_weights(weights: Any, names: Sequence[str], limit: float) -> Tensor:
    """The weights as float64 on the CPU.

    Args:
        weights: what the weighting returned.
        names: the names of the K tasks in error messages.
        limit: the largest number of the type in which gradients are multiplied by weights.

    Raises:
        TypeError: not a tensor of real numbers.
        ValueError: not K of them, or one is nan or infinite, or beyond the limit.
    """
    if not isinstance(weights, Tensor) or weights.is_complex() or weights.dtype == torch.bool:
        kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"the weighting returned {kind} instead of a tensor of {len(names)} weights")
    weights = weights.detach().to("cpu", torch.float64)
    if weights.shape != (len(names),):
        raise ValueError(f"the weighting returned weights of shape {tuple(weights.shape)} for {len(names)} tasks")
    within = weights.abs() <= limit  # nan is not
    if not within.all():
        n = int((~within).nonzero()[0])
        raise ValueError(
            f"the weighting returned {weights[n].item()} for {names[n]}; it must be finite and at most {limit:.3g}"
        )
    return weights
