"""Intervals and p-values from resampled scores (``cats.nmt.scoring.bootstrap``), and regrets from resampled chrF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from cats.nmt.scoring.compare.results import Regret

Samples = Mapping[str, Mapping[str, np.ndarray]]  # resampled scores of each method and group or task, (resamples,)
Means = Mapping[str, Mapping[str, float]]  # score of each method and group or task, mean over the seeds
D = TypeVar("D")


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def basic_interval(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the basic bootstrap: how far the resamples are above the value, below it, and vice versa.

    For numbers that are too high on average, such as the largest of several with noise. Resamples of them are too high
    once more, so that percentile intervals seldom have the truth: those of the worst regrets of four equal methods in 6
    to 8 % of simulated experiments. The basic ones have it in 82 to 99 %; tests/nmt/scoring/test_inference.py has both.
    """
    low, high = interval(resampled)
    return 2 * value - high, 2 * value - low


def p_value(difference: float, resampled: np.ndarray) -> float:
    """The two-sided p-value of a difference: the share of resampled differences, moved to median 0, that are as large.

    Not to mean 0: with two seeds, Student's t has no mean, and that of the resamples is wherever the largest one is.
    The observed difference counts as one more resample, so that no p-value is 0.
    """
    as_large = np.abs(resampled - np.median(resampled)) >= abs(difference) - 1e-9
    return float((as_large.sum() + 1) / (len(resampled) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm, 1979).

    A corrected value below 0.05 can be called significant for all names at once: the probability of one or more false
    claims is at most 5 %, however the tests depend on each other.
    """
    found: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, (len(p_values) - rank) * p_values[name])
        found[name] = min(1.0, largest)
    return {name: found[name] for name in p_values}


def differences(
    means: Means, samples: Samples, baseline: str, kind: Callable[[float, tuple[float, float], float, float], D]
) -> dict[str, dict[str, D]]:
    """{method: {group or task: its difference to the baseline}}, corrected over the methods within each of them.

    Args:
        kind: `Difference` for chrF, `BleuDifference` for BLEU.
    """
    result: dict[str, dict[str, D]] = {method: {} for method in means if method != baseline}
    for group in means[baseline]:
        observed = {method: means[method][group] - means[baseline][group] for method in result}
        resampled = {method: samples[method][group] - samples[baseline][group] for method in result}
        raw = {method: p_value(observed[method], resampled[method]) for method in result}
        corrected = holm(raw)
        for method in result:
            result[method][group] = kind(observed[method], interval(resampled[method]), raw[method], corrected[method])
    return result


def regrets(
    means: Mapping[str, Means],
    samples: Mapping[str, Samples],
    groups: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    rivals: Sequence[str],
) -> dict[str, Regret]:
    """The regret of each method: the chrF it loses to the best of its rivals, in the worst set and group.

    In each resample the best rival and the worst cell are chosen again. A worst regret is too high on average, because
    it is the largest of several numbers with noise; `basic_interval` takes that into account. A method that is at least
    as good as the best rival everywhere has a worst regret of zero or less; less only if it is not a rival itself. So
    the interval of a rival does not go below 0.

    Args:
        means, samples, groups: by set.
        methods: the methods; each is in all sets.
        rivals: some of the methods.

    Returns:
        {method: its regret}; empty without rivals or groups.
    """
    cells = [(name, group) for name in groups for group in groups[name]]
    if not rivals or not cells:
        return {}
    best = {(name, group): max(means[name][rival][group] for rival in rivals) for name, group in cells}
    best_resampled = {
        (name, group): np.max([samples[name][rival][group] for rival in rivals], axis=0) for name, group in cells
    }
    lost = {method: {cell: best[cell] - means[cell[0]][method][cell[1]] for cell in cells} for method in methods}
    worst_resampled = {
        method: np.max([best_resampled[cell] - samples[cell[0]][method][cell[1]] for cell in cells], axis=0)
        for method in methods
    }
    least = min(methods, key=lambda method: max(lost[method].values()))
    result = {}
    for method in methods:
        worst = max(cells, key=lambda cell: lost[method][cell])
        above = lost[method][worst] - max(lost[least].values())
        low, high = basic_interval(lost[method][worst], worst_resampled[method])
        result[method] = Regret(
            worst=lost[method][worst],
            interval=(max(0.0, low), max(0.0, high)) if method in rivals else (low, high),
            where=f"{worst[0]} {worst[1]}",
            cells={f"{name} {group}": value for (name, group), value in lost[method].items()},
            above=above,
            above_interval=basic_interval(above, worst_resampled[method] - worst_resampled[least]),
        )
    return result
