"""The mean of a gradient over the processes, all-reduced in buckets while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from cats.gradients import Gradient, dense

from .communication import Communication

BUCKET_BYTES = 25 * 2**20  # as in DistributedDataParallel


class BucketedMean:
    """The mean over the processes of one gradient, where a parameter without one counts as zero.

    A bucket is a flat copy of the gradients of some parameters, and it is all-reduced as soon as it is complete. The
    buckets have the same order in all processes, that of the parameters from the last to the first, so that the order
    of the all-reduces is the same too. A bucket that lacks a gradient waits for :meth:`finish`, and so do the later
    ones. The last one does so always: nothing is left to do meanwhile.

    A bucket has one number more per parameter: whether it has a gradient. A parameter that has none in any process
    gets none. The last bucket also tells whether a process failed, and whether a gradient changed after its bucket was
    sent. A function written in Python may cause that, if it runs a backward pass of its own. Then all buckets are sent
    again.

    Args:
        params: the parameters. Memory for all buckets is allocated here.
        communication: the processes, and the dtype of the buckets.

    Attributes:
        sent_twice: whether all buckets were sent again.
    """

    def __init__(self, params: Sequence[Tensor], communication: Communication) -> None:
        self.sent_twice = False
        self._params = params
        self._communication = communication
        self._buckets = [_Bucket(chosen, params, communication) for chosen in _chosen(params)]
        self._place = {i: (bucket, k) for bucket in self._buckets for k, i in enumerate(bucket.params)}
        self._changed = False  # whether a gradient changed here after its bucket was sent

    @contextmanager
    def filled_by_backward(self) -> Iterator[None]:
        """Inside, a backward pass fills the buckets from ``p.grad``, and complete ones are sent."""

        def fill(i: int, p: Tensor) -> None:
            bucket, k = self._place[i]
            if bucket.work is not None:
                self._changed = True
            else:
                bucket.put(k, p.grad)
            for each in self._buckets[:-1]:
                if not all(each.has):
                    break
                each.send(self._communication)

        hooks = [p.register_post_accumulate_grad_hook(lambda p, i=i: fill(i, p)) for i, p in enumerate(self._params)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def finish(self, gradient: Gradient, *, failed: bool = False) -> Gradient | None:
        """The mean, or None if a process failed. Has one host sync.

        Args:
            gradient: that of this process.
            failed: whether this process failed. It takes part all the same, because the others wait for it.
        """
        holders = self._send(gradient, failed)
        failures, changed = holders[-2:]
        if failures:
            return None
        if changed:
            self.sent_twice = True
            for bucket in self._buckets:
                bucket.work = None
            holders = self._send(gradient, failed)
        result: Gradient = [None] * len(self._params)
        for bucket in self._buckets:
            means = bucket.flat.to(self._params[bucket.params[0]].dtype).div_(bucket.divide_after)
            for i, part in zip(bucket.params, means.split(bucket.sizes), strict=False):
                result[i] = part.view(self._params[i].shape) if holders.pop(0) else None
            del holders[:2]
        return result

    def _send(self, gradient: Gradient, failed: bool) -> list[float]:
        """Sends all buckets that were not sent, and returns what the processes told in the numbers at their ends."""
        for bucket in self._buckets:
            if bucket.work is None:
                for k, i in enumerate(bucket.params):
                    bucket.put(k, gradient[i])
                bucket.send(self._communication, failed=failed, changed=self._changed)
        for bucket in self._buckets:
            bucket.work.wait()
        device = self._params[0].device
        return torch.cat([bucket.holders.to(device, torch.float32) for bucket in self._buckets]).tolist()


class _Bucket:
    """The gradients of some parameters of one dtype and device."""

    def __init__(self, chosen: list[int], params: Sequence[Tensor], communication: Communication) -> None:
        first = params[chosen[0]]
        self.params = chosen
        self.sizes = [*(params[i].numel() for i in chosen), len(chosen) + 2]
        self.flat = torch.empty(sum(self.sizes), dtype=communication.dtype or first.dtype, device=first.device)
        self.divide_before, self.divide_after = communication.divisors(first.dtype)
        *self.parts, self.holders = self.flat.split(self.sizes)
        self.has = [False] * len(chosen)
        self.work: Any = None  # the all-reduce, once it has started

    @torch.no_grad()
    def put(self, k: int, gradient: Tensor | None) -> None:
        """Copies the gradient of its k-th parameter."""
        self.has[k] = gradient is not None
        if gradient is not None:
            part = self.parts[k].view(gradient.shape).copy_(dense(gradient))
            if self.divide_before > 1:
                part.div_(self.divide_before)

    @torch.no_grad()
    def send(self, communication: Communication, *, failed: bool = False, changed: bool = False) -> None:
        """Starts the all-reduce, unless it has started."""
        if self.work is None:
            for part, has in zip(self.parts, self.has, strict=True):
                if not has:
                    part.zero_()
            self.holders.copy_(torch.tensor([*self.has, failed, changed], dtype=self.flat.dtype))
            self.work = dist.all_reduce(self.flat, group=communication.group, async_op=True)


def _chosen(params: Sequence[Tensor]) -> list[list[int]]:
    """The parameters of each bucket."""
    chosen: list[list[int]] = []
    open_buckets: dict[tuple[torch.dtype, torch.device], tuple[list[int], int]] = {}
    for i in reversed(range(len(params))):
        key = params[i].dtype, params[i].device
        bucket, size = open_buckets.get(key, ([], 0))
        if not bucket:
            chosen.append(bucket)
        bucket.append(i)
        size += params[i].numel() * params[i].element_size()
        open_buckets[key] = ([], 0) if size >= BUCKET_BYTES else (bucket, size)
    return chosen
