"""What an optimizer of this package remembers between two calls, beside the state of its base optimizer."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .accumulate import Accumulation
from .distributed import Reducer
from .weighting import Weighting


class State:
    """All that changes while an optimizer is in use, in one object.

    Lightning hands out proxies: objects of a subclass that have a copy of the optimizer's attributes, or look them up
    in it. What a method assigns to ``self`` would stay in the proxy. So methods assign to this object, which the
    optimizer, its proxies and its shallow copies share. A deep copy and a pickled optimizer have their own.

    The dicts are replaced, never changed, so :meth:`restored_on_error` need not copy them.

    Attributes:
        accumulation: what backward() has gathered. None between step() and the next backward().
        reducer: combines gradients over the processes. None before the first backward().
        weights: (N,) float64 on the CPU. If the weights follow from the step: those of the last one, at first ``scale``
            divided by N.
        counts: {name: number of steps}, see :attr:`cats.MultiTask.statistics`.
        last: {name: numbers of the last step}, as above.
        grad_scale, found_inf: set by GradScaler before step(), and deleted after it. Only then do they exist.
        lock: held by every method that reads or changes the state, so that several threads may call backward().
    """

    def __init__(self, tasks: int, scale: float) -> None:
        self.accumulation: Accumulation | None = None
        self.reducer: Reducer | None = None
        self.weights: Tensor = torch.full((tasks,), scale / tasks, dtype=torch.float64, device="cpu")
        self.counts = {"step": 0, "task_gradient_steps": 0, "skipped": 0, "nonfinite_in_a_row": 0}
        self.last: dict[str, Any] = {
            **{"losses": {}, "dots": {}, "sqnorms": {}, "sqnorm": math.nan},
            **{"engine": "", "engine_reason": ""},
        }
        self.lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # What was gathered belongs to p.grad, which torch does not copy either. A lock cannot be copied.
        return {"weights": self.weights, "counts": self.counts, "last": self.last}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, accumulation=None, reducer=None, lock=threading.RLock())

    @property
    def scale_to_undo(self) -> Tensor | None:
        """The scale by which step() must divide the gradients. None as well if ``scaler.unscale_()`` has done it."""
        return getattr(self, "grad_scale", None)

    def count(self, *names: str, **values: int) -> None:
        """Adds 1 to the named counts, and sets others to the given values."""
        self.counts = {**self.counts, **{name: self.counts[name] + 1 for name in names}, **values}

    def discard(self) -> None:
        """Forgets what backward() has gathered."""
        if self.accumulation is not None:
            self.accumulation.discard()
        self.accumulation = None

    def forget_scaler(self) -> None:
        """Deletes what GradScaler sets before step().

        GradScaler does so after step(), but not if step() or one of its hooks raises. Its next call would then multiply
        the new scale by the old one.
        """
        self.__dict__.pop("grad_scale", None)
        self.__dict__.pop("found_inf", None)

    @contextmanager
    def restored_on_error(self, weighting: Weighting | None) -> Iterator[None]:
        """If the block raises, this object and the weighting are as they were before it. None: it does not change."""
        before = self.__dict__.copy()
        weights = None if weighting is None else weighting.state_dict()
        try:
            yield
        except BaseException:  # KeyboardInterrupt too
            self.__dict__.update(before)
            if weighting is not None and weights is not None:
                weighting.load_state_dict(weights)
            raise


def copy_of(numbers: dict[str, Any]) -> dict[str, Any]:
    """A copy of a dict of numbers and of dicts of numbers. copy.deepcopy would take 30 times as long."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in numbers.items()}


@contextmanager
def base_restored_on_error(base: Optimizer) -> Iterator[None]:
    """If the block raises, the base optimizer has its old state and groups. ``load_state_dict`` makes new ones."""
    state, groups = base.state, base.param_groups
    try:
        yield
    except BaseException:
        base.state, base.param_groups = state, groups
        raise


@contextmanager
def noted_if_moved(params: Sequence[Tensor], base: Optimizer) -> Iterator[None]:
    """If the block raises after it changed a parameter or the base optimizer's state, the error gets a note about it.

    Changes are seen by the version that torch counts for each tensor. It does not count changes through ``.data``.
    """
    before = _versions(params, base)
    try:
        yield
    except BaseException as error:
        if _versions(params, base) != before:
            error.add_note(
                "The base optimizer had changed parameters or its state when this happened. They may be half-way "
                "between two steps: load a checkpoint to go on."
            )
        raise


def _versions(params: Sequence[Tensor], base: Optimizer) -> list[Any]:
    """What differs after a change of the parameters or of the base optimizer's state. No host sync."""
    versions: list[Any] = [p._version for p in params]
    for values in [*base.state.values(), *base.param_groups]:  # some optimizers count steps in their groups
        for value in values.values() if isinstance(values, dict) else [values]:
            if isinstance(value, Tensor):
                versions.append((id(value), value._version))
            else:
                versions.append(value if isinstance(value, int | float) else id(value))
    return versions
