"""Which rows of the tensors inside a model belong to which task, where their number does not tell."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


class _Known(threading.local):
    def __init__(self) -> None:
        # Since the last backward() of this thread. The limit is for loops that never call it.
        self.lists: deque[Tensor] = deque(maxlen=256)


_known = _Known()


def rows(*ids: Tensor) -> AbstractContextManager[None]:
    """Tells the engine "one_pass" the tasks of rows that are not the rows of the losses.

    ``backward(losses, tasks=ids)`` knows the task of every row of the losses. Layers whose inputs have as many rows
    (B, ...), or a multiple of them (B * T, ...), need nothing more. The rows of others are found by masked backward
    passes in every such step, which takes time. This function saves it, for example for an encoder whose padding was
    removed: its rows are source tokens, while the losses are those of target tokens::

        with cats.engines.rows(task_of_source_token):
            memory = encoder(source)
        ...
        optimizer.backward(losses, tasks=task_of_target_token)

    It holds until the next backward() of an optimizer in this thread has ended. So the block may as well be around
    backward(), or be left out. A layer's rows are found by their number, among all that was given here and the
    ``tasks`` of backward(). If several fit, masked backward passes show the right one; see ``engine`` of
    :class:`cats.MultiTask`. Under ``torch.no_grad()`` it does nothing.

    Args:
        ids: each (R,) integer: the index of the task of every row, in the order of the optimizer's tasks, or -1 for
            rows on which no loss depends, such as padding.

    Raises:
        TypeError, ValueError: not one-dimensional integer tensors.
    """
    for i, each in enumerate(ids):
        if not isinstance(each, Tensor):
            raise TypeError(f"rows: argument {i} must be a tensor of task indices, got {type(each).__name__}")
        if each.dim() != 1 or each.is_floating_point() or each.is_complex() or each.dtype == torch.bool:
            raise ValueError(f"rows: argument {i} must be (R,) integer, got {tuple(each.shape)} {each.dtype}")
    if torch.is_grad_enabled():
        _known.lists.extend(ids)
    return nullcontext()


def known_rows() -> list[Tensor]:
    """What :func:`rows` was given in this thread since the last backward()."""
    return list(_known.lists)


@contextmanager
def rows_forgotten() -> Iterator[None]:
    """Around every backward(): at its end, what :func:`rows` was given is forgotten."""
    try:
        yield
    finally:
        _known.lists.clear()
