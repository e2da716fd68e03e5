"""Recipes: methods that are only settings of the sampler and of the order of training."""

from __future__ import annotations

from typing import Any

FIRST_PHASE = 0.35  # share of the updates before the restart
# Passes over a task. A cap below their number at T=1 caps all tasks alike, so that UniMax is T=1. `cats compare` has
# about 40 passes at T=1 in ted and 3 in wmt.
UNIMAX_EPOCHS = 100.0

# Sampling with one temperature, in one phase, with plain token means.
_PLAIN: dict[str, Any] = {
    "method.weights": "tokens",
    "method.token_weights": (),
    "sampling.temperature_end": 0.0,
    "sampling.first_temperature": 0.0,
    "sampling.ratios": (),
    "sampling.unimax_epochs": 0.0,
    "train.pretrain": (),
    "train.finetune": (),
    "train.pretrain_steps": 0,
    "train.restart": False,
    "train.restart_parts": "all",
}
# What each recipe changes. Those with two phases also set `train.pretrain_steps`, see `first_phase`.
_CHANGES: dict[str, dict[str, Any]] = {
    "temperature": {},
    "temperature-schedule": {"sampling.temperature": 1.0, "sampling.temperature_end": 5.0},
    "ratios": {},
    "unimax": {"sampling.unimax_epochs": UNIMAX_EPOCHS},
    "pretrain-finetune": {"train.pretrain": ("hires",)},
    "restart": {"train.restart": True},
    "lowres-finetune": {"train.pretrain": ("hires",), "train.finetune": ("lores",)},
    "staged": {"sampling.first_temperature": 1.0, "sampling.temperature": 3.0, "train.restart": True},
    # The method of its runs is cats. docs/results.md says how the temperature and the strength were chosen.
    "staged-cats": {
        "method.name": "cats",
        "method.strength": 1.0,
        "sampling.first_temperature": 1.0,
        "sampling.temperature": 4.0,
        "train.restart": True,
    },
}
RECIPES = tuple(_CHANGES)
# The setting that says how some recipes draw the tasks. The others with a mixture draw them by temperatures.
MIXTURE_SETTINGS = {
    "ratios": "sampling.ratios",
    "unimax": "sampling.unimax_epochs",
    "temperature-schedule": "sampling.temperature_end",
}


def recipe(name: str, steps: int) -> dict[str, Any]:
    """The settings of a recipe as {"section.key": value}.

    Args:
        name: one of RECIPES.
        steps: `train.steps`.
    """
    settings = {**_PLAIN, **_CHANGES[name]}
    if name == "ratios":
        del settings["sampling.ratios"]  # those that the user has set
    if two_phases(name):
        settings["train.pretrain_steps"] = first_phase(steps)
    return settings


def two_phases(method: str) -> bool:
    """Whether this recipe trains in two phases."""
    return not _CHANGES.get(method, {}).keys().isdisjoint(("train.pretrain", "train.restart"))


def has_mixture(method: str) -> bool:
    """Whether this recipe says how the tasks are drawn, so that no ratios can be given beside it."""
    return method == "temperature" or any(key.startswith("sampling.") for key in _CHANGES.get(method, {}))


def first_phase(steps: int) -> int:
    """The number of updates of the first phase."""
    return max(1, round(FIRST_PHASE * steps))
