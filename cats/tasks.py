"""The names of the tasks, and the losses of a call, given by name or in the order of the tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .engines.examples import Examples
from .engines.losses import Loss, TaskLosses

Task: TypeAlias = str | int
TaskLoss: TypeAlias = Loss | tuple[Loss, Loss] | list[Loss]
# The keys are tasks. They are not declared as Task, because a type checker would then refuse dict[str, Tensor].
Losses: TypeAlias = Mapping[Any, TaskLoss] | Sequence[TaskLoss]


def task_names(tasks: int | Iterable[Task]) -> tuple[Task, ...]:
    """The names: those given, or 0, 1, ... if a number of tasks is given.

    Raises:
        TypeError: neither a positive number nor names, a set, or a name that is neither a str nor an int.
        ValueError: no names, or a name twice.
    """
    if isinstance(tasks, int) and not isinstance(tasks, bool) and tasks > 0:
        return tuple(range(tasks))
    if isinstance(tasks, int | str) or not isinstance(tasks, Iterable):
        raise TypeError(f"tasks must be a positive number or names, got {tasks!r}")
    if isinstance(tasks, set | frozenset):  # other sets, such as the keys of a dict, have an order
        raise TypeError(
            f"tasks is a {type(tasks).__name__}, whose order differs between processes and runs: "
            "pass a list, such as sorted(tasks)"
        )
    names = tuple(tasks)
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(f"a task's name must be a str or an int, got {name!r}")
    # Plain ones of subclasses, such as numpy.str_ or an Enum: torch.load(weights_only=True) refuses others in a state.
    names = tuple(str.__str__(name) if isinstance(name, str) else int(name) for name in names)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"task {twice[0]!r} is named twice")
    if not names:
        raise ValueError("tasks is empty: at least one task is needed")
    return names


def split_losses(losses: Losses | Loss, names: Sequence[Task], *, pairs: bool) -> TaskLosses:
    """The single losses, and for each of them the index of its task.

    Args:
        losses: {task: loss}, or a sequence of one loss per task.
        names: the tasks' names.
        pairs: whether the loss of a task may be a pair, of two halves of its batch.

    Raises:
        TypeError: ``losses`` is neither a mapping nor a sequence.
        ValueError: an unknown task, a sequence that does not have one loss per task, several losses for a task.
    """
    if isinstance(losses, Mapping):
        index = {task: n for n, task in enumerate(names)}
        for task in losses:
            if task not in index:
                raise ValueError(f"unknown task {task!r}; the tasks are {list(names)}")
        items = [(index[task], loss) for task, loss in losses.items()]
    elif isinstance(losses, Sequence):
        if len(losses) != len(names):
            raise ValueError(
                f"{len(losses)} losses for {len(names)} tasks; pass {{task: loss}} if some tasks are absent"
            )
        items = list(enumerate(losses))
    else:
        hint = ": pass the losses themselves, not their sum" if isinstance(losses, Tensor) else ""
        raise TypeError(f"losses must be {{task: loss}} or a sequence of losses, got {describe(losses)}{hint}")
    tasks: list[int] = []
    single: list[Loss] = []
    for n, loss in items:
        parts = list(loss) if isinstance(loss, tuple | list) else [loss]
        if isinstance(loss, tuple | list) and not (pairs and len(parts) == 2):
            expected = "a single loss or a pair" if pairs else "a single loss"
            raise ValueError(f"loss of task {names[n]!r}: expected {expected}, got {len(parts)} of them")
        tasks += [n] * len(parts)
        single += parts
    return TaskLosses(tasks, single, [f"task {names[n]!r}" for n in tasks])


def split_examples(losses: Any, ids: Any, names: Sequence[Task], *, mean: bool) -> Examples:
    """The losses of a mixed batch, with the task of each entry.

    Args:
        losses: a tensor (B, ...), or a callable that returns one.
        ids: the task of each entry: an integer tensor of indices into ``names``, -1 for entries of no task, or a
            sequence of B names. A tensor on a GPU makes the host wait for it.

    Raises:
        TypeError: losses are not a tensor or callable, or ids are neither of the above.
        ValueError: an index or name of no task.
    """
    if not isinstance(losses, Tensor) and not callable(losses):
        raise TypeError(f"with tasks=, losses must be a tensor or a callable that returns one, got {describe(losses)}")
    if isinstance(ids, Sequence) and not isinstance(ids, str):
        index = {name: n for n, name in enumerate(names)}
        for name in ids:
            if name not in index:
                hint = "; pass indices as a tensor" if isinstance(name, int) else ""
                raise ValueError(f"tasks=: unknown task {name!r}; the tasks are {list(names)}{hint}")
        ids = torch.tensor([index[name] for name in ids], dtype=torch.int64, device="cpu")
    if not isinstance(ids, Tensor):
        raise TypeError(f"tasks= must be an integer tensor or a sequence of task names, got {describe(ids)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.dim() == 0:
        raise TypeError(f"tasks= must be an integer tensor (B,), got {tuple(ids.shape)} {ids.dtype}")
    ids = ids.detach().long()
    present = ids.unique().tolist()
    for n in present:
        if not -1 <= n < len(names):
            raise ValueError(f"tasks= has the index {n}; there are 0 to {len(names) - 1}, and -1 for no task")
    return Examples(losses, ids, [n for n in present if n >= 0], len(names), mean)


def describe(value: object) -> str:
    """What an error message calls a value of the wrong type."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
