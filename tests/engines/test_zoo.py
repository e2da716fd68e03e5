"""Every engine gives the same numbers for every architecture, or says by name why it cannot; never a wrong number."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch

from cats.engines.one_pass import segments
from tests.engines.oracle import ENGINES, Batch, backward, build, check, draw, optimizer, trained
from tests.engines.zoo import ARCHITECTURES, BATCHES

# What each engine refuses, and what its message says. A refusal that appears or vanishes fails a test.
SPARSE = "a parameter has a sparse gradient"
HIDDEN = r"hidden.weight \(5, 5\), hidden.bias \(5,\) got a gradient from a function that uses it out of sight"
MEET = "examples of different tasks meet in the layer of "
BATCH_NORM = "for example by batch normalisation in training"
NO_DERIVATIVE = " has no derivative in forward mode"
REFUSED: dict[str, dict[str, str]] = {
    "per_task": {"embedding, sparse": SPARSE},
    "one_pass": {
        "embedding, sparse": SPARSE,
        "reentrant checkpoint": "a reentrant checkpoint hides its layers: .*use_reentrant=False",
        "hidden parameters": HIDDEN,
        "hidden use of a parameter": HIDDEN,
        "two tasks for each example": MEET + "norm.weight",
        "several tasks in a row": MEET + "norm.weight",
        "batch norm": BATCH_NORM,
        "batch norm of images": BATCH_NORM,
        "batch norm without parameters": BATCH_NORM,
        "batch norm in training later": BATCH_NORM,
        "norm over the batch": BATCH_NORM,
        **dict.fromkeys(
            [
                "mean of the batch subtracted",
                "attention over the batch",
                "Fourier over the batch",
                "softmax over the batch",
                "maximum over the batch",
                "neighbours",
                "faint mixing",
                "shared loss later",
                "contrastive loss",
                "losses divided by their mean",
                "largest loss",
            ],
            MEET + "layers.1.weight",
        ),
    },
    "two_pass": {"embedding, sparse": SPARSE},
    "forward_mode": {
        "embedding, sparse": SPARSE,
        "hook that scales a gradient": "a hook changes gradients",
        "gradient penalty": "a callable computes gradients itself",
        "reentrant checkpoint": "CheckpointFunction" + NO_DERIVATIVE,
        "custom function": "Doubled" + NO_DERIVATIVE,
        "custom function with a weight": "OwnLinear" + NO_DERIVATIVE,
        "hidden parameters": "Hidden" + NO_DERIVATIVE,
        "hidden use of a parameter": "Hidden" + NO_DERIVATIVE,
        "hooks of modules": "BackwardHookFunction" + NO_DERIVATIVE,
        "weight norm": "_weight_norm_interface" + NO_DERIVATIVE,
        "weight norm of a convolution": "_weight_norm_interface" + NO_DERIVATIVE,
        "embedding, by frequency": "scale_grad_by_freq" + NO_DERIVATIVE,
        "bags, sum": "_embedding_bag" + NO_DERIVATIVE,
        "bags, mean": "_embedding_bag" + NO_DERIVATIVE,
        "bags, max": "_embedding_bag" + NO_DERIVATIVE,
        "bags, offsets": "_embedding_bag" + NO_DERIVATIVE,
        "prototypes": "_cdist_forward" + NO_DERIVATIVE,
    },
    "auto": {"embedding, sparse": SPARSE},
}


@cache
def batches(name: str, dtype: torch.dtype) -> list[Batch]:
    """In float64 all three, in float32 only one: it is there for the precision, not for the layouts."""
    ids = BATCHES if dtype == torch.float64 else BATCHES[:1]
    return [draw(ARCHITECTURES[name], each, dtype, seed=i) for i, each in enumerate(ids)]


def refusal(engine: str, name: str, dtype: torch.dtype) -> str | None:
    """Takes a step with each of the batches. Returns the error of the engine, or None if all numbers are right."""
    net = build(ARCHITECTURES[name], dtype)
    opt, state = optimizer(net, engine), {name: value.clone() for name, value in net.state_dict().items()}
    for batch in batches(name, dtype):  # of one optimizer, so that nothing that it keeps from the first may be stale
        net.load_state_dict(state)  # a forward pass may change buffers
        opt.zero_grad()
        try:
            backward(opt, net, batch, engine)
        except (RuntimeError, TypeError, ValueError) as error:
            assert all(p.grad is None for p in trained(net))
            return str(error)
        check(opt, net, batch.expected)
    return None


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_exact_or_refuses_by_name(engine, name):
    reasons = [refusal(engine, name, dtype) for dtype in (torch.float64, torch.float32)]
    pattern = REFUSED[engine].get(name)
    if pattern is None:
        assert reasons == [None, None]
    else:
        assert reasons[0] is not None, f"engine {engine} is exact for {name!r} now: take it from the table"
        assert all(re.search(pattern, reason) for reason in reasons if reason is not None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_pass_is_exact_where_it_forms_weight_gradients_by_task(name, monkeypatch):
    """It does so in layers that are large enough. Here all of them are."""
    monkeypatch.setattr(segments, "_ROWS", 0)
    monkeypatch.setattr(segments, "_MULTIPLICATIONS", {"cpu": 0})
    reason, pattern = refusal("one_pass", name, torch.float64), REFUSED["one_pass"].get(name, "")
    assert reason is None if not pattern else re.search(pattern, reason or "")
