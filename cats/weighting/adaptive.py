"""What the weightings have in common that follow the losses and keep a few numbers per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from .checks import check_finite, per_task, shares_of
from .protocol import Weighting

Reduction = Literal["sum", "mean"]


class Adaptive(Weighting):
    """A weighting whose state is a few tensors, and whose weights sum to N or to 1.

    Args:
        reduction: "sum": :meth:`weights` are N α_n, so equal weights give the gradient of ``sum(losses)``. "mean": α_n.

    Attributes:
        remembered: the names of the tensors of the state. Each is an attribute of this name with an underscore.
    """

    losses_only = True
    remembered: tuple[str, ...] = ()

    def __init__(self, reduction: Reduction) -> None:
        if reduction not in ("sum", "mean"):
            raise ValueError(f"{type(self).__name__}: reduction must be 'sum' or 'mean', got {reduction!r}")
        self.reduction = reduction

    def start(self, tasks: int) -> None:
        self.scale = float(tasks) if self.reduction == "sum" else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}").clone() for name in self.remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != set(self.remembered):
            raise ValueError(f"{type(self).__name__}: its state is {list(self.remembered)}, but this is {list(state)}")
        for name, value in state.items():
            own = getattr(self, f"_{name}")
            if not isinstance(value, Tensor) or value.shape != own.shape or value.dtype != own.dtype:
                got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(
                    f"{type(self).__name__}: {name!r} of the state must be {tuple(own.shape)} {own.dtype}, got {got}"
                )
        for name, value in state.items():
            setattr(self, f"_{name}", value.detach().clone())

    def _check_finite(self, *numbers: Tensor) -> None:
        check_finite(f"{type(self).__name__}: a loss or norm", *numbers)


class Robust(Adaptive):
    """What the forms of distributionally robust optimization have in common: they compare losses L_n − b_n.

    Args:
        shares: p, a number of at least 0 for each task. Only the ratios matter. None: uniform.
        baselines: b_n, a number for each task. None: 0.
        reduction: see :class:`Adaptive`.

    Attributes:
        shares: p, (N,) float64, with sum 1.
        baselines: b, (N,) float64.
    """

    def __init__(
        self, shares: Sequence[float] | Tensor | None, baselines: Sequence[float] | Tensor | None, reduction: Reduction
    ) -> None:
        super().__init__(reduction)
        self._given = shares, baselines

    def start(self, tasks: int) -> None:
        super().start(tasks)
        (shares, baselines), name = self._given, type(self).__name__
        given = shares_of(shares, tasks, f"{name}: shares")
        self.shares = given / given.sum()
        self.baselines = per_task(baselines, tasks, f"{name}: baselines")
