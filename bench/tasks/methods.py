"""The weightings that are compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer

import cats
from cats import weighting
from cats.weighting import Weighting

from .problems import Trial


def _cats(base: Optimizer, tasks: int, trial: Trial, **settings: Any) -> cats.MultiTask:
    return cats.CATS(base, tasks, **settings)


def _other(make: Callable[[], Weighting], base: Optimizer, tasks: int, trial: Trial) -> cats.MultiTask:
    return cats.MultiTask(base, tasks, make())


def _gradnorm(base: Optimizer, tasks: int, trial: Trial) -> cats.MultiTask:
    return cats.MultiTask(base, tasks, weighting.GradNorm(simplex="softmax"), shared=trial.last_shared)


REFERENCE = "equal"

# Makes the optimizer of a method from the base optimizer, the number of tasks and the trial. All settings that are not
# named are the defaults.
METHODS: dict[str, Callable[[Optimizer, int, Trial], cats.MultiTask]] = {
    REFERENCE: partial(_other, weighting.Static),
    "GradNorm": _gradnorm,
    "softmax": partial(_cats, simplex="softmax"),
    "lagrangian": partial(_cats, simplex="lagrangian"),
    "proximal": _cats,
    "proximal, κ=1": partial(_cats, strength=1.0),
    "preconditioned": partial(_cats, direction="preconditioned"),
    "momentum": partial(_cats, direction="momentum"),
    "update": partial(_cats, direction="update"),
    "RLW": partial(_other, weighting.RLW),
    "GroupDRO": partial(_other, weighting.GroupDRO),
    "CVaRDRO": partial(_other, weighting.CVaRDRO),
    "ChiSquareDRO": partial(_other, weighting.ChiSquareDRO),
    "Uncertainty": partial(_other, weighting.Uncertainty),
    "DWA": partial(_other, weighting.DWA),
    "FAMO": partial(_other, weighting.FAMO),
    "GradDrop": partial(_other, weighting.GradDrop),
}
# The values of single settings of cats.CATS, beside its defaults, in the pictures of docs/guide/settings.md.
SETTINGS: dict[str, tuple[float, ...]] = {
    "strength": (0.25, 1.0, 2.0, 4.0),
    "floor": (0.0, 0.3, 0.6),
    "inner_steps": (1, 20, 100),
}


def setting(name: str, value: float) -> str:
    """The name of the method that has another value of one setting."""
    return f"{name}={value:g}"


METHODS |= {setting(name, v): partial(_cats, **{name: v}) for name, values in SETTINGS.items() for v in values}
# Those in the tables of bench/README.md, which are run if no others are named.
COMPARED = (REFERENCE, "GradNorm", "softmax", "lagrangian", "proximal", "proximal, κ=1")
