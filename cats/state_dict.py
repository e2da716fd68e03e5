"""What the state_dict of an optimizer of this package holds beside that of its base, and how it is checked.

It is the entry ``"multitask"``. torch.distributed.checkpoint drops every entry but ``"state"`` and ``"param_groups"``,
and keeps what is in a parameter group. So the first group has the same entry once more, as bytes.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .gradients import largest

ENTRY = "multitask"


def add_entry(state: dict[str, Any], entry: dict[str, Any]) -> None:
    """Adds the entry to the base optimizer's state_dict, in both places."""
    file = io.BytesIO()
    torch.save(_plain(entry), file)
    first, *others = state["param_groups"]
    state["param_groups"] = [{**first, ENTRY: file.getvalue()}, *others]
    state[ENTRY] = entry


def take_entry(state: dict[str, Any]) -> dict[str, Any]:
    """The entry, with all its tensors on the CPU. ``state`` becomes a state_dict for the base optimizer.

    Raises:
        ValueError: there is none, because it is the state of a plain optimizer.
    """
    entry = state.pop(ENTRY, None)
    groups = [dict(group) for group in state.get("param_groups", [])]
    packed = [group.pop(ENTRY, None) for group in groups]
    if entry is None and packed and isinstance(packed[0], bytes):
        entry = torch.load(io.BytesIO(packed[0]), map_location="cpu", weights_only=True)
    if entry is None:
        raise ValueError("state_dict has no 'multitask' entry: load a plain optimizer's state into .base")
    state["param_groups"] = groups
    return _plain(entry)


def check_entry(entry: Any, tasks: Sequence[str | int], like: dict[str, Any]) -> None:
    """Checks all of the entry but the weighting's own state.

    Args:
        tasks: the names of the optimizer's tasks.
        like: an entry of this optimizer. All its numbers must be in the other one.

    Raises:
        ValueError: it is for other tasks, or something is missing or has a wrong type or length.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"state_dict: 'multitask' must be a dict, got {type(entry).__name__}")
    missing = [name for name in like if name not in entry]
    if missing:
        raise ValueError(f"state_dict: 'multitask' has no {missing[0]!r}")
    if not isinstance(entry["tasks"], list | tuple) or tuple(entry["tasks"]) != tuple(tasks):
        raise ValueError(f"state_dict is for tasks {entry['tasks']!r}, this optimizer has {list(tasks)}")
    weights, counts, last = entry["weights"], entry["counts"], entry["last"]
    if not isinstance(weights, Tensor) or weights.shape != (len(tasks),) or not weights.is_floating_point():
        got = f"{weights.dtype} of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise ValueError(f"state_dict: 'weights' must be {len(tasks)} floating-point numbers, one per task, got {got}")
    for name in like["counts"]:
        value = counts.get(name) if isinstance(counts, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"state_dict: 'counts' needs an integer {name!r} of at least 0, got {value!r}")
    for name, own in like["last"].items():
        value = last.get(name) if isinstance(last, Mapping) else None
        numbers = list(value.values()) if isinstance(value, Mapping) else [value]
        if isinstance(value, Mapping) != isinstance(own, dict) or not all(isinstance(x, int | float) for x in numbers):
            kind = "a number for each task" if isinstance(own, dict) else "a number"
            raise ValueError(f"state_dict: {name!r} in 'last' must be {kind}, got {value!r}")


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
