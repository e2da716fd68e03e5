"""What must be the same in all processes, and how they compare it: a hash in one small all-reduce.

Only if the hashes differ do the processes exchange what they hashed, so that the error can name the difference.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch import distributed as dist

from .weighting import Weighting

# What is compared: texts, or lists of texts, by name. Texts are exact for floats, and nan is equal to itself.
Description: TypeAlias = dict[str, str | list[str]]
# What to do if the processes differ in this.
_ADVICE = {
    "tasks with a loss": (
        "with fully_shard, all pass losses of the same tasks in the same order, and a process without rows of a task "
        "passes the loss of one row times 0"
    )
}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of an element


def describe_call(
    name: str,
    counts: Mapping[str, int],
    gathered: int,
    outer: bool,
    param_groups: Sequence[Mapping[str, Any]],
    scale: Tensor | None,
) -> Description:
    """What is compared in every call: what the call does, which parameters it trains, and how fast.

    Args:
        name: "backward()" or "step()".
        counts: the optimizer's numbers of steps.
        gathered: the number of backward() calls whose gradients this step has so far. Zeroing gradients discards them.
        outer: whether the call computes <g_n, ḡ>.
        param_groups: the optimizer's. A learning rate on a GPU is not read, because that would be a host sync.
        scale: GradScaler's scale. It is read, so this must not be given where a host sync would cost time.
    """
    params = [p for group in param_groups for p in group["params"]]
    rates = [group.get("lr") for group in param_groups]
    return {
        "call": f"{name} of step {counts['step'] + 1}",
        "backward() calls gathered": str(gathered),
        "skipped steps": str(counts["skipped"]),
        "<g_n, ḡ>": "computed" if outer else "not computed",
        "scale of the GradScaler": _exact(scale),
        "number of parameters": str(len(params)),
        "parameter": ["trained" if p.requires_grad else "frozen" for p in params],
        "learning rate of group": ["on a GPU" if isinstance(lr, Tensor) and lr.is_cuda else _exact(lr) for lr in rates],
    }


def describe_settings(
    tasks: Sequence[Any],
    weighting: Weighting,
    param_groups: Sequence[Mapping[str, Any]],
    **other: Any,
) -> Description:
    """What is compared now and then: the names and order of the tasks, all settings, α, λ and counters.

    Args:
        tasks: the tasks' names in their order.
        weighting: its public attributes are settings, and its state_dict() must be the same too.
        param_groups: the optimizer's. The shapes and dtypes of the parameters are compared, and all other entries.
        other: further values by name.
    """
    described: Description = {"number of tasks": str(len(tasks)), "task": [repr(task) for task in tasks]}
    described["weighting"] = type(weighting).__name__
    for name, value in vars(weighting).items():
        if not name.startswith("_"):
            described[f"{name} of the weighting"] = _exact(value)
    for name, value in other.items():
        described |= (
            {f"{name} {key}": _exact(v) for key, v in value.items()}
            if isinstance(value, dict)
            else {name: _exact(value)}
        )
    described["state of the weighting"] = _exact(weighting.state_dict())
    for i, group in enumerate(param_groups):
        described[f"parameters of group {i}"] = [f"{tuple(p.shape)} {p.dtype}" for p in group["params"]]
        for name, value in group.items():
            if name != "params":
                described[f"{'learning rate' if name == 'lr' else name} of group {i}"] = _exact(value)
    return described


def _exact(value: Any) -> str:
    """A text that is the same only for equal values."""
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_exact(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_exact, value)) + "]"
    # The repr() of other objects may have their address in it, which differs between processes.
    return repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__


def meet(
    described: Description, device: torch.device, failure: Exception | None, *, wish: bool, group: Any = None
) -> bool:
    """One all-reduce of four numbers in which the processes compare their description, and tell whether one failed.

    Args:
        described: what must be the same in all processes.
        device: where the all-reduce takes place.
        failure: the error that this process will raise, or None.
        wish: something that this process wants all to do.
        group: the process group of the processes. None: the default group.

    Returns:
        whether any process has the wish.

    Raises:
        RuntimeError: in all processes, if the descriptions differ. In those that did not fail, if others did.
    """
    digest = _digest(described)
    numbers = torch.tensor([failure is not None, wish, digest, -digest], dtype=torch.float64, device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=group)
    failed, wished, largest, smallest = numbers.tolist()
    if failed:
        errors = _gather("" if failure is None else f"{type(failure).__name__}: {failure}", device, group)
        others = [
            f"process {rank} failed with {error}" for rank, error in zip(_ranks(group), errors, strict=True) if error
        ]
        if failure is None:
            raise RuntimeError(f"{'; '.join(others)}; no process has changed its parameters or p.grad")
    elif largest != -smallest:
        texts = _gather(json.dumps(described), device, group)
        raise RuntimeError(_differences(list(map(json.loads, texts)), _ranks(group)))
    return bool(wished)


def compare_parameters(params: Sequence[Tensor], group: Any = None, *, part: int = 0, parts: int = 1) -> None:
    """Compares the parameters bit by bit, by a checksum of each. Has a host sync, unless there are none.

    Args:
        params: the parameters, or the shards of them that this process has.
        group: the process group of the processes. None: the default group.
        part, parts: which shards these are, and of how many. Processes with the same shards are compared.

    Raises:
        RuntimeError: in all processes, if the checksums differ.
    """
    if not params:
        return
    sums = torch.stack([_checksum(p.detach()).to(params[0].device) for p in params])
    both = torch.full((2, parts, len(params)), -math.inf, dtype=torch.float64, device=sums.device)
    both[:, part] = torch.stack([sums, -sums])
    dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    differing = (both[0] != -both[1]).any(dim=0).nonzero()[:, 0].tolist()
    if differing:
        raise RuntimeError(
            f"the parameters differ between processes, in {len(differing)} of {len(params)} tensors (the first one has "
            f"shape {tuple(params[differing[0]].shape)}): start all processes from the same seed or checkpoint, and "
            "change parameters in all of them alike"
        )


def checksum(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """One number for all the tensors, 0-d float64 on ``device``."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for k, each in enumerate(tensors):
        total = (total + (k + 1) * _checksum(each.detach()).to(device).remainder(2**32)).remainder(2**52)
    return total


