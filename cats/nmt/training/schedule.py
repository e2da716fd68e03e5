"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, peak: float, warmup: int, steps: int, schedule: str, start: float = 0.0, d_model: int = 1
) -> float:
    """The learning rate of update ``step`` (0, 1, .. steps - 1): linear warm-up from ``start`` to ``peak``, then

    - ``inverse-sqrt``: peak * sqrt(warmup / (step + 1)) (Vaswani et al., 2017);
    - ``cosine``: half a cosine down to 0 at ``steps`` (Loshchilov & Hutter, 2017);
    - ``constant``: peak;
    - ``noam``: inverse-sqrt as its authors write it, peak standing for peak / sqrt(d_model * warmup).
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
