"""What must hold for every weighting that follows the losses, alone and in an optimizer."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cats
from cats.weighting import CATS, DWA, FAMO, RLW, ChiSquareDRO, CVaRDRO, GradNorm, GroupDRO, Uncertainty
from tests.optim.common import TASKS, Quadratics, same

# Settings with which the weights move a lot in a few steps.
MAKERS = {
    "RLW": lambda: RLW(seed=3),
    "GradNorm": lambda: GradNorm(lr=0.1),
    "GradNorm softmax": lambda: GradNorm(lr=0.1, simplex="softmax", initial=3),
    "GroupDRO": lambda: GroupDRO(step_size=0.5),
    "CVaRDRO": lambda: CVaRDRO(rate=0.3),
    "ChiSquareDRO": lambda: ChiSquareDRO(step_size=0.1),
    "Uncertainty": lambda: Uncertainty(lr=0.1),
    "DWA": lambda: DWA(window=3, temperature=0.1),
    "FAMO": lambda: FAMO(lr=0.1),
}
every = pytest.mark.parametrize("name", MAKERS)
# Without a fixed sum, or with weights that do not depend on the losses.
SUMS = [name for name in MAKERS if name != "Uncertainty"]


def started(name, tasks=3):
    weighting = MAKERS[name]()
    weighting.start(tasks)
    return weighting


def take(weighting, losses, present):
    """One step with these losses, and norms that depend on them. The weights that it used, of all tasks or of K."""
    losses = torch.tensor(losses, dtype=torch.float64)
    if weighting.needs_losses:
        used = weighting.weights_from_losses(losses, present)
        weighting.update_after(losses, losses * torch.tensor([0.9, 0.6, 0.8, 0.7])[: len(losses)], present)
        return used
    used = weighting.weights()
    weighting.update(losses, losses * math.nan, losses.abs() + 0.1, present)
    return used


number = st.floats(-1e12, 1e12) | st.floats(0, 10) | st.sampled_from([0.0, 1e-300, 1e100, 1e300])


@st.composite
def steps(draw):
    """Losses of any size, of random subsets of up to four tasks."""
    tasks = draw(st.integers(1, 4))
    subset = st.lists(st.integers(0, tasks - 1), min_size=1, max_size=tasks, unique=True).map(sorted)
    return tasks, [
        (here, draw(st.lists(number, min_size=len(here), max_size=len(here))))
        for here in draw(st.lists(subset, max_size=8))
    ]


@every
@settings(max_examples=40, deadline=None)
@given(problem=steps())
def test_weights_are_finite_and_sum_to_n_or_1(name, problem):
    tasks, history = problem
    weighting = started(name, tasks)
    scale = {"sum": tasks, "mean": 1}[weighting.reduction]
    for here, losses in [*history, (list(range(tasks)), [1.0] * tasks)]:
        used = take(weighting, losses, here)
        assert torch.isfinite(used).all() and (used >= 0).all() and used.dtype == torch.float64
        if name in SUMS and len(used) == tasks:
            assert used.sum().item() == pytest.approx(scale, rel=1e-9)
        assert len(used) == (len(here) if weighting.needs_losses else tasks)
    if name in SUMS and tasks == 1:
        assert used.item() == pytest.approx(1)


@every
def test_tasks_that_are_absent_keep_their_weights(name):
    if name == "RLW":
        return  # its weights are new in each step
    weighting = started(name, 4)
    for losses in ([1.0, 2.0, 3.0, 1.0], [2.0, 2.0, 1.0, 1.0], [3.0, 2.0, 1.0, 1.0]):
        take(weighting, losses, [0, 1, 2, 3])
    before, state = weights_of(weighting, [1.0] * 4), weighting.state_dict()
    for i in range(9):
        take(weighting, [1.0, 4.0 + i], [1, 3])
    after = weights_of(weighting, [1.0] * 4)
    if name in ("GroupDRO", "GradNorm", "GradNorm softmax", "Uncertainty"):
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-12, atol=0)
    elif name != "ChiSquareDRO":  # by the form of the rule, the weights depend on the others' state; the state does not
        for key, value in weighting.state_dict().items():
            assert value.dim() == 0 or key in ("sums", "counts") or torch.equal(value[..., 0], state[key][..., 0])
    assert (after[[1, 3]] - before[[1, 3]]).abs().max() > 1e-3


def weights_of(weighting, losses):
    if weighting.needs_losses:
        return weighting.weights_from_losses(torch.tensor(losses, dtype=torch.float64), range(len(losses)))
    return weighting.weights()


@every
def test_state_in_the_middle_goes_on_exactly(name):
    generator = torch.Generator().manual_seed(0)
    losses = (torch.rand(11, 3, generator=generator) + 0.5).tolist()
    one, two = started(name), started(name)
    for here in losses[:5]:  # in the middle of a window of DWA, and of the first losses of GradNorm
        take(one, here, [0, 1, 2])
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    state = one.state_dict()
    for here in losses[5:]:
        take(one, here, [0, 1, 2])
    two.load_state_dict(torch.load(file, weights_only=True))
    assert same(state, two.state_dict())  # it was a copy
    for here in losses[5:]:
        take(two, here, [0, 1, 2])
    assert same(one.state_dict(), two.state_dict())
    assert torch.equal(weights_of(one, losses[0]), weights_of(two, losses[0]))
    for wrong in ({}, {**state, "more": 1}, {name: torch.zeros(7) for name in state}, dict.fromkeys(state, 1.0)):
        with pytest.raises(ValueError, match=type(one).__name__):
            two.load_state_dict(wrong)
    assert same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss_term", [False, True])
@pytest.mark.parametrize("simplex", ["proximal", "softmax", "lagrangian"])
def test_numbers_of_cats_that_are_not_finite_raise(simplex, loss_term, bad):
    weighting = CATS(simplex=simplex, loss_term=loss_term)
    weighting.start(2)
    state, good, spoiled = weighting.state_dict(), *(torch.tensor([1.0, x], dtype=torch.float64) for x in (2.0, bad))
    for losses, dots in ((good, spoiled), *([(spoiled, good)] if loss_term else [])):
        with pytest.raises(ValueError, match="CATS: a loss or inner product is nan or infinite"):
            weighting.update(losses, dots, good, [0, 1])
    assert same(weighting.state_dict(), state)
    weighting.update(good if loss_term else spoiled, good, spoiled, [0, 1])  # these are not used


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_raise(name, bad):
    if name == "RLW":
        return  # it does not look at the losses
    weighting = started(name)
    state = weighting.state_dict()
    with pytest.raises(ValueError, match=f"{type(weighting).__name__}: a loss or norm is nan or infinite"):
        take(weighting, [1.0, bad, 2.0], [0, 1, 2])
    assert same(weighting.state_dict(), state)


@every
def test_weights_of_a_scaled_problem(name):
    """All but these two do not change if all losses and gradients are multiplied by the same number."""
    one, two = started(name), started(name)
    for losses in ([1.0, 2.0, 3.0], [0.9, 2.5, 1.0], [0.8, 2.0, 0.5], [0.7, 1.5, 2.0]) * 2:
        first = take(one, losses, [0, 1, 2])
        if two.needs_sqnorms:
            big = torch.tensor(losses, dtype=torch.float64)
            second = two.weights()
            two.update(1e3 * big, big * math.nan, 1e6 * (big + 0.1), [0, 1, 2])
        else:
            second = take(two, [1e3 * x for x in losses], [0, 1, 2])
    invariant = name not in ("GroupDRO", "ChiSquareDRO", "Uncertainty")
    assert torch.allclose(first, second, rtol=1e-6) == invariant  # ε of Adam, and FAMO's 1e-8, have a scale


# --- in an optimizer ------------------------------------------------------------------------------------------------


def optimizer_of(problem, name):
    base = torch.optim.AdamW(problem.params, lr=0.05)
    return cats.MultiTask(base, TASKS, MAKERS[name]())


def step(optimizer, problem, here, form):
    optimizer.zero_grad()
    if form == "ids":
        optimizer.backward(lambda: torch.stack([problem.loss(n) for n in here]), tasks=torch.tensor(here))
    elif form == "two calls":
        for w, last in ((0.25, False), (0.75, True)):
            losses = {TASKS[n]: lambda n=n, w=w: w * problem.loss(n) for n in here}
            optimizer.backward(losses, last=last)
    else:
        optimizer.backward({TASKS[n]: lambda n=n: problem.loss(n) for n in here})
    optimizer.step()


def batches(count):
    return [[0, 2] if t % 4 == 1 else [1] if t % 4 == 3 else [0, 1, 2] for t in range(count)]


@every
def test_all_forms_of_a_step_are_one(name):
    found = []
    for form in ("callables", "ids", "two calls"):
        problem = Quadratics()
        optimizer = optimizer_of(problem, name)
        for here in batches(9):
            step(optimizer, problem, here, form)
        found.append((problem.theta, optimizer.alpha))
    for theta, alpha in found[1:]:  # float64; only the order of the sums differs
        torch.testing.assert_close(theta, found[0][0], rtol=1e-9, atol=1e-11)
        assert alpha == pytest.approx(found[0][1], rel=1e-8)
    assert len(set(found[0][1].values())) > 1


@every
def test_resumed_training_is_the_same_bit_for_bit(name):
    whole, resumed = Quadratics(), Quadratics()
    one = optimizer_of(whole, name)
    for here in batches(5):
        step(one, whole, here, "callables")
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = optimizer_of(resumed, name)
    two.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for p, q in zip(resumed.params, whole.params, strict=True):
            p.copy_(q)
    assert same(one.alpha, two.alpha)
    for here in batches(6):
        step(one, whole, here, "callables")
        step(two, resumed, here, "callables")
    assert torch.equal(whole.theta, resumed.theta) and same(one.state_dict(), two.state_dict())


@every
def test_steps_that_a_gradscaler_skips_change_nothing(name):
    problem = Quadratics(dtype=torch.float32)
    optimizer = optimizer_of(problem, name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # of float32 gradients: infinite
    states = []
    for _ in range(3):
        states.append(optimizer.weighting.state_dict())
        optimizer.zero_grad()
        optimizer.backward(problem.losses("callables"), scaler=scaler)
        scaler.step(optimizer)
        scaler.update(new_scale=2.0**4)
    assert optimizer.statistics["skipped"] == 1 and optimizer.statistics["step"] == 2
    assert same(states[0], states[1]) and not same(states[1], states[2])
