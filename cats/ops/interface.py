"""Types that dispatch and the backends share: the limits of a backend, and the settings of an AdamW update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Row = Sequence[Tensor | None]  # a tensor per parameter
Dtypes = tuple[torch.dtype, ...]  # of a parameter's gradients, then of each of its other tensors


@dataclass(frozen=True)
class Limits:
    """What a backend can compute. Dispatch gives everything else to the reference."""

    devices: tuple[str, ...] | None = None  # types of device; None: any
    tasks: int | None = None  # at most this many tasks; None: any number
    combinations: int | None = None  # at most this many rows of weights in one call; None: any number
    # Gram matrices, by the gradients' dtype: at most this many tasks. Other dtypes: as many as `tasks` says.
    gram_tasks: Mapping[torch.dtype, int] | None = None
    # dots, by the gradients' dtype: the dtypes that the direction can have. None: any.
    directions: Mapping[torch.dtype, tuple[torch.dtype, ...]] | None = None

    def dtype_rule(self, operator: str, tasks: int) -> Callable[[Dtypes], bool] | None:
        """A function that says whether the operator takes a parameter with these dtypes. None if it takes all."""
        most, directions = self.gram_tasks, self.directions
        if operator == "gram" and most is not None:
            return lambda dtypes: tasks <= most.get(dtypes[0], tasks)
        if operator == "dots" and directions is not None:
            return lambda dtypes: dtypes[1] in directions[dtypes[0]]
        return None


class AdamW(NamedTuple):
    """The settings of one AdamW update. Tensors have one element, on any device."""

    step: Tensor
    lr: Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    found_inf: Tensor | None
    grad_scale: Tensor | None

    def check(self) -> None:
        """Raises ValueError if no update is defined for them. Tensors on a GPU are not read: the host would wait."""
        for name, least in ("step", 1), ("lr", 0), ("eps", 0), ("weight_decay", 0):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                if value.device.type != "cpu":
                    continue
                value = value.item()
            if not value >= least:
                raise ValueError(f"{name} is {value:g}, but must be at least {least}")
        for name in "beta1", "beta2":
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name):g}, but must lie in [0, 1)")
