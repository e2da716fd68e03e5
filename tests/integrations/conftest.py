"""What libraries leave behind in a process: their state, the environment, and the random numbers."""

from __future__ import annotations

import os
import sys
from unittest import mock

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    # They collect garbage in each training, which takes far longer than such a training.
    with mock.patch.dict(os.environ), torch.random.fork_rng(), mock.patch("gc.collect"):
        yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
        sys.modules["accelerate.state"].GradientState._reset_state()
