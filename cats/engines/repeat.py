"""Callables that are evaluated a second time, and must give the losses that they gave at first.

What a forward pass depends on is restored: torch's random numbers, and with them the dropout masks; autocast, because
the second time may come in a later backward() call, outside of the user's block; and the buffers of the model.
Afterwards all of these are as if there had been no second time. Everything else that a callable reads must still be the
same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .autograd import nodes
from .examples import Examples
from .losses import Loss, TaskLosses
from .pending import UnsupportedError
from .terms import Term, terms

_CPU = torch.device("cpu")


class Repeats:
    """The callables among the losses of a call: evaluated now, and once more by :meth:`again`.

    Args:
        losses: all losses of the call.
        params: the parameters, whose devices the callables may use.
        user: what error messages say evaluates the callables twice, such as "engine two_pass".
        instead: what the user can do instead, for error messages.
        model: its buffers are restored. None: a batch norm whose running statistics would move twice is refused.
        check: is called after the first evaluation of each callable, with its loss tensor, its name, and the number of
            the first node of its graph: what was computed before has lower numbers.

    Attributes:
        noting: the losses for the first evaluation, which notes the state before it.
    """

    def __init__(
        self,
        losses: TaskLosses | Examples,
        params: Sequence[Tensor],
        *,
        user: str,
        instead: str = "use engine='per_task'",
        model: nn.Module | None,
        check: Callable[[Tensor, str, int], None] = lambda value, name, start: None,
    ) -> None:
        self._user, self._instead, self._check = user, instead, check
        self._devices = {p.device for p in params if p.device.type not in ("cpu", "meta")}
        given = terms(losses)
        self._callables = [term for term in given if callable(term.loss)]
        self._moments: list[_Moment] = []
        self._has_model = model is not None
        self._buffers = _Buffers(model if self._callables else None)
        noting: list[Loss] = [partial(self._first, term) if callable(term.loss) else term.loss for term in given]
        self.noting: TaskLosses | Examples
        if isinstance(losses, Examples):
            self.noting = dataclasses.replace(losses, loss=noting[0])
        else:
            self.noting = dataclasses.replace(losses, losses=noting)

    def name(self, task: int) -> str:
        """What error messages call the loss of a task."""
        return next(term.name for term in self._callables if task in term.tasks)

    def _first(self, term: Term) -> Tensor:
        self._moments.append(_Moment(self._devices))
        torch.clear_autocast_cache()  # the weights that autocast has cast in another callable belong to its graph
        start = torch._C._autograd._get_sequence_nr()
        value = term.evaluate()
        self._check(value, term.name, start)
        if not self._has_model:
            self._check_batch_norm(value, term.name)
        return value

    def _check_batch_norm(self, value: Tensor, name: str) -> None:
        for node in nodes([value]):
            if getattr(node, "_saved_training", False) and getattr(node, "_saved_running_mean", None) is not None:
                raise UnsupportedError(
                    f"{self._user}: {name}: the callable is evaluated twice, and the running statistics of its batch "
                    f"norm would move twice: pass model= to the optimizer, which then restores them, or {self._instead}"
                )

    def again(
        self, values: dict[int, Tensor], visit: Callable[[Term, Tensor], None], *, skip: Container[int] = ()
    ) -> None:
        """Evaluates the callables in the state in which they were evaluated at first. One host sync, at the end.

        Args:
            values: {task index: value of its loss at first, 0-d float64}.
            visit: gets each callable's term and its loss tensor. Backward passes belong there.
            skip: tasks. Callables that have no other tasks are left out.

        Raises:
            UnsupportedError: a loss is not what it was.
        """
        seen: list[tuple[str, Tensor, Tensor, float]] = []
        with self._buffers.restored():
            for term, moment in zip(self._callables, self._moments, strict=True):
                if all(n in skip for n in term.tasks):
                    continue
                with moment.restored(), torch.enable_grad():
                    value = term.evaluate()
                    # Sums without a fixed order differ in rounding. Another dropout mask makes a larger difference.
                    tolerance = max(1e-4, 4 * torch.finfo(value.dtype).eps)
                    for n, number in zip(term.tasks, term.values(value), strict=True):
                        seen.append((term.name, values[n], number, tolerance))
                    visit(term, value)
                    del value  # otherwise its graph would stay alive during the next forward pass
        if seen:
            self._check_same(*zip(*seen, strict=True))

    def losses_now(self) -> dict[int, Tensor]:
        """The losses with the parameters as they are now, 0-d float64 by task. No graph is made."""
        found: dict[int, Tensor] = {}
        with self._buffers.restored():
            for term, moment in zip(self._callables, self._moments, strict=True):
                with moment.restored(), torch.no_grad():
                    value = term.loss()  # type: ignore[operator]  # without the check that it has a graph
                    found.update(zip(term.tasks, term.values(value), strict=True))
        return found

    def _check_same(
        self, names: Sequence[str], first: Sequence[Tensor], second: Sequence[Tensor], tolerances: Sequence[float]
    ) -> None:
        device = first[0].device
        pairs = torch.stack([torch.stack([x.to(device) for x in numbers]) for numbers in (first, second)]).T.tolist()
        for name, (before, after), tolerance in zip(names, pairs, tolerances, strict=True):
            if abs(before - after) > tolerance * abs(before):
                raise UnsupportedError(
                    f"{self._user}: {name}: it was {before:.7g} at first and {after:.7g} when its callable was "
                    "evaluated again. A callable must compute the same both times. torch's random numbers and the "
                    "buffers of model= are restored, but not the random numbers of Python, numpy or a torch.Generator, "
                    f"the position of an iterator, or train() and eval(). If that cannot be: {self._instead}"
                )


class _Moment:
    """torch's random numbers and autocast at the time when this object is made."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._random = _random_state(devices)
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({device.type for device in self._random})
            if torch.amp.is_autocast_available(kind)
        ]
        self._cache = torch.is_autocast_cache_enabled()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The block runs in the state of that time."""
        now = _random_state(set(self._random) - {_CPU})
        with ExitStack() as stack:
            stack.callback(_set_random_state, now)
            for kind, dtype, enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled, self._cache))
            # Inside a block of the user, autocast keeps the weights that it has cast; those have another graph.
            torch.clear_autocast_cache()
            stack.callback(torch.clear_autocast_cache)
            _set_random_state(self._random)
            yield


class _Buffers:
    """The values that the buffers of a model have now, such as the running statistics of batch norm.

    All are copied: batch norm writes to its statistics in a way that no version counter shows.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._values: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = []
        for module in () if model is None else model.modules():
            for name, buffer in module._buffers.items():
                # An expanded buffer cannot be written to, so its values stay.
                writable = buffer is not None and 0 not in buffer.stride()
                self._values.append((module, name, buffer, buffer.clone() if buffer is not None and writable else None))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """In the block the buffers have the values of that time. What a forward pass in the block writes is undone."""
        now = _Buffers(self._model)
        try:
            self._write()
            yield
        finally:
            now._write()

    @torch.no_grad()
    def _write(self) -> None:
        for module, name, buffer, values in self._values:
            module._buffers[name] = buffer
            if buffer is not None and values is not None:
                buffer.copy_(values)


def _random_state(devices: set[torch.device]) -> dict[torch.device, Tensor]:
    state = {_CPU: torch.get_rng_state()}
    return state | {device: torch.get_device_module(device).get_rng_state(device) for device in devices}


def _set_random_state(state: dict[torch.device, Tensor]) -> None:
    for device, numbers in state.items():
        if device == _CPU:
            torch.set_rng_state(numbers)
        else:
            torch.get_device_module(device).set_rng_state(numbers, device)
