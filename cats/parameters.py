"""Which parameters of an optimizer are trained, and which of them are shared by the tasks."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from .gradients import is_sharded
from .tasks import describe
from .weighting.protocol import Groups


def shared_parameters(shared: Iterable[Tensor], param_groups: Sequence[dict[str, Any]]) -> list[Tensor]:
    """The parameters given as shared, which must be parameters of the groups.

    Raises:
        TypeError: a tensor instead of an iterable of tensors.
        ValueError: none are given, or one is not in any group.
    """
    if isinstance(shared, Tensor):
        raise TypeError("shared must be an iterable of parameters, got a tensor")
    params = list(shared)
    known = {id(p) for group in param_groups for p in group["params"]}
    for i, p in enumerate(params):
        if id(p) not in known:
            raise ValueError(f"shared[{i}] ({describe(p)}) is not a parameter of the optimizer")
    if not params:
        raise ValueError("shared is empty: at least one parameter must be shared")
    return params


def trainable_parameters(
    param_groups: Sequence[dict[str, Any]], shared: Sequence[Tensor] | None
) -> tuple[list[Tensor], int]:
    """The parameters that require grad, the shared ones first, and how many of them are shared.

    shared: if None, all are shared.

    Raises:
        ValueError: no parameter requires grad.
        TypeError, RuntimeError: see :func:`check_kinds`.
    """
    check_kinds(param_groups)
    params = [p for group in param_groups for p in group["params"] if p.requires_grad]
    if not params:
        raise ValueError("no parameter of the optimizer requires grad")
    if shared is None:
        return params, len(params)
    ids = {id(p) for p in shared}
    first, rest = [p for p in params if id(p) in ids], [p for p in params if id(p) not in ids]
    return [*first, *rest], len(first)


def parameter_names(
    params: Sequence[Tensor], param_groups: Sequence[dict[str, Any]], model: nn.Module | None
) -> list[str]:
    """Names for error messages: those of the model, or of optimizers made from named_parameters(), or a place."""
    names = _known_names(param_groups, model)
    for i, group in enumerate(param_groups):
        for j, p in enumerate(group["params"]):
            names.setdefault(id(p), f"parameter {j} of group {i}")
    return [f"{names[id(p)]} {tuple(p.shape)}" for p in params]


def _known_names(param_groups: Sequence[dict[str, Any]], model: nn.Module | None) -> dict[int, str]:
    """{id of a parameter: its name}, as far as names are known."""
    names: dict[int, str] = {}
    for group in param_groups:
        names |= {id(p): name for p, name in zip(group["params"], group.get("param_names", []), strict=False)}
    if model is not None:
        names |= {id(p): name for name, p in model.named_parameters()}
    return names


def groups_of_parameters(
    groups: Groups, params: Sequence[Tensor], param_groups: Sequence[dict[str, Any]], model: nn.Module | None
) -> tuple[list[int], int] | None:
    """The group of each trained parameter, as :attr:`cats.weighting.Weighting.groups` says, and the number of groups.

    Groups are numbered over all parameters of the optimizer, so that freezing some of them changes no number.

    Args:
        params: those that are trained.

    Raises:
        TypeError, ValueError: there are no such groups, a sequence has another length, or the names are not known.
    """
    if groups is None:
        return None
    everything = [p for group in param_groups for p in group["params"]]
    keys: list[Hashable]
    if groups == "parameter":
        keys = list(range(len(everything)))
    elif isinstance(groups, str) and groups != "layer":
        raise ValueError(f"groups must be 'parameter', 'layer', a callable or a sequence, got {groups!r}")
    elif groups == "layer" or callable(groups):
        names = _known_names(param_groups, model)
        if any(id(p) not in names for p in everything):
            raise ValueError(
                "groups of parameters by name need their names: pass model= to the optimizer, or make its base "
                "optimizer from model.named_parameters()"
            )
        group_of = groups if callable(groups) else _layer
        keys = [group_of(names[id(p)], p) for p in everything]
    elif not isinstance(groups, Sequence):
        raise TypeError(f"groups must be 'parameter', 'layer', a callable or a sequence, got {describe(groups)}")
    else:
        keys = list(groups)
        if len(keys) != len(everything):
            raise ValueError(f"groups has {len(keys)} entries for {len(everything)} parameters of the optimizer")
    numbers: dict[Hashable, int] = {}
    for key in keys:
        numbers.setdefault(key, len(numbers))
    index = {id(p): numbers[key] for p, key in zip(everything, keys, strict=True)}
    return [index[id(p)] for p in params], len(numbers)


def _layer(name: str, parameter: Tensor) -> str:
    """The name up to its first number (decoder.layers.0), or without a number that of the module."""
    parts = name.split(".")
    end = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[:end])


def check_kinds(param_groups: Sequence[dict[str, Any]]) -> None:
    """Refuses parameters that require grad and cannot be trained: complex ones, and some that are sharded.

    Raises:
        TypeError: a parameter is complex.
        RuntimeError: a parameter is sharded by FullyShardedDataParallel, or in another way than fully_shard does it.
    """
    for i, group in enumerate(param_groups):
        for j, p in enumerate(group["params"]):
            if p.requires_grad and p.is_complex():
                raise TypeError(
                    f"parameter {j} of group {i} ({describe(p)}) is {p.dtype}, which is not supported: train its "
                    "torch.view_as_real(), and use torch.view_as_complex() in the model"
                )
            if p.requires_grad and (how := _unsupported_shards(p)):
                raise RuntimeError(f"parameter {j} of group {i} ({describe(p)}) {how}")


def _unsupported_shards(p: Any) -> str | None:
    """What an error says about a parameter that is sharded in a way that is not supported."""
    if is_sharded(p):
        # fully_shard splits one dimension, and may replicate that in another dimension of the device mesh.
        *others, last = p.placements
        if last.is_shard() and len(others) < 2 and all(other.is_replicate() for other in others):
            return None
        return f"is a DTensor with placements {p.placements}, which is not supported: shard with fully_shard alone"
    # FullyShardedDataParallel marks its flat parameters, and the original ones if it keeps them.
    if "torch.distributed.fsdp" in sys.modules and getattr(p, "_fsdp_flattened", False):
        return "is sharded by FullyShardedDataParallel, which is not supported: use fully_shard"
    return None
