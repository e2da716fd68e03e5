"""Which parameters of an optimizer are trained, and which of them are shared by the tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .tasks import describe


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


def check_kinds(param_groups: Sequence[dict[str, Any]]) -> None:
    """Refuses parameters that require grad and cannot be trained: complex ones, and those that are sharded.

    Raises:
        TypeError: a parameter is complex.
        RuntimeError: a parameter is sharded, by FullyShardedDataParallel or as a DTensor.
    """
    for i, group in enumerate(param_groups):
        for j, p in enumerate(group["params"]):
            if p.requires_grad and p.is_complex():
                raise TypeError(
                    f"parameter {j} of group {i} ({describe(p)}) is {p.dtype}, which is not supported: train its "
                    "torch.view_as_real(), and use torch.view_as_complex() in the model"
                )
            if p.requires_grad and _is_sharded(p):
                raise RuntimeError(
                    f"parameter {j} of group {i} ({describe(p)}) is sharded (DTensor or FullyShardedDataParallel), "
                    "which is not supported: give every process a whole replica of the model"
                )


def _is_sharded(param: Tensor) -> bool:
    # These modules take long to import. If nobody has imported them, there are no such parameters.
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is not None and isinstance(param, tensors.DTensor):
        return True
    # FullyShardedDataParallel marks its flat parameters, and the original ones if it keeps them.
    return "torch.distributed.fsdp" in sys.modules and getattr(param, "_fsdp_flattened", False)
