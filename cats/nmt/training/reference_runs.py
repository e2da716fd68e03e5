"""What the methods of ``cats.nmt.methods`` read of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cats.nmt.errors import UserError
from cats.nmt.training.metrics import lowest_validation_nll, read_metrics
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.sweep import read_sweep

LAST = 0.1  # the training loss at the end of a run is the mean over this last share of its updates


class ReferenceRuns:
    """Implements ``cats.nmt.methods.sampling_rule.Runs`` from the metrics of the runs.

    Args:
        tasks: those of this run, in their order.
        lengths: {task: mean target tokens of a sentence}.
    """

    def __init__(self, tasks: Sequence[str], lengths: Mapping[str, float]) -> None:
        self.tasks, self.lengths = tasks, lengths

    def training_nll(self, run: str) -> np.ndarray:
        """The mean over the tokens of the last tenth of the updates."""
        records = [record for record in _records(run) if "losses" in record]
        end = max((record["step"] for record in records), default=0)
        sums: dict[str, list[float]] = {}
        for record in records:
            if record["step"] > (1 - LAST) * end:
                for task, tokens in record.get("tokens", {}).items():
                    if tokens and (nll := record["losses"].get(task)) is not None:
                        entry = sums.setdefault(task, [0.0, 0.0])
                        entry[0] += nll * tokens
                        entry[1] += tokens
        return self._ordered({task: nats / tokens for task, (nats, tokens) in sums.items()}, "training loss", run)

    def validation_nll(self, runs: Sequence[str]) -> np.ndarray:
        """The lowest of each task over all validations of all runs."""
        lowest = lowest_validation_nll(record for run in runs for record in _records(run))
        return self._ordered(lowest, "validation NLL", ", ".join(runs))

    def mean_probabilities(self, run: str) -> np.ndarray:
        records = _records(run)
        end = max((record["step"] for record in records), default=0)
        changes = [record for record in records if "probabilities" in record]
        if not changes:
            raise UserError(f"method.options: {run} is not the run of an adaptive method: it has no probabilities")
        total: dict[str, float] = dict.fromkeys(changes[0]["probabilities"], 0.0)
        starts = [min(record["from_update"], end + 1) for record in changes]
        for record, start, stop in zip(changes, starts, [*starts[1:], end + 1], strict=True):
            for task, value in record["probabilities"].items():
                total[task] += value * (stop - start)
        found = self._ordered(total, "probability", run)
        return found / found.sum()

    def sweep(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        return read_sweep(Path(path), self.tasks, self.lengths)

    def _ordered(self, values: Mapping[str, float], what: str, where: str) -> np.ndarray:
        if missing := [task for task in self.tasks if task not in values]:
            raise UserError(f"method.options: {where} has no {what} of {', '.join(missing)}")
        return np.array([values[task] for task in self.tasks])


def _records(run: str) -> list[dict[str, Any]]:
    directory = RunDirectory(Path(run))
    directory.read_config(where="method.options: ")  # an error if it is no run
    return read_metrics(directory.metrics_file)
