"""Overhead of calls."""

from __future__ import annotations

import torch

from bench.operators import overhead


def test_tiny_calls_are_timed_for_every_backend() -> None:
    records = overhead.calls(torch.device("cpu"), rounds=2)
    backends = {r.backend for r in records}
    assert "reference" in backends and len(records) == len(backends) * len(overhead.SIZES)
    assert max(r.tensors for r in records) == 1600 and all(r.kept_us > 0 < r.new_us for r in records)
