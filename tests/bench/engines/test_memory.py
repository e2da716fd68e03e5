"""Peak memory is that of the step, not of the process."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from bench.engines import memory
from bench.engines.contenders import PLAIN

from .common import SMALL


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_of_plain_training() -> None:
    """A table of 4 million numbers: parameters, their gradients and two moments, 16 bytes each, and a copy at most."""
    size = replace(SMALL, vocab_size=250_000)
    found = memory.peaks(size, 2, [PLAIN, "no such contender"], torch.device("cpu"))
    logits = 4 * 250_000 * 60  # one tensor of that size, for at most 60 target tokens
    peak = found[PLAIN]
    assert peak is not None and 64e6 <= peak <= 64e6 + 16e6 + 4 * logits
    assert found["no such contender"] is None
