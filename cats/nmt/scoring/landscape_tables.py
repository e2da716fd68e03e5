"""The tables of the loss landscape of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cats.nmt.scoring.tables import aligned
from cats.nmt.training.landscape import ALL, LandscapeRecord


def landscape_tables(records: Sequence[LandscapeRecord]) -> str:
    """The checkpoints side by side; then the tasks and the kinds of layer of the last one.

    Args:
        records: by step, with the same tasks; at least one.
    """
    steps = [
        ["updates", "checkpoint", "largest eigenvalue", "lowest top", "highest top", "trace", "cosine", "interference"]
    ]
    for each in records:
        tops = [*each.eigenvalues.values()]
        numbers = [float(np.mean([*each.largest.values()])), min(tops), max(tops)]
        numbers += [float(np.mean([*each.traces.values()]))]
        numbers += [nan_mean(_pairs(each.kinds[ALL].cosine)), nan_mean(_pairs(each.interference))]
        steps.append([f"{each.step:,}", each.checkpoint, *map(_short, numbers)])

    last = records[-1]
    tasks = [
        ["task", "tokens", "top eigenvalue", "most negative", "trace", "±", "gradient norm", "is changed by others"]
    ]
    changes = _pairs(last.interference)
    for task, change in zip(last.tasks, changes, strict=True):
        tables = (last.eigenvalues, last.smallest, last.traces, last.trace_errors, last.norms)
        tasks.append(
            [
                task,
                f"{last.tokens[task]:,}",
                *map(_short, [*(table[task] for table in tables), nan_mean(change)]),
            ]
        )

    kinds = [["layers", "cosine", "lowest", "highest", "magnitude"]]
    for kind, similar in last.kinds.items():
        cosines = _pairs(similar.cosine)
        defined = cosines[~np.isnan(cosines)]
        ends = [float(defined.min()), float(defined.max())] if defined.size else [np.nan, np.nan]
        kinds.append([kind, *map(_short, [nan_mean(cosines), *ends, nan_mean(_pairs(similar.magnitude))])])
    lr = last.settings.step_size
    return (
        f"Means over the tasks, and over their pairs:\n\n{aligned(steps, left=2)}\n\n"
        f"The tasks after {last.step:,} updates:\n\n{aligned(tasks, left=1)}\n\n"
        f"The similarity of two tasks' gradients, means over the pairs:\n\n{aligned(kinds, left=1)}\n\n"
        f"Top eigenvalue: that of the Hessian which is largest in size, and may be negative. Largest: the most\n"
        f"positive one. Interference: by how much the loss of a task changes by a step with learning rate {lr:g} for\n"
        f"another one; below 0, the step helps."
    )


def _pairs(matrix: np.ndarray) -> np.ndarray:
    """(K, K - 1): each row without its entry on the diagonal."""
    size = len(matrix)
    return matrix[~np.eye(size, dtype=bool)].reshape(size, size - 1)


def nan_mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the numbers that are defined, nan if there is none."""
    defined = [value for value in np.ravel(values) if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _short(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.3g}"
