"""The problems: deterministic, complete, and solvable."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench.tasks import run
from bench.tasks.problems import problems

PROBLEMS = problems()
FEW = [name for name in PROBLEMS if "regression" not in name or "K=2" in name]


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_seed_fixes_data_and_model(name: str) -> None:
    problem = PROBLEMS[name]
    trials = [problem.trial(0), problem.trial(0), problem.trial(1)]
    values = [[(v() if callable(v) else v).item() for v in trial.losses()] for trial in trials]
    assert len(values[0]) == problem.tasks and all(math.isfinite(v) and v > 0 for v in values[0])
    assert values[0] == values[1] != values[2]
    errors = [trial.errors() for trial in trials]
    assert errors[0] == errors[1] != errors[2]
    own = {id(p) for p in trials[0].model.parameters()}
    assert trials[0].last_shared and all(id(p) in own for p in trials[0].last_shared)


@pytest.mark.parametrize("name", FEW)
def test_a_few_steps_reduce_the_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(PROBLEMS[name], steps=60, lr=1e-2)
    monkeypatch.setattr(run, "problems", lambda: {name: problem})
    before = max(problem.trial(0).errors())
    assert run.train(name, "equal", 0).worst < before


def test_the_last_loss_is_scaled() -> None:
    plain, scaled = (
        PROBLEMS[f"regression, K=2, {kind}"].trial(3).losses() for kind in ("equal tasks", "last loss × 10")
    )
    torch.testing.assert_close(torch.stack([*scaled]), torch.stack([*plain]) * torch.tensor([1.0, 10.0]))


def test_the_noise_is_in_the_training_data_only() -> None:
    plain, noisy = (PROBLEMS[f"regression, K=2, {kind}"].trial(3) for kind in ("equal tasks", "last task noisy"))
    assert plain.errors() == noisy.errors()
    assert plain.losses()[0] == noisy.losses()[0] and plain.losses()[1] < noisy.losses()[1]
