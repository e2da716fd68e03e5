"""Weightings without an optimizer: numbers in, weights out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cats
from cats.weighting import CATS, Gramian, Static, Weighting

# The rules are a dozen float64 operations on numbers near 1; only the order of the sums differs from the oracle's.
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def lagrangian(alpha, lc, ls, ln, losses, gram, epsilon):
    """The value of Eq. 4 of the paper. gram is the Gram matrix of the g_n, so ‖Σ α_n g_n‖² = αᵀ gram α."""
    norm = alpha @ gram @ alpha
    return alpha @ losses - lc * (epsilon - norm) + ls * (alpha.sum() - 1) ** 2 - ln @ (alpha - epsilon)


def slopes(alpha, lc, ls, ln, losses, gram, epsilon):
    """The gradient of Eq. 4 by central differences. Exact up to rounding: Eq. 4 is quadratic in each argument."""
    h, k = 1e-3, len(alpha)

    def value(x):
        return lagrangian(x[:k], x[k], x[k + 1], x[k + 2 :], losses, gram, epsilon)

    point = np.concatenate([alpha, [lc, ls], ln])
    slope = np.array([(value(point + h * e) - value(point - h * e)) / (2 * h) for e in np.eye(len(point))])
    return slope[:k], slope[k], slope[k + 1], slope[k + 2 :]


def random_problem(rng, k):
    rows = rng.normal(size=(k, 7))
    return rng.uniform(0.5, 3, size=k), rows @ rows.T


@pytest.mark.parametrize("loss_term", [True, False])
def test_lagrangian_descends_and_ascends_eq_4(loss_term):
    rng = np.random.default_rng(0)
    k, eta, mu, epsilon = 4, 0.05, 0.02, 0.03
    weighting = CATS(simplex="lagrangian", alpha_lr=eta, multiplier_lr=mu, epsilon=epsilon, loss_term=loss_term)
    weighting.start(k)
    alpha, lc, ls, ln = np.ones(k), 0.0, 0.0, np.zeros(k)
    clipped = pushed = False
    for _ in range(60):
        losses, gram = random_problem(rng, k)
        d_alpha, d_lc, d_ls, d_ln = slopes(alpha, lc, ls, ln, losses * loss_term, gram, epsilon)
        weighting.update(torch.tensor(losses), torch.tensor(gram @ alpha), torch.tensor(np.diag(gram)), range(k))
        clipped = clipped or bool((alpha - eta * d_alpha < 0).any())
        alpha = np.maximum(alpha - eta * d_alpha, 0)
        lc, ls, ln = max(lc + mu * d_lc, 0), ls + mu * d_ls, np.maximum(ln + mu * d_ln, 0)
        # Central differences of numbers near 1e2 with a step of 1e-3: rounding errors of 1e-11 a step, for 60 steps.
        np.testing.assert_allclose(weighting.weights(), alpha, rtol=1e-8, atol=1e-9)
        got = weighting.multipliers
        np.testing.assert_allclose([got["lambda_c"], got["lambda_s"]], [lc, ls], rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(got["lambda_n"], ln, rtol=1e-8, atol=1e-9)
        pushed = pushed or bool((ln > 0).any())
    assert clipped and pushed, "the problem must clip α and raise λ_n to test them"


@pytest.mark.parametrize("loss_term", [True, False])
def test_softmax_rule(loss_term):
    rng = np.random.default_rng(1)
    k, eta, mu, epsilon = 5, 0.3, 0.05, 0.01
    weighting = CATS(
        simplex="softmax", reduction="mean", alpha_lr=eta, multiplier_lr=mu, epsilon=epsilon, loss_term=loss_term
    )
    weighting.start(k)
    np.testing.assert_allclose(weighting.weights(), np.full(k, 1 / k), **CLOSE)
    a, lc = np.zeros(k), 0.0
    for _ in range(20):
        losses, gram = random_problem(rng, k)
        alpha = np.exp(a) / np.exp(a).sum()
        v = gram @ alpha
        h = ((losses if loss_term else 0) + 2 * lc * v) / (1 + 2 * lc)
        a, lc = a - eta * alpha * (h - alpha @ h), max(0.0, lc + mu * (alpha @ v - epsilon))
        weighting.update(torch.tensor(losses), torch.tensor(v), torch.tensor(np.diag(gram)), range(k))
        np.testing.assert_allclose(weighting.weights(), np.exp(a) / np.exp(a).sum(), **CLOSE)
        np.testing.assert_allclose(weighting.multipliers["lambda_c"], lc, **CLOSE)


def test_softmax_subset_keeps_its_mass_and_the_others_their_values():
    rng = np.random.default_rng(2)
    weighting = CATS(simplex="softmax", reduction="mean", alpha_lr=0.5, multiplier_lr=0.1, loss_term=True)
    weighting.start(5)
    for _ in range(5):
        losses, gram = random_problem(rng, 5)
        weighting.update(torch.tensor(losses), torch.tensor(gram @ weighting.weights().numpy()), None, range(5))
    before, lc, present = weighting.weights().numpy(), weighting.multipliers["lambda_c"], [1, 3, 4]
    losses, gram = random_problem(rng, 3)
    weighting.update(torch.tensor(losses), torch.tensor(gram @ before[present]), None, present)
    after = weighting.weights().numpy()

    # The same with these three tasks only, where the weights sum to one.
    mass = before[present].sum()
    alpha = before[present] / mass
    v = gram @ alpha
    h = (losses + 2 * lc * v) / (1 + 2 * lc)
    moved = alpha * np.exp(-0.5 * alpha * (h - alpha @ h))
    np.testing.assert_allclose(after[present], mass * moved / moved.sum(), **CLOSE)
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], **CLOSE)
    np.testing.assert_allclose(weighting.multipliers["lambda_c"], lc + 0.1 * (alpha @ v - 1e-3), **CLOSE)
    assert np.abs(after[present] - before[present]).max() > 1e-3


def test_lagrangian_subset_moves_only_what_is_present():
    weighting = CATS(simplex="lagrangian", alpha_lr=0.1, multiplier_lr=0.5, epsilon=2.0, loss_term=True)
    weighting.start(4)
    weighting.update(torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, -0.25]).double(), None, [0, 2])
    # alpha = 1 and all multipliers are 0, so the gradient is L_n. Σα is over all four tasks, so Σα − 1 = 3.
    np.testing.assert_allclose(weighting.weights(), [0.9, 1.0, 0.8, 1.0], **CLOSE)
    assert weighting.multipliers["lambda_s"] == 0.5 * 3.0**2
    assert weighting.multipliers["lambda_c"] == 0.0  # 0.25 - 2 < 0: clipped
    np.testing.assert_allclose(weighting.multipliers["lambda_n"], [0.5, 0, 0.5, 0], **CLOSE)


def min_norm(gram):
    """The weights of minimal norm in the simplex, found by trying all its faces. Exact; for small K."""
    k, best = len(gram), None
    for mask in range(1, 2**k):
        face = [i for i in range(k) if mask >> i & 1]
        w = np.linalg.solve(gram[np.ix_(face, face)], np.ones(len(face)))
        if (w > 0).all():
            full = np.zeros(k)
            full[face] = w / w.sum()
            if best is None or full @ gram @ full < best @ gram @ best:
                best = full
    return best


@pytest.mark.filterwarnings("ignore:CATS. the weight:UserWarning")  # the target gives one task no weight
@pytest.mark.parametrize("seed", range(3))
def test_softmax_without_loss_term_reaches_the_min_norm_point(seed):
    rows = np.random.default_rng(seed).normal(size=(4, 6)) + 0.3
    gram = rows @ rows.T
    target = min_norm(gram)
    assert (gram @ target >= target @ gram @ target - 1e-12).all()  # the target satisfies the optimality condition
    weighting = CATS(simplex="softmax", reduction="mean", alpha_lr=1.0, multiplier_lr=0.01)
    weighting.start(4)
    for _ in range(6000):
        alpha = weighting.weights().numpy()
        weighting.update(torch.zeros(4).double(), torch.tensor(gram @ alpha), None, range(4))
    alpha = weighting.weights().numpy()
    # A weight whose optimum is 0 converges like 1/t, the others geometrically.
    assert alpha @ gram @ alpha <= (target @ gram @ target) * (1 + 1e-3)
    np.testing.assert_allclose(alpha, target, atol=2e-3)


def proximal_target(gram, prior, strength):
    """The stationary point α_n ∝ π_n exp(−κ v_n / ‖ḡ‖²), found by damped iteration."""
    alpha = prior / prior.sum()
    for _ in range(20000):
        v = gram @ alpha
        wanted = prior * np.exp(-strength * v / (alpha @ v))
        alpha = 0.99 * alpha + 0.01 * wanted / wanted.sum()
    return alpha


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_proximal_reaches_its_stationary_point_at_any_scale(scale):
    rows = np.random.default_rng(3).normal(size=(4, 6)) + 0.3
    gram, prior = rows @ rows.T, np.array([0.4, 0.3, 0.2, 0.1])
    target = proximal_target(gram, prior, 0.5)
    weighting = CATS(strength=0.5, floor=0.0, prior=prior * 7, reduction="mean")
    weighting.start(4)
    np.testing.assert_allclose(weighting.weights(), prior, **CLOSE)
    for _ in range(1000):
        v = scale * gram @ weighting.weights().numpy()
        weighting.update(torch.zeros(4).double(), torch.tensor(v), None, range(4))
    np.testing.assert_allclose(weighting.weights(), target, rtol=1e-9)
    # It is the minimum of F: no small move within the simplex is better.
    rng = np.random.default_rng(0)

    def objective(alpha):
        return 0.5 * np.log(alpha @ gram @ alpha) + (alpha * np.log(alpha / prior)).sum() / 0.5

    for _ in range(20):
        move = rng.normal(size=4) * 1e-3
        assert objective(target) < objective(target + move - move.mean())


def test_proximal_subset_floor_and_clipping():
    weighting = CATS(alpha_lr=0.5, strength=2.0, floor=0.2, reduction="mean")
    weighting.start(4)
    v = torch.tensor([1.0, 999.0]).double()  # r = 0.002 and 1.998 with weights of 1/2 each
    weighting.update(torch.ones(2).double(), v, None, [1, 3])
    a = np.array([0, 0.5 * 2 * (1 - 0.002), 0, 0.5 * 2 * (1 - 1.998)])
    np.testing.assert_allclose(weighting.weights(), 0.8 * np.exp(a) / np.exp(a).sum() + 0.2 / 4, **CLOSE)
    # Task 3 opposes ḡ so strongly that its r is clipped at −5; r of task 1 is clipped at 10.
    before = weighting.weights().numpy()[[1, 3]]
    v = np.array([1.0, 0.0])
    v[1] = -(before[0] - 1e-3) / before[1]
    weighting.update(torch.ones(2).double(), torch.tensor(v), None, [1, 3])
    a[[1, 3]] = 0.5 * a[[1, 3]] + 0.5 * 2 * (1 - np.array([10, -5]))
    np.testing.assert_allclose(weighting.weights(), 0.8 * np.exp(a) / np.exp(a).sum() + 0.2 / 4, **CLOSE)
    state = weighting.state_dict()
    for nothing in ([0.0, 0.0], [-1.0, -1.0]):  # no direction: nothing moves
        weighting.update(torch.ones(2).double(), torch.tensor(nothing).double(), None, [1, 3])
    assert repr(weighting.state_dict()) == repr(state)


def test_prior():
    weighting = CATS(floor=0.1)
    weighting.start(3)
    assert weighting.weights().tolist() == [1, 1, 1]  # exactly: ḡ is then the gradient of the sum of the losses
    weighting.prior = [3, 1, 0]
    np.testing.assert_allclose(weighting.weights() / weighting.scale, [0.75, 0.25, 0], **CLOSE)
    assert weighting.prior.tolist() == [0.75, 0.25, 0]
    weighting.update(torch.ones(2).double(), torch.tensor([2.0, 1.0]).double(), None, [0, 1])
    moved = weighting.weights() / weighting.scale
    assert moved[0] < 0.75 and moved[2] == 0 and moved.sum() == pytest.approx(1, rel=1e-14)
    assert moved[0] > 0.075
    for bad in ([1, 2], [1, 2, -1], [1, 2, float("nan")], [0, 0, 0]):
        with pytest.raises(ValueError, match="prior"):
            weighting.prior = bad
    assert weighting.prior.tolist() == [0.75, 0.25, 0]
    softmax = CATS(simplex="softmax")
    softmax.start(3)
    with pytest.raises(ValueError, match="proximal"):
        softmax.prior = [1, 1, 1]


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 49, 1000])
@pytest.mark.parametrize("simplex", ["proximal", "softmax", "lagrangian"])
def test_equal_weights_are_exactly_one(simplex, tasks):
    for floor in [None] if simplex == "lagrangian" else [None, 0.0, 0.1, 0.3, 0.7]:
        weighting = CATS(simplex=simplex, floor=floor)
        weighting.start(tasks)
        assert weighting.weights().tolist() == [1.0] * tasks
        assert weighting.scale == (1 if simplex == "lagrangian" else tasks)


@pytest.mark.filterwarnings("ignore:CATS. the weight:UserWarning")  # the target has weights at the floor
def test_softmax_with_a_floor_descends_the_same_objective():
    """The step of a is the slope of h·α(a), where h is constant, found by central differences."""
    weighting = CATS(simplex="softmax", reduction="mean", floor=0.3, alpha_lr=0.1, loss_term=True)
    weighting.start(3)
    h = np.array([0.5, 2.0, 1.0])

    def alpha(a):
        return 0.7 * np.exp(a) / np.exp(a).sum() + 0.1

    a = np.zeros(3)
    for _ in range(5):
        slope = np.array([h @ (alpha(a + e) - alpha(a - e)) / 2e-6 for e in 1e-6 * np.eye(3)])
        a = a - 0.1 * slope
        weighting.update(torch.tensor(h), torch.zeros(3).double(), None, range(3))
        np.testing.assert_allclose(weighting.weights(), alpha(a), rtol=1e-8)  # differences of 1e-6: errors of 1e-10
    for _ in range(20000):
        weighting.update(torch.tensor(h), torch.zeros(3).double(), None, range(3))
    np.testing.assert_allclose(weighting.weights(), [0.8, 0.1, 0.1], atol=0.05)
    assert weighting.weights().min() > 0.1


def test_a_task_at_its_floor_is_reported_once():
    weighting = CATS(simplex="softmax", floor=0.1, alpha_lr=50.0, loss_term=True)
    weighting.names = ("az", "be")
    weighting.start(2)

    def update(losses):
        weighting.update(torch.tensor(losses).double(), torch.zeros(2).double(), None, range(2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(99):
            update([1.0, 100.0])
    with pytest.warns(UserWarning, match=r"task 'be'.*100 updates.*floor \(now 0.1\)"):
        update([1.0, 100.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            update([1.0, 100.0])


def test_a_small_prior_is_not_a_floor():
    weighting = CATS(prior=[1e6, 1.0, 0.0])
    weighting.start(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            v = torch.tensor([1.0, 2.0, 1.0]).double()
            weighting.update(torch.ones(3).double(), v, None, range(3))
    assert 0 < weighting.weights()[1] < 1e-5


@pytest.mark.parametrize("simplex", ["softmax", "lagrangian"])
def test_a_multiplier_without_bound_is_reported_once(simplex):
    weighting = CATS(simplex=simplex, alpha_lr=0.0, multiplier_lr=1.0)
    weighting.start(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(150):
            weighting.update(torch.ones(2).double(), torch.tensor([10.0, 20.0]).double(), None, range(2))
    messages = [str(each.message) for each in caught]
    assert [message for message in messages if "lambda_c" in message] == messages
    assert len(messages) == 1 and "multiplier_lr (now 1)" in messages[0]


@pytest.mark.parametrize("simplex", ["proximal", "softmax", "lagrangian"])
def test_cats_state_is_a_copy_and_restores_exactly(simplex):
    def step(weighting):
        v = torch.tensor([0.3, -0.1, 2.0]).double() + weighting.weights()
        weighting.update(torch.tensor([1.0, 2.0, 0.5]).double(), v, v.square(), range(3))

    one, two = (CATS(simplex=simplex, loss_term=True, multiplier_lr=0.1) for _ in range(2))
    one.start(3)
    two.start(3)
    step(one)
    state = one.state_dict()
    step(one)
    two.load_state_dict(state)
    step(two)
    assert torch.equal(one.weights(), two.weights())
    assert repr(one.state_dict()) == repr(two.state_dict())
    other = CATS(simplex="lagrangian" if simplex == "softmax" else "softmax")
    other.start(3)
    with pytest.raises(ValueError, match="simplex"):
        other.load_state_dict(state)


@pytest.mark.parametrize("simplex", ["proximal", "softmax", "lagrangian"])
def test_a_state_that_does_not_fit_changes_nothing(simplex):
    one = CATS(simplex=simplex)
    one.start(3)
    good = one.state_dict()
    for name in good.keys() - {"reduction"}:
        wrong = [None, "x"] if name == "simplex" else [None, "x", torch.zeros(4)]
        wrong += [torch.tensor([2.0, -1.0, 1.0])] if name == "prior" else []
        for value in wrong:
            with pytest.raises(ValueError, match=name):
                one.load_state_dict({**good, name: value})
            assert repr(one.state_dict()) == repr(good), (name, value)
        with pytest.raises(ValueError, match=name):
            one.load_state_dict({key: other for key, other in good.items() if key != name})


def test_states_of_earlier_versions_had_the_mean():
    """They have no "reduction"; with a sum, the same weights would give larger gradients."""
    older = {"simplex": "softmax", "lambda_c": 0.5, "a": torch.tensor([0.1, 0.2]).double()}
    for reduction in ("mean", "sum"):
        weighting = CATS(simplex="softmax", reduction=reduction)
        weighting.start(2)
        if reduction == "mean":
            weighting.load_state_dict(older)
            assert weighting.weights().sum() == pytest.approx(1)
        else:
            with pytest.raises(ValueError, match=r"make the optimizer with simplex='softmax', reduction='mean'"):
                weighting.load_state_dict(older)
    lagrangian = CATS(simplex="lagrangian")
    lagrangian.start(2)
    state = lagrangian.state_dict()
    del state["reduction"]
    lagrangian.load_state_dict(state)  # this form never had one


def test_a_prior_comes_back_bit_for_bit():
    for seed in range(50):
        shares = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        one, two = CATS(prior=shares), CATS()
        one.start(5)
        two.start(5)
        two.load_state_dict(one.state_dict())
        assert torch.equal(one.weights(), two.weights()) and torch.equal(one.prior, two.prior)


def test_a_task_without_prior_has_no_weight_however_large_its_a():
    weighting = CATS(strength=200.0, prior=[0.0, 1.0], reduction="mean")
    weighting.start(2)
    for _ in range(50):
        weighting.update(torch.ones(2).double(), torch.tensor([-100.0, 1.0]).double(), None, range(2))
    assert weighting.weights().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "options",
    [
        {"inner_steps": 0},
        {"inner_steps": 2.5},
        {"inner_steps": True},
        {"alpha_lr": -1.0},
        {"multiplier_lr": float("nan")},
        {"epsilon": float("inf")},
        {"simplex": "simplex"},
        {"alpha_lr": 1.5},
        {"strength": -1.0},
        {"floor": 1.0},
        {"floor": 0.1, "simplex": "lagrangian"},
        {"prior": [1, 1], "simplex": "softmax"},
        {"reduction": "none"},
    ],
)
def test_cats_refuses_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CATS(**options)


def test_cats_refuses_what_is_no_number():
    for name in ("alpha_lr", "floor", "strength", "epsilon"):
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            CATS(**{name: "x"})
    weighting = CATS(prior=["a", "b"])
    with pytest.raises(ValueError, match="prior needs one number"):
        weighting.start(2)


def test_static():
    weighting = Static([1, 2, 3.5])
    weighting.start(3)
    assert weighting.weights().tolist() == [1, 2, 3.5]
    assert weighting.period == 0 and not weighting.needs_gram
    equal = Static()
    equal.start(2)
    assert equal.weights().tolist() == [1, 1]
    with pytest.raises(ValueError, match="3 weights for 2 tasks"):
        Static([1, 2, 3]).start(2)
    named = Static({"be": 2, "az": 1})
    named.names = ("az", "be")
    named.start(2)
    assert named.weights().tolist() == [1, 2]
    for bad in ([1, float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="weights must be"):
            Static(bad)


class Momentum(nn.Module):
    """Like a TorchJD Weighting: it maps a Gram matrix to weights, and has a buffer that is None until it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("average", None)

    def forward(self, gram: Tensor) -> Tensor:
        diagonal = gram.diagonal()
        self.average = diagonal if self.average is None else 0.5 * self.average + 0.5 * diagonal
        return self.scale / self.average


