"""GradDrop: of the gradients of each element, those of one sign, chosen at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cats import ops

from .checks import check_number
from .protocol import Weighting


class GradDrop(Weighting):
    """Gradient Sign Dropout: every element of ḡ is the sum of the tasks' gradients with one of their two signs.

    Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", NeurIPS 2020,
    Algorithm 1. The positive gradients of an element are kept with probability P = ½(1 + Σ g_n / Σ |g_n|), otherwise
    the negative ones; :func:`cats.ops.graddrop` has the details. Where the gradients agree, ḡ is Σ g_n. The paper masks
    the gradients of activations, as LibMTL does. This masks those of parameters, as TorchJD does.

    Every step computes one gradient per task (engine "per_task"), and if it has several backward() calls, adds them
    before a sign is chosen. ḡ is no weighted sum: the weights that the optimizer reports are 1, its ``dots`` are
    <g_n, ḡ>, and ``sqnorm`` is <Σ g_n, ḡ>.

    The random numbers depend on the seed, the step, and the element's place in its parameter, and on nothing else. A
    resumed run goes on with the same ones. Several processes use those of one process: replicas mask the mean
    gradients, see "Several processes" in :class:`cats.MultiTask`; models after ``fully_shard`` must be sharded along
    the first dimension of their parameters.

    Args:
        leak: the share of the dropped gradients that is kept, from 0 to 1: a number for all tasks, or one for each.
        seed: of the random numbers. With several processes, all need the same seed.

    Raises:
        TypeError, ValueError: an argument is not as described. Creating the optimizer raises it if there is not one
            leak per task.
    """

    combines = True

    def __init__(self, leak: float | Sequence[float] = 0.0, seed: int = 0) -> None:
        self.leak: float | list[float]
        if isinstance(leak, list | tuple):
            self.leak = [check_number("GradDrop: leak", each, 0, 1) for each in leak]
        else:
            self.leak = check_number("GradDrop: leak", leak, 0, 1)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**62:
            raise ValueError(f"GradDrop: seed must be an integer of at least 0 and below 2^62, got {seed!r}")
        self.seed = seed

    def start(self, tasks: int) -> None:
        if isinstance(self.leak, list) and len(self.leak) != tasks:
            raise ValueError(f"GradDrop: {len(self.leak)} leaks for {tasks} tasks")
        self._tasks = tasks
        self._step = 0

    def weights(self) -> Tensor:
        return torch.ones(self._tasks, dtype=torch.float64, device="cpu")

    def combine(
        self,
        gradients: Sequence[Sequence[Tensor | None]],
        positions: Sequence[int],
        present: Sequence[int],
        backend: str | None,
    ) -> list[Tensor | None]:
        leak = [self.leak[n] for n in present] if isinstance(self.leak, list) else self.leak
        draws: dict[str, Any] = {"seed": self.seed, "step": self._step, "positions": positions}
        return ops.graddrop(gradients, leak=leak, backend=backend, **draws)

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        numbers = [state.get(name) for name in ("seed", "step")]
        if state.keys() != {"seed", "step"} or any(type(x) is not int or not 0 <= x < 2**62 for x in numbers):
            raise ValueError(f"GradDrop: the state must be a seed and a step, got {state}")
        self.seed, self._step = state["seed"], state["step"]
