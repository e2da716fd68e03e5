"""Types that dispatch and the backends share: limits of a backend, settings of an AdamW update, random numbers."""

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


class Draws(NamedTuple):
    """Which random numbers graddrop uses: a sequence for every seed and step, and where each parameter begins in it."""

    seed: int
    step: int
    positions: Sequence[int]  # of the first element of each parameter; the others follow in row-major order

    def select(self, params: Sequence[int]) -> Draws:
        """Those of these parameters only."""
        return self._replace(positions=[self.positions[i] for i in params])

    def words(self) -> Tensor:
        """All numbers as one int64 tensor on the CPU, as kernels on a GPU take them."""
        return torch.tensor([self.seed, self.step, *self.positions], dtype=torch.int64, device="cpu")


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
        step = self.step.item() if self.step.is_cpu else 1
        lr = self.lr.item() if self.lr.is_cpu else 0
        for name, value, least in (
            ("step", step, 1),
            ("lr", lr, 0),
            ("beta1", self.beta1, 0),
            ("beta2", self.beta2, 0),
            ("eps", self.eps, 0),
            ("weight_decay", self.weight_decay, 0),
        ):
            if not value >= least:  # true for NaN, too
                raise ValueError(f"{name} is {value:g}, but must be at least {least}")
        if self.beta1 >= 1 or self.beta2 >= 1:
            raise ValueError(f"beta1 is {self.beta1:g} and beta2 is {self.beta2:g}, but both must be below 1")
