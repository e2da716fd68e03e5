"""Per-task gradients of replicas, of which each process keeps a share of the elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cats.gradients import Gradient, dense, position

from .communication import Communication


class Shares:
    """Mean gradients over the processes, of which each process has an equal share of the elements.

    Inner products of mean gradients are then sums over the shares, and a linear combination needs no communication
    before it is gathered. To reduce K gradients in this way, the processes exchange half as many bytes as in K
    all-reduces, and each of them keeps K times the share.

    Args:
        params: the parameters, the shared ones first.
        shared: how many of them are shared.
        communication: the processes, and the dtype in which they exchange gradients.
        present: the parameters that have a gradient in any process.
        groups: the group of each parameter. A tensor of a share has elements of one group only, so that inner products
            can be computed per group. Each group and dtype is exchanged by itself. None: all are in group 0.

    Attributes:
        shared: how many tensors of a share hold elements of shared parameters. They are the first ones.
        groups: the group of each tensor of a share.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        shared: int,
        communication: Communication,
        present: frozenset[int],
        groups: Sequence[int] | None = None,
    ) -> None:
        self.present = present
        self._params = params
        self._communication = communication
        kinds: dict[tuple[bool, int, torch.dtype, torch.device], list[int]] = {}
        for i, p in enumerate(params):
            kinds.setdefault((i < shared, 0 if groups is None else groups[i], p.dtype, p.device), []).append(i)
        self._chosen = list(kinds.values())  # the parameters of each tensor of a share
        self.shared = sum(of_shared for of_shared, _, _, _ in kinds)
        self.groups: Sequence[int] = [group for _, group, _, _ in kinds]

    def scatter(self, gradient: Gradient) -> Gradient:
        """This process's share of the mean over the processes. None counts as zero."""
        share: Gradient = []
        for chosen in self._chosen:
            first, length = self._params[chosen[0]], self._length(chosen)
            dtype = self._communication.dtype or first.dtype
            before, after = self._communication.divisors(first.dtype)
            flat = torch.zeros(length * self._communication.size, dtype=dtype, device=first.device)
            parts = flat.split([*self._sizes(chosen), len(flat) - sum(self._sizes(chosen))])
            for i, part in zip(chosen, parts, strict=False):
                g = dense(gradient[i])
                if g is not None:
                    part.view(g.shape).copy_(g)
            if before > 1:
                flat.div_(before)
            share.append(self._communication.scattered_sum(flat).to(first.dtype).div_(after))
        return share

    def gather(self, share: Gradient) -> Gradient:
        """The whole gradient, one tensor or None per parameter."""
        gradient: Gradient = [None] * len(self._params)
        for chosen, mine in zip(self._chosen, share, strict=True):
            assert mine is not None
            flat = self._communication.gathered(mine)
            parts = flat.split([*self._sizes(chosen), len(flat) - sum(self._sizes(chosen))])
            for i, part in zip(chosen, parts, strict=False):
                gradient[i] = part.view(self._params[i].shape) if i in self.present else None
        return gradient

    @property
    def positions(self) -> list[int]:
        """For each of the :meth:`parts` of a share, the number of its first element, see :func:`position`."""
        return [position(self._params, i, first) for pieces in self._pieces() for i, first, _ in pieces]

    def parts(self, share: Gradient) -> Gradient:
        """The share as views: one for each parameter of which it has elements."""
        parts: Gradient = []
        for pieces, mine in zip(self._pieces(), share, strict=True):
            assert mine is not None
            begin = 0
            for _, _, count in pieces:
                parts.append(mine[begin : begin + count])
                begin += count
        return parts

    def joined(self, parts: Gradient) -> Gradient:
        """The share, from one tensor for each of its parts."""
        share: Gradient = []
        rest = iter(parts)
        for chosen, pieces in zip(self._chosen, self._pieces(), strict=True):
            mine = self._params[chosen[0]].new_zeros(self._length(chosen))  # its end may belong to no parameter
            begin = 0
            for _, _, count in pieces:
                part = next(rest)
                assert part is not None
                mine[begin : begin + count] = part
                begin += count
            share.append(mine)
        return share

    def _pieces(self) -> list[list[tuple[int, int, int]]]:
        """For each tensor of a share, what it holds: parameter, first element, number of elements."""
        found: list[list[tuple[int, int, int]]] = []
        for chosen in self._chosen:
            length, pieces, start = self._length(chosen), [], 0
            low = self._communication.rank * length
            for i, size in zip(chosen, self._sizes(chosen), strict=True):
                first, end = max(0, low - start), min(size, low + length - start)
                if first < end:
                    pieces.append((i, first, end - first))
                start += size
            found.append(pieces)
        return found

    def _sizes(self, chosen: Sequence[int]) -> list[int]:
        return [self._params[i].numel() for i in chosen]

    def _length(self, chosen: Sequence[int]) -> int:
        return -(-sum(self._sizes(chosen)) // self._communication.size)
