"""Dynamic weight average: weight to the tasks whose losses fall slowly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .adaptive import Adaptive, Reduction
from .checks import check_count, check_number


class DWA(Adaptive):
    """w_n = N softmax(r_n / T), where r_n is the mean loss of the last epoch over that of the epoch before.

    Liu, Johns & Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv 1803.10704, Eq. 7. The
    weights are equal until there are two epochs.

    An epoch is a window of steps here, because batches are drawn from mixtures that have no common epoch. A task that
    is absent from a whole window keeps its r_n. r_n is 1 where the earlier mean is not positive.

    Args:
        temperature: T. Smaller values make the weights less equal.
        window: the number of steps of an epoch.
        reduction: whether the weights are N α_n ("sum", as in the paper) or α_n ("mean").

    Raises:
        TypeError, ValueError: an option is not a number, or has a value that is not allowed.
    """

    remembered = ("means", "windows", "sums", "counts", "steps")

    def __init__(self, *, temperature: float = 2.0, window: int = 100, reduction: Reduction = "sum") -> None:
        super().__init__(reduction)
        self.temperature = check_number("DWA: temperature", temperature, 1e-6)
        self.window = check_count("DWA: window", window)

    def start(self, tasks: int) -> None:
        super().start(tasks)
        # The mean losses of each task in the last two windows with it, the later one last; how many there were; and the
        # sums of the present window.
        self._means = torch.zeros(2, tasks, dtype=torch.float64, device="cpu")
        self._windows = torch.zeros(tasks, dtype=torch.int64, device="cpu")
        self._sums, self._counts = torch.zeros(2, tasks, dtype=torch.float64, device="cpu")
        self._steps = torch.zeros((), dtype=torch.int64, device="cpu")

    def weights(self) -> Tensor:
        before, last = self._means
        known = (self._windows > 1) & (before > 0)
        ratios = torch.where(known, last / before, 1.0).clamp(-1e6, 1e6)
        return torch.softmax(ratios / self.temperature, 0) * self.scale

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._check_finite(losses)
        here = list(present)
        self._sums, self._counts = self._sums.clone(), self._counts.clone()
        self._sums[here] += losses
        self._counts[here] += 1
        self._steps = self._steps + 1
        if self._steps >= self.window:  # it may be shorter than it was when the state was saved
            seen = self._counts > 0
            self._means = torch.where(seen, torch.stack([self._means[1], self._sums / self._counts]), self._means)
            self._windows = self._windows + seen
            self._sums, self._counts = torch.zeros(2, len(self._sums), dtype=torch.float64, device="cpu")
            self._steps = torch.zeros_like(self._steps)
