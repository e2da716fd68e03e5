"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, schedule: str) -> float:
    """The learning rate of update ``step`` (0, 1, .. steps - 1): linear warm-up to ``peak``, then

    - ``inverse-sqrt``: peak * sqrt(warmup / (step + 1)) (Vaswani et al., 2017);
    - ``cosine``: half a cosine down to 0 at ``steps`` (Loshchilov & Hutter, 2017);
    - ``constant``: peak.
    """
    count = step + 1
    if count < warmup:
        return peak * count / warmup
    if schedule == "inverse-sqrt":
        return peak * math.sqrt(max(warmup, 1) / count)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (count - warmup) / max(1, steps - warmup)))
    return peak
