"""Adam for one number per task. Unlike a torch optimizer, its whole state is a tensor, and tasks may be absent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8
LARGEST = 1e100  # the square of a larger slope would overflow


def adam_start(values: Tensor) -> Tensor:
    """The state of Adam at the given values (N,): (4, N), with the rows value, mean, square and number of steps."""
    return torch.cat([values[None], values.new_zeros(3, len(values))])


def adam_step(state: Tensor, slopes: Tensor, present: Sequence[int], *, lr: float, decay: float = 0.0) -> Tensor:
    """The state after a step of Adam (Kingma & Ba 2015, Algorithm 1) on the values of the K tasks present.

    The other values, and the number of their steps, stay as they are.

    Args:
        state: (4, N), see :func:`adam_start`.
        slopes: (K,), the derivatives by the values.
        present: the indices of the K tasks.
        lr: the learning rate.
        decay: is multiplied by the value and added to the slope, as ``weight_decay`` of torch.optim.Adam.
    """
    value, mean, square, steps = state[:, list(present)]
    slope = (slopes + decay * value).clamp(-LARGEST, LARGEST)
    steps = steps + 1
    mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
    square = BETAS[1] * square + (1 - BETAS[1]) * slope**2
    size = (square / (1 - BETAS[1] ** steps)).sqrt() + EPS
    value = value - lr * mean / (1 - BETAS[0] ** steps) / size
    state = state.clone()
    state[:, list(present)] = torch.stack([value, mean, square, steps])
    return state
