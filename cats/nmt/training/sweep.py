"""A sweep: the ratios of the tasks in several runs, and the losses that they led to.

It is a folder of finished runs, or a file:

* JSON: ``[{"ratios": {"az": 0.2, "be": 0.8}, "losses": {"az": 2.1, "be": 1.7}}, ..]``, one object per run;
* CSV: the columns ``run,task,ratio,loss``.

Ratios are the tasks' shares of the sentences; only their relations matter. Losses are nats per token.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError
from cats.nmt.files import read_file
from cats.nmt.methods.catalogue import DISTILLATION, SAMPLER, find
from cats.nmt.training.metrics import lowest_validation_nll, read_metrics
from cats.nmt.training.run import RunDirectory

LARGEST = 1e300  # of a ratio or loss
Runs = list[tuple[Mapping[str, Any], Mapping[str, Any]]]  # ({task: ratio}, {task: loss}) of each run


def read_sweep(path: Path, tasks: Sequence[str], lengths: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """The ratios, with the sum 1 in each run, and the losses, both (runs, tasks) float64.

    Args:
        tasks: those of this run, in their order.
        lengths: {task: mean target tokens of a sentence}.

    Raises:
        UserError: it cannot be read, or a run lacks a number of a task, or a ratio or loss is not positive.
    """
    if path.is_dir():
        runs = _of_folder(path, tasks, lengths)
    elif path.is_file():
        runs = _of_csv(path) if path.suffix == ".csv" else _of_json(path)
    else:
        raise UserError(f"method.options: there is no sweep {path}; give a folder of finished runs, or a file")
    tables = []
    for what, part in (("ratio", 0), ("loss", 1)):
        for number, run in enumerate(runs, start=1):
            for task in tasks:
                value = run[part].get(task)
                if not isinstance(value, int | float) or not 0 < value < LARGEST:
                    raise UserError(f"{path}: run {number} has no {what} above 0 of {task}")
        tables.append(np.array([[float(run[part][task]) for task in tasks] for run in runs]).reshape(-1, len(tasks)))
    return tables[0] / tables[0].sum(1, keepdims=True), tables[1]


def _of_folder(path: Path, tasks: Sequence[str], lengths: Mapping[str, float]) -> Runs:
    """The finished runs in a folder that had constant ratios and plain token means; others are passed over.

    Raises:
        UserError: there are none, or they had different numbers of updates, which move the losses too.
    """
    steps: dict[int, str] = {}  # {train.steps: a run}
    found: Runs = []
    for each in sorted(path.iterdir()):
        directory = RunDirectory(each)
        if not directory.is_started or directory.is_exported or not _is_constant(config := directory.read_config()):
            continue
        records = read_metrics(directory.metrics_file)
        last = max((record["step"] for record in records), default=0)
        if last < config.train.steps and not config.train.patience:
            continue
        tokens: dict[str, float] = dict.fromkeys(tasks, 0.0)
        for record in records:
            for task, count in record.get("tokens", {}).items():
                tokens[task] = tokens.get(task, 0.0) + count
        lowest = lowest_validation_nll(records)
        if lowest and set(tasks) <= tokens.keys() & lowest.keys():
            steps.setdefault(config.train.steps, each.name)
            found.append(({task: tokens[task] / lengths[task] for task in tasks}, lowest))
    if not found:
        raise UserError(f"{path} has no finished runs of these tasks with constant ratios; train some temperatures")
    if len(steps) > 1:
        shown = ", ".join(f"{count} in {name}" for count, name in steps.items())
        raise UserError(f"{path}: the runs of a sweep need the same train.steps, which is {shown}; move some of them")
    return found


def _is_constant(config: Config) -> bool:
    sampling, train, method = config.sampling, config.train, find(config.method.name)
    changing = sampling.temperature_end or train.pretrain or train.restart or method.family in (SAMPLER, DISTILLATION)
    plain = method.has_plain_weights and config.method.weights == "tokens" and not config.method.token_weights
    return not changing and plain


def _of_json(path: Path) -> Runs:
    try:
        runs = json.loads(read_file(path))
        return [({**run["ratios"]}, {**run["losses"]}) for run in runs]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(
            f'{path} is not a sweep: write [{{"ratios": {{task: number}}, "losses": {{..}}}}, ..]'
        ) from None


def _of_csv(path: Path) -> Runs:
    try:
        runs: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
        for row in csv.DictReader(read_file(path).decode().splitlines()):
            ratios, losses = runs.setdefault(row["run"], ({}, {}))
            ratios[row["task"]], losses[row["task"]] = float(row["ratio"]), float(row["loss"])
        return list(runs.values())
    except (ValueError, TypeError, KeyError, csv.Error):
        raise UserError(f"{path} is not a sweep: it needs the columns run,task,ratio,loss with numbers") from None
