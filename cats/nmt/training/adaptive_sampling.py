"""Lets a rule of ``cats.nmt.methods`` change the sampling probabilities while a run trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cats.nmt.config.schema import Config
from cats.nmt.data.sampler import ChangingMixture, Mixture, Sampler
from cats.nmt.errors import UserError
from cats.nmt.methods.catalogue import SAMPLER, find
from cats.nmt.methods.options import build
from cats.nmt.methods.sampling_rule import Gradients, Known, SamplingRule, Seen
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import processes
from cats.nmt.training.reference_runs import ReferenceRuns
from cats.nmt.training.sharding import is_sharded
from cats.nmt.training.task_gradients import TaskGradients
from cats.nmt.training.training_data import TrainingData


def adaptive_sampling(
    config: Config,
    sampler: Sampler,
    model: Transformer,
    data: TrainingData,
    write: Callable[[dict[str, Any]], None],
    *,
    new: bool,
) -> AdaptiveSampling | None:
    """The adaptive sampling of the method that is configured, or None if its probabilities do not change.

    Args:
        sampler: that of the run; its mixture is replaced.
        write: writes a line of metrics.
        new: whether the run is new. Otherwise the state of the checkpoint must be loaded.

    Raises:
        UserError: an option is wrong, or the method does not fit the other settings or the corpus.
    """
    name, train = config.method.name, config.train
    if find(name).family != SAMPLER:
        return None
    rule: SamplingRule = build(name, config.method.options)
    without = data.without_validation
    lacking = f"needs validation pairs of {', '.join(without)}, and {data.why_without}"
    for wrong, problem in (
        (len(data.tasks) < 2, "needs at least two tasks; use static"),
        (config.sampling.temperature_end, "changes the probabilities itself; leave out sampling.temperature_end"),
        (train.finetune, "changes the probabilities itself; leave out train.finetune"),
        (rule.needs_gradients and is_sharded(train), "needs train.distributed = replicas"),
        ((rule.needs_gradients or not rule.period) and without, lacking),
    ):
        if wrong:
            raise UserError(f"method.name = {name} {problem}")

    def gradients(step: int) -> TaskGradients:
        tokens = max(1, config.sampling.batch_tokens // train.accumulate)
        return TaskGradients(
            model,
            data.training,
            data.validation,
            smoothing=train.label_smoothing,
            tokens=tokens,
            seed=train.seed,
            step=step,
        )

    first_phase = train.pretrain or config.sampling.first_temperature
    adaptive = AdaptiveSampling(
        rule,
        sampler,
        begin=train.pretrain_steps if first_phase else 0,
        gradients=gradients if rule.needs_gradients else None,
        write=write,
    )
    if new:
        adaptive.start()
    return adaptive


class AdaptiveSampling:
    """Collects what the rule may look at, asks it, and makes its decisions part of the sampler's mixture.

    A decision after update t counts from update t + 2 on (from 1): the prefetcher may have drawn the next batch. All
    processes have the same numbers, so they decide the same; the numbers from gradients are those of the main process.

    Args:
        sampler: its mixture becomes a ``ChangingMixture``.
        begin: updates before the rule begins, those of a first phase with probabilities of its own.
        gradients: gives the gradients that the rule asks for; None if the rule needs none.
        write: writes a line of metrics.
    """

    def __init__(
        self,
        rule: SamplingRule,
        sampler: Sampler,
        *,
        begin: int,
        gradients: Callable[[int], Gradients] | None,
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        assert isinstance(sampler.mixture, Mixture)
        self.rule, self.begin, self.gradients, self.write = rule, begin, gradients, write
        self.tasks, self.lengths = sampler.tasks, sampler.mean_lengths
        configured = sampler.mixture
        self.configured = np.array(sampler.probabilities(configured.phase(begin)))
        self.sizes = np.array([float(sampler.sizes[task]) for task in self.tasks])
        self.mixture = sampler.mixture = ChangingMixture(configured)
        self.unread: list[list[tuple[str, Tensor, int]]] = []  # the losses of updates, still on the device
        self.losses = np.empty((0, len(self.tasks), 2))  # those that were read, since the last decision

    def start(self) -> None:
        """Begins a new run."""
        known = Known(self.tasks, self.sizes, self.configured, ReferenceRuns(self.tasks, self.lengths))
        self._change(self.begin, self.rule.start(known))

    def after_update(self, step: int, losses: list[tuple[str, Tensor, int]]) -> None:
        """Takes the losses of update `step` (from 1), and lets the rule decide if it is time.

        Args:
            losses: those of this process, as ``LossLog.take_update`` gives them.
        """
        if step == 1:
            self._report(1, 0)
        if step <= self.begin:
            return
        if self.rule.needs_losses:
            self.unread.append(losses)
        if self.rule.period and (step - self.begin) % self.rule.period == 0:
            self._decide(step)

    def after_validation(self, step: int, nll: Mapping[str, float]) -> None:
        """Lets a rule decide that does so after each validation.

        Args:
            nll: {task: validation nll in nats per token}.
        """
        if not self.rule.period and step > self.begin:
            self._decide(step, np.array([nll[task] for task in self.tasks]))

    def _decide(self, step: int, validation: np.ndarray | None = None) -> None:
        self._read()
        gradients = self.gradients(step) if self.gradients is not None else None
        now = np.array(self.mixture.values[-1])
        found = self.rule.decide(Seen(now, self.losses, validation, gradients))
        self.losses = self.losses[:0]
        if found is not None:
            self._change(step + 1, found)
            self._report(step, len(self.mixture.first) - 1)

    def _change(self, first: int, probabilities: np.ndarray) -> None:
        if not (
            np.isfinite(probabilities).all() and (probabilities >= 0).all() and abs(probabilities.sum() - 1) < 1e-6
        ):
            raise ValueError(f"{type(self.rule).__name__}: {probabilities} are no probabilities")
        self.mixture.change(first, probabilities.tolist())

    def _report(self, step: int, change: int) -> None:
        """Writes a change to the metrics, with the number of the first update it counts for."""
        values = dict(zip(self.tasks, self.mixture.values[change], strict=True))
        self.write({"step": step, "probabilities": values, "from_update": self.mixture.first[change] + 1})

    def _read(self) -> None:
        """Reads the losses that are still on the device, and adds them up over the processes."""
        if not self.unread:
            return
        index = {task: n for n, task in enumerate(self.tasks)}
        rows = np.zeros((len(self.unread), len(self.tasks), 2))
        entries = [(u, index[task], nll, count) for u, update in enumerate(self.unread) for task, nll, count in update]
        nats = torch.stack([nll for _, _, nll, _ in entries]).tolist() if entries else []
        for (u, n, _, count), nll in zip(entries, nats, strict=True):
            rows[u, n] += nll, count
        rows = np.array(processes.all_reduce_sum(rows.ravel().tolist())).reshape(rows.shape)
        rows[~np.isfinite(rows).all(-1)] = 0.0  # the optimizer has skipped these updates
        self.losses, self.unread = np.concatenate([self.losses, rows]), []

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on exactly: tensors only. All processes must call this."""
        self._read()
        return {
            "first": torch.tensor(self.mixture.first, dtype=torch.int64),
            "probabilities": torch.tensor(self.mixture.values, dtype=torch.float64),
            "losses": torch.from_numpy(self.losses.copy()),
            "rule": self.rule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mixture.first, self.mixture.values = state["first"].tolist(), state["probabilities"].tolist()
        self.losses, self.unread = state["losses"].numpy().copy(), []
        self.rule.load_state_dict(state["rule"])
