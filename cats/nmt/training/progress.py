"""The progress of training on standard error: a bar on a terminal, otherwise lines of text."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from cats.nmt.screen import tell

LINE_EVERY = 30.0  # at least this many seconds between two lines, except for validations


class Progress:
    """A progress bar if standard error is a terminal. Otherwise a line per validation and every half minute.

    Args:
        step, steps: updates done so far, and in all.
        quiet: show nothing.
    """

    def __init__(self, step: int, steps: int, *, quiet: bool) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self.steps, self.lines = steps, not quiet and not terminal
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=quiet or not terminal, dynamic_ncols=True)
        self.last_line_at = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def update(self) -> None:
        self.bar.update()

    def say(self, step: int, seconds: float, facts: str, *, now: bool) -> None:
        """Shows `facts` after update `step`.

        seconds: seconds of training so far. now: print a line even if the last one is recent.
        """
        self.bar.set_postfix_str(facts)
        if self.lines and (now or time.monotonic() - self.last_line_at > LINE_EVERY):
            left = duration(seconds / step * (self.steps - step))
            tell(f"update {step:,} of {self.steps:,}: {facts}, {left} left")
            self.last_line_at = time.monotonic()


def duration(seconds: float) -> str:
    """A time such as "3 h 05 min", "12 min" or "40 s"."""
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
