"""How the sentences of an update are drawn: section sampling."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import COUNT, FINITE, NOT_NEGATIVE, POSITIVE_OR_INF, RATIOS, TOKENS, setting


@dataclass(frozen=True)
class Sampling:
    """How the sentences of an update are drawn."""

    temperature: float = setting(
        3.0,
        "a task is drawn with probability ~ pairs^(1/T): 1 = proportional to size, inf = uniform",
        need=POSITIVE_OR_INF,
    )
    temperature_end: float = setting(
        0.0,
        "temperature at the last update; 1/T changes linearly until then; 0: constant temperature",
        need=NOT_NEGATIVE,
    )
    first_temperature: float = setting(
        0.0,
        "temperature before the reset of train.restart (T=1 there and T=3 later: staged training); 0: the same",
        need=NOT_NEGATIVE,
    )
    ratios: tuple[float, ...] = setting(
        (),
        "instead of a temperature: the tasks' shares of the sentences, one number per task in the order of their names",
        need=RATIOS,
    )
    unimax_epochs: float = setting(
        0.0,
        "instead of a temperature: UniMax, uniform in tokens, with at most this many passes over each task; 0: off",
        need=FINITE,
    )
    tasks_per_update: int = setting(0, "number of tasks in an update, drawn by their probabilities; 0: all", need=COUNT)
    batch_tokens: int = setting(800, "tokens per update, over all tasks", need=TOKENS)
    budget: str = setting(
        "target",
        "what batch_tokens counts: target tokens, or padded (sentences times the longest side)",
        choices=("target", "padded"),
    )
