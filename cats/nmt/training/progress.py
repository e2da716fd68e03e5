"""How far training is: a bar where somebody watches, else a line now and then."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

LINE_EVERY = 30.0  # seconds between two lines, of validations apart


class Progress:
    """On standard error: a bar if that is a terminal, else a line per validation and every half minute.

    quiet: nothing at all.
    """

    def __init__(self, step: int, steps: int, *, quiet: bool) -> None:
        from tqdm import tqdm

        watched = sys.stderr.isatty()
        self.steps, self.lines = steps, not quiet and not watched
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=quiet or not watched, dynamic_ncols=True)
        self.said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def update(self) -> None:
        self.bar.update()

    def say(self, step: int, seconds: float, facts: str, *, now: bool) -> None:
        """Shows `facts` after update `step`, `seconds` after the start; now: as a line even if there was one lately."""
        self.bar.set_postfix_str(facts)
        if self.lines and (now or time.monotonic() - self.said > LINE_EVERY):
            left = duration(seconds / step * (self.steps - step))
            print(f"update {step:,} of {self.steps:,}: {facts}, {left} left", file=sys.stderr)
            self.said = time.monotonic()


def duration(seconds: float) -> str:
    """Such as "3 h 05 min", "12 min", "40 s": two units at most."""
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
