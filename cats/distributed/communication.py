"""The processes that train together, and the dtype in which they exchange gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

# torch 2.13 has new names for these functions, and warns about the old ones.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)


class Communication:
    """The processes among which gradients are averaged.

    Args:
        group: their process group. None: the default group of torch.distributed, whenever that is initialised.
        dtype: the dtype in which replicas exchange gradients: torch.bfloat16, or None for that of the parameters.

    Raises:
        TypeError: ``group`` is not a process group.
        ValueError: this process is not in it, or ``dtype`` is another one.
    """

    def __init__(self, group: Any = None, dtype: torch.dtype | None = None) -> None:
        if group is not None and dist.is_available() and group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("this process is not in process_group")
        if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(f"process_group must be a process group of torch.distributed, got {type(group).__name__}")
        if dtype not in (None, torch.bfloat16):
            raise ValueError(f"communication_dtype must be torch.bfloat16 or None, got {dtype}")
        self.group = group
        self.dtype = dtype

    # A copy of an optimizer trains with the same processes. A group cannot be pickled, and torch says so.
    def __deepcopy__(self, memo: dict[int, Any]) -> Communication:
        return self

    @property
    def size(self) -> int:
        """The number of processes: 1 if torch.distributed is not in use."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """The place of this process among them."""
        return dist.get_rank(self.group)

    @property
    def ranks(self) -> list[int]:
        """The global ranks of the processes, in their order."""
        return dist.get_process_group_ranks(self.group or dist.group.WORLD)  # torch 2.6 does not know None

    def divisors(self, dtype: torch.dtype) -> tuple[int, int]:
        """By what gradients of parameters of this dtype are divided before and after they are added, for their mean.

        The sum of float16 gradients may be infinite where their mean is not, so those are divided before.
        """
        return (self.size, 1) if dtype == torch.float16 else (1, self.size)

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the processes, in a new tensor."""
        result = numbers.clone()
        dist.all_reduce(result, group=self.group)
        return result

    def scattered_sum(self, values: Tensor) -> Tensor:
        """This process's part of the sum over the processes. values: (size · n,). Returns (n,)."""
        part = values.new_empty(len(values) // self.size)
        _reduce_scatter(part, values, group=self.group)
        return part

    def gathered(self, part: Tensor) -> Tensor:
        """The parts of all processes: (size · n,) from (n,) each."""
        values = part.new_empty(len(part) * self.size)
        _all_gather(values, part, group=self.group)
        return values
