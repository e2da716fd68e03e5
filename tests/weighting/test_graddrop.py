"""GradDrop in cats.MultiTask: its combination, accumulation, resuming, random numbers in several processes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import cats
from cats import ops
from cats.weighting import GradDrop, Static, Weighting

SHAPES = [(7, 5), (5,), (3, 4)]  # the last one is used by task "c" alone


class Case:
    """Three tasks with losses of known gradients, which conflict."""

    def __init__(self, weighting: Weighting | None = None, *, lr: float = 0.1, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.zeros(shape, requires_grad=True) for shape in SHAPES]
        self.grads = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in "abc"]
        base = torch.optim.SGD(self.params, lr=lr)
        self.optimizer = cats.MultiTask(base, ["a", "b", "c"], weighting or GradDrop(seed=3), **options)

    def losses(self, scale: float = 1.0) -> dict[str, Tensor]:
        used = {"a": 2, "b": 2, "c": 3}
        return {
            task: scale * sum((p * g).sum() for p, g in zip(self.params[:n], row, strict=False))
            for (task, n), row in zip(used.items(), self.grads, strict=True)
        }

    def rows(self) -> list[list[Tensor | None]]:
        return [[*row[:2], row[2] if task == "c" else None] for task, row in zip("abc", self.grads, strict=True)]

    def expected(self, step: int, **options: Any) -> list[Tensor]:
        return ops.graddrop(self.rows(), **{"seed": 3, "step": step} | options)

    def step(self, *scales: float) -> list[Tensor]:
        """The combined gradient."""
        self.optimizer.zero_grad()
        for scale in scales or (1.0,):
            self.optimizer.backward(self.losses(scale))
        found = [p.grad.clone() for p in self.params if p.grad is not None]
        self.optimizer.step()
        return found


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_step_takes_the_combination_of_the_operator() -> None:
    case = Case()
    for step in range(3):
        before = [p.detach().clone() for p in case.params]
        found, expected = case.step(), case.expected(step)
        assert same(found, expected)
        assert torch.equal(found[2], case.grads[2][2])  # one task: nothing to drop
        for p, old, g in zip(case.params, before, expected, strict=True):
            torch.testing.assert_close(p.detach(), old - 0.1 * g)
    assert not same(case.expected(0), case.expected(1))


def test_what_the_optimizer_reports() -> None:
    case = Case()
    (combined,) = [torch.cat([t.flatten() for t in case.step()]).double()]
    rows = [torch.cat([torch.zeros(12) if g is None else g.flatten() for g in row]).double() for row in case.rows()]
    statistics = case.optimizer.statistics
    assert case.optimizer.alpha == {"a": 1.0, "b": 1.0, "c": 1.0} and statistics["engine"] == "per_task"
    assert statistics["engine_reason"] == "the weighting needs the gradients themselves"
    for task, row in zip("abc", rows, strict=True):
        assert statistics["dots"][task] == pytest.approx((row @ combined).item(), rel=1e-5)
        assert statistics["sqnorms"][task] == pytest.approx((row @ row).item(), rel=1e-5)
    assert statistics["sqnorm"] == pytest.approx((sum(rows) @ combined).item(), rel=1e-5)


def test_gradients_of_several_calls_are_added_before_signs_are_chosen() -> None:
    # -1 and 3 times the gradients: the signs of the first call alone would be the opposite ones.
    case = Case()
    found = case.step(-1.0, 3.0)
    for a, b in zip(found, case.expected(0), strict=True):
        torch.testing.assert_close(a, 2 * b, rtol=1e-5, atol=1e-5)
    # Only some of the tasks in each call, and gradients of other code stay.
    case.optimizer.zero_grad()
    case.params[0].grad = torch.ones(SHAPES[0])
    losses = case.losses()
    case.optimizer.backward({"c": losses["c"], "a": losses["a"]})
    case.optimizer.backward({"b": losses["b"]})
    torch.testing.assert_close(case.params[0].grad, 1 + case.expected(1)[0], rtol=1e-5, atol=1e-5)


def test_leaks_belong_to_their_tasks() -> None:
    leak = [0.5, 0.0, 1.0]
    case = Case(GradDrop(leak=leak, seed=3))
    assert same(case.step(), case.expected(0, leak=leak))
    case.optimizer.zero_grad()
    losses = case.losses()
    case.optimizer.backward({"b": losses["b"], "c": losses["c"]})
    positions = [i << 40 for i in range(3)]
    expected = ops.graddrop(case.rows()[1:], seed=3, step=1, leak=leak[1:], positions=positions)
    assert same([p.grad for p in case.params if p.grad is not None], expected)


def test_resumed_training_repeats_uninterrupted_training() -> None:
    whole = Case()
    expected = [whole.step() for _ in range(5)]
    first = Case()
    assert all(same(first.step(), g) for g in expected[:2])
    second = Case(GradDrop(seed=8))  # the state has the seed
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert all(same(second.step(), g) for g in expected[2:])


def test_a_skipped_step_draws_the_same_numbers_again() -> None:
    case = Case(max_nonfinite=3)
    for _ in range(2):
        case.step(float("nan"))
    assert case.optimizer.statistics["skipped"] == 2
    assert same(case.step(), case.expected(0))
    case.grads[1][0][2, 2] = float("inf")
    for _ in range(2):
        case.step()
    with pytest.raises(cats.multitask.NonFiniteError, match="the last one of task 'b'"):
        case.step()


def test_the_mean_over_seeds_is_the_expectation_of_the_rule() -> None:
    rows = [row[0].double() for row in Case().grads]
    share = (1 + sum(rows) / sum(row.abs() for row in rows)) / 2
    up, down = (sum(row.clamp(**{bound: 0}) for row in rows) for bound in ("min", "max"))
    count = 2000
    mean = sum(ops.graddrop([[row] for row in rows], seed=seed)[0] for seed in range(count)) / count
    deviation = (up - down) * (share * (1 - share) / count).sqrt()
    assert ((mean - (share * up + (1 - share) * down)).abs() <= 5 * deviation + 1e-12).all()


class Shares:
    """Two processes without communication: what each has of the gradients is made by hand."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.dtype = rank, size, None


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_replicas_use_the_numbers_of_one_process(size: int) -> None:
    case, weighting = Case(), GradDrop(seed=3)
    weighting.start(3)
    whole = [[torch.zeros(s) if g is None else g for g, s in zip(row, SHAPES, strict=True)] for row in case.rows()]
    expected = torch.cat([t.flatten() for t in case.expected(0)])
    found = []
    for rank in range(size):
        layout = cats.distributed.shares.Shares(case.params, 3, Shares(rank, size), frozenset(range(3)))  # type: ignore[arg-type]
        length = -(-len(expected) // size)
        flats = [torch.cat([*(g.flatten() for g in row), torch.zeros(size * length - len(expected))]) for row in whole]
        shares = [[flat[rank * length : (rank + 1) * length]] for flat in flats]
        parts = weighting.combine([layout.parts(share) for share in shares], layout.positions, [0, 1, 2], None)
        found.append(layout.joined(parts)[0])
    assert torch.equal(torch.cat(found)[: len(expected)], expected)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"leak": -0.1}, ValueError, "GradDrop: leak must be a finite number from 0 to 1, got -0.1"),
    ({"leak": [0.5, 2]}, ValueError, "GradDrop: leak must be a finite number from 0 to 1, got 2"),
    ({"leak": "0"}, TypeError, "GradDrop: leak must be a number, got '0'"),
    ({"seed": -1}, ValueError, "GradDrop: seed must be an integer of at least 0 and below 2^62, got -1"),
    ({"seed": 1.0}, ValueError, "GradDrop: seed must be an integer of at least 0 and below 2^62, got 1.0"),
    ({"leak": [0.5, 0.1]}, ValueError, "GradDrop: 2 leaks for 3 tasks"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=str)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Case(GradDrop(**options))


def test_wrong_states() -> None:
    case = Case()
    for state in ({}, {"seed": 1}, {"seed": 1, "step": -1}, {"seed": 1, "step": 0.5}, {"seed": 1, "step": 2, "x": 3}):
        with pytest.raises(ValueError, match="GradDrop: the state must be a seed and a step"):
            case.optimizer.weighting.load_state_dict(state)


def test_what_a_combination_cannot_be_joined_with() -> None:
    class Wrong(GradDrop):
        needs_gram = True

    class Seldom(GradDrop):
        period = 2

    for weighting in (Wrong(), Seldom()):
        with pytest.raises(ValueError, match="a weighting with combines needs period=1"):
            Case(weighting)
    with pytest.raises(ValueError, match="does not compute what a weighting with combines needs: use 'per_task'"):
        Case(engine="one_pass")
    with pytest.raises(NotImplementedError, match="Static does not implement combine"):
        Static().combine([], [], [], None)