def test_gramian_saves_and_restores_a_modules_buffers():
    gram = torch.diag(torch.tensor([1.0, 4.0]).double())
    one = Gramian(Momentum())
    empty = one.state_dict()
    assert one.weights_from_gram(gram, None).tolist() == [2.0, 0.5]
    state = one.state_dict()
    expected = one.weights_from_gram(3 * gram, None)
    two = Gramian(Momentum())
    two.load_state_dict(state)
    assert torch.equal(two.weights_from_gram(3 * gram, None), expected)
    assert not expected.requires_grad
    two.load_state_dict(empty)
    assert two.weights_from_gram(gram, None).tolist() == [2.0, 0.5]


def test_gramian_takes_a_function_and_refuses_the_rest():
    assert Gramian(lambda gram: gram.sum(1)).weights_from_gram(torch.ones(2, 2), None).tolist() == [2, 2]
    with pytest.raises(TypeError, match="callable"):
        Gramian(3)


def test_a_weighting_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match=r"weights\(\)"):
        Weighting().weights()
    with pytest.raises(NotImplementedError, match="weights_from_gram"):
        Weighting().weights_from_gram(torch.eye(2), torch.ones(2))


def test_public_names():
    assert {"CATS", "Static", "Weighting", "Gramian"} <= set(cats.weighting.__all__)
