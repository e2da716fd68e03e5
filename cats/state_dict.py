"""What the state_dict of an optimizer of this package holds beside that of its base, and how it is checked.

It is the entry ``"multitask"``. torch.distributed.checkpoint drops every entry but ``"state"`` and ``"param_groups"``,
and keeps what is in a parameter group. So the first group has the same entry once more, as bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .gradients import largest
from .state import State, copy_of
from .tasks import Task
from .weighting import Weighting

ENTRY = "multitask"


def add_entry(state: dict[str, Any], tasks: Sequence[Task], weighting: Weighting, own: State) -> None:
    """Adds the entry to the base optimizer's state_dict, in both places."""
    entry = {
        "tasks": list(tasks),
        "kind": type(weighting).__name__,
        "weighting": weighting.state_dict(),
        "weights": own.weights.clone(),
        "counts": dict(own.counts),
        "last": copy_of(own.last),
    }
    file = io.BytesIO()
    torch.save(_plain(entry), file)
    first, *others = state["param_groups"]
    state["param_groups"] = [{**first, ENTRY: file.getvalue()}, *others]
    state[ENTRY] = entry


def take_entry(state: dict[str, Any]) -> dict[str, Any]:
    """The entry, with all its tensors on the CPU. ``state`` becomes a state_dict for the base optimizer.

    Raises:
        ValueError: there is none, because it is the state of a plain optimizer. Or it is damaged.
    """
    entry = state.pop(ENTRY, None)
    groups = [dict(group) for group in state.get("param_groups", [])]
    packed = [group.pop(ENTRY, None) for group in groups]
    if entry is None and packed and isinstance(packed[0], bytes):
        try:
            entry = torch.load(io.BytesIO(packed[0]), map_location="cpu", weights_only=True)
        except (EOFError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise ValueError("state_dict: the entry 'multitask' of the first parameter group is damaged") from error
    if entry is None:
        raise ValueError("state_dict has no 'multitask' entry: load a plain optimizer's state into .base")
    state["param_groups"] = groups
    return _plain(entry)


def load_entry(entry: Any, tasks: Sequence[Task], weighting: Weighting, own: State) -> None:
    """Loads the entry into the weighting and into the optimizer's own state. If it raises, they may be half loaded.

    Raises:
        ValueError: it is for other tasks or another weighting, or something is missing or has a wrong type or length.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"state_dict: 'multitask' must be a dict, got {type(entry).__name__}")
    for name in ("tasks", "weighting", "weights", "counts", "last"):
        if name not in entry:
            raise ValueError(f"state_dict: 'multitask' has no {name!r}")
    names = entry["tasks"]
    if not isinstance(names, list | tuple) or tuple(names) != tuple(tasks):
        raise ValueError(f"state_dict is for tasks {names!r}, this optimizer has {list(tasks)}")
    kind = type(weighting).__name__
    if entry.get("kind", kind) != kind:  # earlier versions did not save it
        raise ValueError(f"state_dict is for the weighting {entry['kind']}, this optimizer has {kind}")
    own.weights = _weights(entry["weights"], len(tasks))
    own.counts = {name: _count(entry["counts"], name) for name in own.counts}
    own.last = {name: _last(entry["last"], name, like) for name, like in own.last.items()}
    _load_weighting(entry["weighting"], len(tasks), weighting)


def _weights(value: Any, count: int) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (count,) or not value.is_floating_point():
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"state_dict: 'weights' must be {count} floating-point numbers, one per task, got {got}")
    if not value.isfinite().all():
        raise ValueError(f"state_dict: 'weights' must be finite, got {value.tolist()}")
    return value.to(torch.float64, copy=True)


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"state_dict: 'counts' needs an integer {name!r} of at least 0, got {value!r}")
    return value


def _last(last: Any, name: str, like: Any) -> Any:
    """A number, a text, or numbers for tasks, as ``like`` is. A text may be missing."""
    value = last.get(name) if isinstance(last, Mapping) else None
    if isinstance(like, str):
        if not isinstance(value, str | None):
            raise ValueError(f"state_dict: {name!r} in 'last' must be a text, got {value!r}")
        return value or ""
    numbers = list(value.values()) if isinstance(value, Mapping) else [value]
    if isinstance(value, Mapping) != isinstance(like, dict) or not all(isinstance(x, int | float) for x in numbers):
        kind = "a number for each task" if isinstance(like, dict) else "a number"
        raise ValueError(f"state_dict: {name!r} in 'last' must be {kind}, got {value!r}")
    return dict(value) if isinstance(value, Mapping) else value


def _load_weighting(state: Any, count: int, weighting: Weighting) -> None:
    """Loads the weighting's state, and raises ValueError if the weighting does not work with it."""
    name, numbers = type(weighting).__name__, []
    try:
        weighting.load_state_dict(state)
        numbers = [value for value in weighting.multipliers.values() if isinstance(value, Tensor)]
        if not weighting.follows:
            numbers.append(weighting.weights())
        fits = all(x.shape == (count,) and bool(x.isfinite().all()) for x in numbers)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"state_dict does not fit the weighting {name}: {error!r}") from error
    if not fits:
        raise ValueError(f"state_dict does not fit the weighting {name}: it gives {[x.tolist() for x in numbers]}")


def creates_state(base: Optimizer) -> bool:
    """Whether a step of the base optimizer would do nothing but create its state.

    That is so if it has no state yet, all learning rates are 0, and all gradients are there and are 0.
    torch.distributed.checkpoint takes such a step, so that it has moments to save or to load into.
    """
    params = [p for group in base.param_groups for p in group["params"] if p.requires_grad]
    if base.state or any(group.get("lr", math.nan) != 0 for group in base.param_groups):
        return False
    return bool(params) and all(p.grad is not None for p in params) and largest(params).item() == 0


def create_state(base: Optimizer) -> None:
    """Takes such a step, and sets the base optimizer's count of steps back to 0: nothing has been learnt yet."""
    base.step()
    for values in base.state.values():
        count = values.get("step")
        if isinstance(count, Tensor):
            count.zero_()
        elif count is not None:
            values["step"] = 0


def _plain(value: Any) -> Any:
    """A copy of the value with all tensors on the CPU, wherever ``torch.load`` or other code put them.

    Equal strings become one object, so that equal values give equal bytes in a file.
    """
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return sys.intern(value) if type(value) is str else value
