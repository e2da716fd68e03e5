"""Whether the arguments of a weighting are numbers, what it needs can be had, and what it returns are weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .protocol import Weighting

# What a weighting may need that only the engine "per_task" gives in all cases.
_OF_GRADIENTS = {
    "needs_gram": "the Gram matrix",
    "cross_batch": "two losses per task",
    "needs_sqnorms": "the norms of the gradients",
    "combines": "the gradients themselves",
}


def needs_per_task(weighting: Weighting) -> str | None:
    """What the weighting needs that only the engine "per_task" gives in all cases, or None."""
    return next((what for name, what in _OF_GRADIENTS.items() if getattr(weighting, name)), None)


def check_needs(weighting: Weighting, engine: str) -> None:
    """Checks what the weighting declares, see :class:`cats.weighting.Weighting`.

    Raises:
        ValueError: its needs contradict each other, or the engine that was asked for does not compute them.
    """
    of_gradients = [name for name in _OF_GRADIENTS if getattr(weighting, name)]
    of_losses = [name for name in ("needs_losses", "losses_again") if getattr(weighting, name)]
    if weighting.needs_gram and weighting.cross_batch:
        raise ValueError("a weighting with needs_gram cannot be cross_batch: its Gram matrix is of one batch")
    if weighting.combines and (len(of_gradients) > 1 or weighting.period != 1):
        raise ValueError("a weighting with combines needs period=1, and neither needs_gram, cross_batch nor norms")
    if of_losses and not weighting.losses_only:
        raise ValueError(f"a weighting with {of_losses[0]} must be losses_only: there is no <g_n, ḡ> for it")
    if of_gradients and weighting.losses_only:
        raise ValueError(f"a weighting with {of_gradients[0]} cannot be losses_only: it needs gradients")
    if weighting.direction != "gradient" and (of_gradients or weighting.losses_only):
        name = [*of_gradients, "losses_only"][0]
        raise ValueError(f"a weighting with {name} needs direction='gradient', not {weighting.direction!r}")
    able = ("auto", "per_task", "two_pass") if of_gradients == ["needs_sqnorms"] else ("auto", "per_task")
    if of_gradients and engine not in able:
        raise ValueError(
            f"engine={engine!r} does not compute what a weighting with {of_gradients[0]} needs: use 'per_task'"
        )


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


def check_number(what: str, value: object, low: float = 0.0, high: float = math.inf) -> float:
    """The value as a finite float from low to high.

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of this range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the largest float
        number = math.inf
    if not (low <= number <= high and math.isfinite(number)):
        wanted = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{what} must be a finite number {wanted}, got {value!r}")
    return number


def check_count(what: str, value: object) -> int:
    """The value, which must be an integer of at least 1. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be an integer of at least 1, got {value!r}")
    return value


def numbers_of(
    values: Mapping[Any, float] | Sequence[float] | Tensor,
    names: Sequence[str | int],
    what: str,
    *,
    all_named: bool = True,
) -> Sequence[float] | Tensor:
    """One number per task, in their order: those of a sequence, or of {task: number}.

    Args:
        what: what error messages call the numbers.
        all_named: whether a dict must have all tasks. If not, those that it lacks get 0.

    Raises:
        ValueError: an unknown task, or one is missing.
    """
    if not isinstance(values, Mapping):
        return values
    if missing := [name for name in names if all_named and name not in values]:
        raise ValueError(f"{what}: no number for task {', '.join(map(repr, missing))}; give each task one, 0 for none")
    for task in values:
        if task not in names:
            raise ValueError(f"{what}: unknown task {task!r}; the tasks are {list(names)}")
    return [values.get(name, 0.0) for name in names]


def per_task(numbers: Sequence[float] | Tensor | None, tasks: int, what: str) -> Tensor:
    """One finite number per task, (N,) float64. None: zeros. Raises ValueError."""
    try:
        given = torch.zeros(tasks) if numbers is None else numbers
        values = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach().clone()
    except (OverflowError, RuntimeError, TypeError, ValueError):
        values = torch.empty(0)
    if values.shape != (tasks,):
        raise ValueError(f"{what} needs one number for each of the {tasks} tasks, got {numbers!r}")
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} needs finite numbers, got {values.tolist()}")
    return values


def shares_of(numbers: Sequence[float] | Tensor | None, tasks: int, what: str) -> Tensor:
    """One number of at least 0 per task, not all 0, (N,) float64 as given. None: equal numbers. Raises ValueError."""
    values = per_task([1.0] * tasks if numbers is None else numbers, tasks, what)
    if (values < 0).any() or not 0 < values.sum() < torch.inf:
        raise ValueError(f"{what} needs finite numbers of at least 0, not all of them 0, got {values.tolist()}")
    return values


def check_finite(what: str, *numbers: Tensor) -> None:
    """Raises ValueError if one of the numbers that weights are computed from is nan or infinite."""
    for each in numbers:
        if not torch.isfinite(each).all():
            raise ValueError(f"{what} is nan or infinite, and the weights would be too: {each.tolist()}")


def checked_grams(grams: Tensor, name: str) -> Tensor:
    """The Gram matrices, (..., K, K).

    Raises:
        ValueError: a number is nan or infinite.
    """
    if not grams.isfinite().all():
        raise ValueError(f"{name}: the Gram matrix has numbers that are nan or infinite")
    return grams
