"""Every engine gives the same numbers for every architecture, or says by name why it cannot; never a wrong number."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch

from tests.engines.oracle import Batch, build, draw, optimizer, step, trained
from tests.engines.zoo import ARCHITECTURES, BATCHES

# What each engine refuses, and what its message says. A refusal that appears or vanishes fails a test.
REFUSED: dict[str, dict[str, str]] = {
    "per_task": {
        "embedding, sparse": "a parameter has a sparse gradient.*use sparse=False",
    },
}


@cache
def batches(name: str, dtype: torch.dtype) -> list[Batch]:
    return [draw(ARCHITECTURES[name], ids, dtype, seed=1 + i) for i, ids in enumerate(BATCHES)]


def refusal(engine: str, name: str, dtype: torch.dtype) -> str | None:
    """Takes a step with each of the batches. Returns the error of the engine, or None if all numbers are right."""
    net = build(ARCHITECTURES[name], dtype)
    opt, state = optimizer(net, engine), {name: value.clone() for name, value in net.state_dict().items()}
    for batch in batches(name, dtype):  # of one optimizer, so that nothing that it keeps from the first may be stale
        net.load_state_dict(state)  # a forward pass may change buffers
        try:
            step(opt, net, batch)
        except (RuntimeError, TypeError, ValueError) as error:
            assert all(p.grad is None for p in trained(net))
            return str(error)
    return None


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("engine", REFUSED)
def test_an_engine_is_exact_or_refuses_by_name(engine, name):
    for dtype in (torch.float64, torch.float32):
        reason, pattern = refusal(engine, name, dtype), REFUSED[engine].get(name)
        if pattern is None:
            assert reason is None
        else:
            assert reason is not None, f"engine {engine} is exact for {name!r} now: take it from the table"
            assert re.search(pattern, reason)
