"""Learning-rate schedules as pure functions of the step, so checkpoints do not contain them."""

from __future__ import annotations

import math

from cats.nmt.config import schema


def learning_rate(
    step: int, *, peak: float, warmup: int, steps: int, schedule: str, start: float = 0.0, d_model: int = 1
) -> float:
    """The learning rate of update ``step`` (0, 1, .. steps - 1).

    It rises linearly from ``start`` to ``peak`` in ``warmup`` updates. Then it is:

    - ``inverse-sqrt``: peak * sqrt(warmup / (step + 1)) (Vaswani et al., 2017);
    - ``cosine``: half a cosine down to 0 at ``steps`` (Loshchilov & Hutter, 2017);
    - ``constant``: peak;
    - ``noam``: inverse-sqrt as its authors write it, with peak / sqrt(d_model * warmup) in place of peak.
    """
    count = step + 1
    if schedule == "noam":
        peak, schedule = peak / math.sqrt(d_model * max(warmup, 1)), "inverse-sqrt"
    if count < warmup:
        return start + (peak - start) * count / warmup
    if schedule == "inverse-sqrt":
        return peak * math.sqrt(max(warmup, 1) / count)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (count - warmup) / max(1, steps - warmup)))
    return peak


def rate_of_update(step: int, settings: schema.Train, d_model: int) -> float:
    """The learning rate of update ``step`` of a run. With `train.pretrain_steps`, the schedule runs twice: before and
    after the reset, unless `train.restart_parts` leaves the learning rate out.
    """
    reset = 0 if settings.restart_parts == "optimizer" else settings.pretrain_steps
    pretraining = step < reset
    begun = 0 if pretraining else reset
    return learning_rate(
        step - begun,
        peak=settings.lr,
        warmup=settings.warmup,
        steps=reset if pretraining else settings.steps - begun,
        schedule=settings.schedule,
        start=settings.warmup_start,
        d_model=d_model,
    )
