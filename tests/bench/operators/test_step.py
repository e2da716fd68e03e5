"""Timed steps of cats.CATS on the demo model."""

from __future__ import annotations

import pytest
import torch

from bench.operators import step
from cats import ops


def test_outer_steps_of_the_demo_model() -> None:
    pytest.importorskip("babel")
    pytest.importorskip("sentencepiece")
    threads = torch.get_num_threads()
    try:
        found = step.run(["reference"], steps=1)
    finally:
        torch.set_num_threads(threads)
    (entry,) = found.backends
    assert found.tasks == 8
    assert 0 < entry.operators_seconds.median < entry.step_seconds.median
    assert ops.combine_dots.__name__ == "combine_dots"  # the stopwatch is removed again
