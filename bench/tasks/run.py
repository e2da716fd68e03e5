"""Runs the trainings: every method on every problem, with the same seeds, steps and learning rate."""

from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch

from .methods import METHODS
from .problems import Loss, Trial, problems
from .records import Training, WeightingResults


def run(names: Sequence[str], methods: Sequence[str], seeds: int, jobs: int) -> Iterator[WeightingResults]:
    """Trains every method on every problem, `jobs` trainings at a time, each on one thread.

    Yields:
        The results so far, after each problem.
    """
    start = time.perf_counter()
    cells = list(product(names, methods, range(seeds)))
    # A forked child of a process in which torch has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        trainings = []
        for n, training in enumerate(pool.map(train, *zip(*cells, strict=True)), 1):
            trainings.append(training)
            print(f"\r{n} of {len(cells)} trainings", end="", file=sys.stderr, flush=True)
            if n % (len(methods) * seeds) == 0:
                yield WeightingResults([*trainings], time.perf_counter() - start)
    print(file=sys.stderr)


def train(name: str, method: str, seed: int) -> Training:
    """One training from start to end."""
    problem = problems()[name]
    trial = problem.trial(seed)
    base = torch.optim.AdamW(trial.model.parameters(), lr=problem.lr, fused=True)
    optimizer = METHODS[method](base, problem.tasks, trial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the older forms run into their warnings about α and λ
        try:
            for _ in range(problem.steps):
                optimizer.zero_grad()
                losses = trial.losses()
                if optimizer.weighting.losses_again:
                    losses = _callables(losses, trial)
                optimizer.backward(losses)
                optimizer.step()
        except (RuntimeError, ValueError) as error:  # the gradients are not finite, or the weights are too large
            return Training(name, method, seed, [], [], str(error))
    alpha = list(optimizer.alpha.values())
    total = sum(alpha) or 1.0  # the lagrangian form can end with weights of 0
    return Training(name, method, seed, trial.errors(), [weight / total for weight in alpha])


def _callables(losses: Sequence[Loss], trial: Trial) -> list[Loss]:
    """Losses that can be evaluated again. Tensors are those of problems in which every batch has all examples."""
    return [loss if callable(loss) else lambda n=n: trial.losses()[n] for n, loss in enumerate(losses)]  # type: ignore
