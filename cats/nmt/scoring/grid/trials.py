"""Tuning: every method gets the same number of trials, and the one with the best validation NLL is used for all seeds.

A trial is a run with a learning rate and values of the method's own settings. The first trials of every method are the
learning rates of --lr with the settings as they are. A method with settings of its own uses the others on values from
its space (see ``cats.nmt.methods.catalogue``), with these learning rates in turn. A method without uses them on more
learning rates, between those given. No trial translates anything, and none sees the test text.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

from cats.nmt.errors import UserError
from cats.nmt.scoring.scores import Scores


def trial_settings(space: Mapping[str, Sequence[str]], rates: Sequence[float], count: int) -> list[tuple[str, ...]]:
    """What each trial of a method sets, as overrides.

    Args:
        space: {setting: values} of the method's own settings.
        rates: the learning rates of --lr.
        count: the number of trials, at least that of `rates`.
    """
    combinations = [
        tuple(f"{key}={value}" for key, value in zip(space, values, strict=True))
        for values in itertools.product(*space.values())
    ]
    random.Random(0).shuffle(combinations)  # the same order for every seed and set
    own = [each for each in combinations if each][: max(0, count - len(rates))]
    plain = [(f"train.lr={rate:g}",) for rate in learning_rates(rates, count - len(own))]
    # zip stops at the shorter one: the learning rates are used in turn.
    return [*plain, *((f"train.lr={rate:g}", *each) for rate, each in zip(itertools.cycle(rates), own, strict=False))]


def learning_rates(rates: Sequence[float], count: int) -> list[float]:
    """The rates, and more of them: each is in the middle, on a logarithmic scale, of the widest gap so far."""
    found = list(rates)
    while len(found) < count:
        ordered = sorted(found)
        gaps = [(round(high / low, 6), -low, low, high) for low, high in itertools.pairwise(ordered)]
        if not gaps:  # a single rate: twice as high
            found.append(2 * found[0])
            continue
        _, _, low, high = max(gaps)
        found.append(float(f"{math.sqrt(low * high):.3g}"))
    return found


def validation_nll(scores: Scores) -> float:
    """The mean of the groups' validation NLL, by which settings are chosen; inf if one is missing.

    The groups (LoRes, HiRes) count the same, because the regret looks at the worst of them. The mean over all languages
    would hardly see a group of one language.
    """
    values = [scores.model.groups[group].get("nll") for group, names in scores.members.items() if names]
    named = [value for value, group in zip(values, scores.members, strict=False) if group != "all"]
    return group_mean(named or values)


def group_mean(values: Sequence[float | None]) -> float:
    """The mean; inf if a value is missing or not finite."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else math.inf


def check(rates: Sequence[float], count: int, seed: int, seeds: Sequence[int]) -> None:
    """Raises an error for options that do not fit together."""
    if any(not 0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(f"--lr {' '.join(map(str, rates))}: must be different numbers above 0")
    if count < 1:
        raise UserError(f"--trials must be at least 1, not {count}")
    if count < len(rates):
        raise UserError(f"--trials {count} is too few for the {len(rates)} learning rates of --lr")
    if count > 1 and seed in seeds:
        raise UserError(f"--tuning-seed {seed} is one of --seeds: settings must be chosen with another seed")


def as_settings(settings: Sequence[str]) -> Mapping[str, str]:
    """{setting: value} of overrides."""
    return dict(setting.split("=", 1) for setting in settings)
