"""What an adaptive sampling method is: a rule that changes the sampling probabilities of the tasks during training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor


class Runs(Protocol):
    """Reads finished runs, given as paths. All results are (tasks,) float64.

    Raises:
        UserError: a path is no run, or the run does not have the numbers for all tasks.
    """

    def training_nll(self, run: str) -> np.ndarray:
        """The training loss at the end of a run, in nats per token."""

    def validation_nll(self, runs: Sequence[str]) -> np.ndarray:
        """The lowest mean validation loss of any of the runs, in nats per token."""

    def mean_probabilities(self, run: str) -> np.ndarray:
        """The mean sampling probabilities over the updates of a run with an adaptive method."""

    def sweep(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """(runs, tasks) ratios of the sentences and lowest validation losses, see ``cats.nmt.training.sweep``."""


class Gradients(Protocol):
    """Gradients of a task's mean token loss at the current parameters, without dropout, on batches drawn for this.

    A gradient is a list with one tensor per parameter. Nothing of the training changes by asking.
    """

    def training(self, task: int) -> list[Tensor]:
        """On one batch of training pairs of a task."""

    def validation(self, task: int) -> list[Tensor]:
        """On one batch of validation pairs of a task."""

    def validation_sum(self) -> list[Tensor]:
        """Of the sum of all tasks' losses, on one batch of validation pairs of all tasks."""

    def moved(self, direction: list[Tensor], distance: float) -> AbstractContextManager[None]:
        """A context in which the parameters are θ + distance · direction. Afterwards they are θ again, bit for bit."""

    def agreed(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers of the main process. All processes compute the same gradients, up to rounding."""


@dataclass(frozen=True)
class Known:
    """What is known before the first update that the rule decides about.

    Attributes:
        tasks: their names. sizes: (tasks,) float64, training pairs.
        probabilities: (tasks,) float64, as configured in [sampling].
        runs: reads finished runs.
    """

    tasks: list[str]
    sizes: np.ndarray
    probabilities: np.ndarray
    runs: Runs


@dataclass(frozen=True)
class Seen:
    """What a rule may look at when it decides. The same in all processes.

    Attributes:
        probabilities: (tasks,) float64, those of the last decision.
        losses: (updates, tasks, 2) float64: the summed nll in nats (no label smoothing) and the target tokens of each
            update since the last decision. Both are 0 where a task is not in the batch, or its loss is not finite. For
            a rule without `needs_losses` there are none.
        validation: (tasks,) float64 nats per token; only for a rule with `period` 0.
        gradients: only for a rule with `needs_gradients`.
    """

    probabilities: np.ndarray
    losses: np.ndarray
    validation: np.ndarray | None = None
    gradients: Gradients | None = None

    def mean_losses(self) -> np.ndarray:
        """(tasks,) nats per token since the last decision; nan for tasks without a token."""
        nats, tokens = self.losses.sum(0).T
        return np.divide(nats, tokens, out=np.full(len(nats), np.nan), where=tokens > 0)


class SamplingRule(ABC):
    """Decides about the sampling probabilities. The weights of the tasks stay plain token means.

    The constructor takes the options of the method, and raises ValueError for a wrong one.

    A decision after update t counts from update t + 2 on: the batch of update t + 1 is drawn while the device still
    works on update t. Before the first decision the probabilities are those that `start` returns. With
    `train.pretrain` or `sampling.first_temperature` the rule begins after the first phase. `train.restart` alone
    resets the optimizer, and changes nothing here: what a rule has learned about the data stays true.

    Attributes:
        period: updates between two decisions. 0: one after each validation.
        needs_losses: whether `decide` uses `Seen.losses`. They are kept, and saved, until the next decision.
        needs_gradients: whether `decide` uses `Seen.gradients`.
        state: the names of all attributes that `start` and `decide` set, float64 arrays. They are in the checkpoints,
            so a resumed run decides the same, and reads no other run again.
    """

    period: int
    needs_losses: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def start(self, known: Known) -> np.ndarray:
        """Sets the state of a new run. Returns the first probabilities.

        Raises:
            UserError: an option does not fit the corpus, or a run that it names cannot be used.
        """

    @abstractmethod
    def decide(self, seen: Seen) -> np.ndarray | None:
        """The new probabilities, positive or 0, with the sum 1; None: as before."""

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in self.state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].numpy().astype(np.float64))


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(logits), divided by its sum."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def log(probabilities: np.ndarray) -> np.ndarray:
    """The logarithm; -inf for 0, without a warning."""
    return np.log(probabilities, out=np.full(len(probabilities), -np.inf), where=probabilities > 0)


def check(**conditions: tuple[bool, object, str]) -> None:
    """Raises ValueError for the first option whose condition is false.

    Args:
        conditions: {option: (whether its value is allowed, the value, what it must be)}.
    """
    for option, (right, value, need) in conditions.items():
        if not right:
            raise ValueError(f"{option} must be {need}, not {value}")