def _checksum(values: Tensor) -> Tensor:
    """The sum of the bit patterns, 0-d float64. It is exact in any order, and nan is a pattern like others."""
    bits = values.view(_INTEGERS[values.element_size()])
    return bits.sum(dtype=torch.int64).remainder(2**52).double()


def _digest(described: Description) -> int:
    """48 bits of a hash, which float64 holds exactly."""
    return int.from_bytes(hashlib.blake2b(repr(described).encode(), digest_size=6).digest(), "big")


def _ranks(group: Any) -> list[int]:
    """The global ranks of the processes of a group, in their order. Error messages name processes by them."""
    return dist.get_process_group_ranks(group or dist.group.WORLD)  # torch 2.6 does not know None


def _differences(described: Sequence[Description], ranks: Sequence[int]) -> str:
    found: dict[str, list[str]] = {}  # the values of all processes by name. Lists have one name per entry.
    for name in dict.fromkeys(name for each in described for name in each):
        values = [each.get(name, "none") for each in described]
        lists = [value for value in values if isinstance(value, list)]
        if len(lists) == len(values):
            found |= {f"{name} {i}": list(entries) for i, entries in enumerate(zip(*lists, strict=False))}
        else:
            found[name] = list(map(str, values))
    parts, advice = [], ""
    for name, texts in found.items():
        if len(set(texts)) > 1:
            first = {
                text: rank for rank, text in reversed(list(zip(ranks, texts, strict=True)))
            }  # the first process with this text
            shown = sorted((rank, text) for text, rank in first.items())[:3]
            parts.append(f"{name} ({', '.join(f'{_short(text)} in process {rank}' for rank, text in shown)})")
            advice += f"; {_ADVICE[name]}" if name in _ADVICE else ""
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    return f"the processes differ in {', '.join(parts[:5])}{more}: they must be the same in all of them{advice}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


def _gather(text: str, device: torch.device, group: Any) -> list[str]:
    """The texts of all processes, in their order."""
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    length = torch.tensor([len(data)], device=device)
    lengths = [torch.zeros_like(length) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, length, group=group)
    sizes = [int(each) for each in lengths]
    padded = data.new_zeros(max(sizes))
    padded[: len(data)] = data
    texts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(texts, padded, group=group)
    return [bytes(each[:size].tolist()).decode() for each, size in zip(texts, sizes, strict=True)]
