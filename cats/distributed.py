"""What changes when there is more than one process: gradients are averaged, and so are the numbers that move weights.

Every process has a replica of the parameters and its own losses; all of them step with the mean of their gradients.
Gradients are averaged after they are formed, once per backward(), which torch's DistributedDataParallel would do while
they are: it sees no per-task gradients, and of K forward passes before K backward passes it makes wrong ones.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from .gradients import Gradient


def processes() -> int:
    """How many there are: 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_replicas(params: Sequence[Tensor]) -> None:
    """Refuses parameters that are not replicas which nobody else averages the gradients of. Waits for the device.

    Raises:
        RuntimeError: they are sharded, wrapped in DistributedDataParallel, or different on some processes.
    """
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    if any(isinstance(p, DTensor) for p in params):
        raise RuntimeError("sharded parameters (DTensor) are not supported: give every process a whole replica")
    ours = {id(p) for p in params}
    wrappers = [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]
    if any(id(p) in ours for wrapper in wrappers for p in wrapper.parameters()):
        raise RuntimeError(
            "the model is wrapped in DistributedDataParallel, which averages gradients too and sees no per-task ones: "
            "train the module itself (model.module)"
        )
    sums = torch.stack([x for p in params for x in (p.detach().double().sum(), p.detach().double().square().sum())])
    both = torch.stack([sums, -sums])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    if not torch.equal(both[0], -both[1]) and not both.isnan().any():
        raise RuntimeError(
            "the parameters differ between processes: start all of them from the same seed or checkpoint"
        )


def total(numbers: Tensor) -> Tensor:
    """The sum over the processes."""
    result = numbers.clone()
    dist.all_reduce(result)
    return result


def mean(gradient: Gradient, params: Sequence[Tensor]) -> Gradient:
    """The mean over the processes, where None counts as zero; None where all have None.

    One all-reduce for each dtype, of flat copies, and a small one before that.
    """
    device = params[0].device
    there = total(torch.tensor([g is not None for g in gradient], dtype=torch.int32, device=device)).tolist()
    result: Gradient = [None] * len(params)
    for dtype in dict.fromkeys(p.dtype for p in params):
        chosen = [i for i, p in enumerate(params) if there[i] and p.dtype == dtype]
        if not chosen:
            continue
        flat = torch.cat([_dense(gradient[i], params[i]).reshape(-1) for i in chosen])
        dist.all_reduce(flat)
        flat /= processes()
        for i, part in zip(chosen, flat.split([params[i].numel() for i in chosen]), strict=True):
            result[i] = part.view(params[i].shape)
    return result


def _dense(gradient: Tensor | None, param: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(param)
    return gradient.to_dense() if gradient.is_sparse else gradient


def take_grads(params: Iterable[Tensor]) -> Gradient:
    """What stands in ``p.grad``, which is None from now on."""
    found: Gradient = []
    for p in params:
        found.append(p.grad)
        p.grad = None
    return found
