"""Rules of the Gram matrix: those of TorchJD, dependent gradients, and results that are no weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cats
from cats.weighting import Gramian, Static, Weighting
from cats.weighting.rounding import precision, without_rounding_noise


class Counting(nn.Module):
    """A rule with plain attributes that change, as some of TorchJD's have."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.steps, self.kind = 0.5, 0, None

    def forward(self, gram: Tensor) -> Tensor:
        self.steps, self.kind = self.steps + 1, (len(gram), gram.dtype)
        return torch.full((len(gram),), self.rate * self.steps)


def test_gramian_saves_plain_attributes_that_have_changed():
    one = Gramian(Counting())
    before = one.state_dict()
    one.weights_from_gram(torch.eye(2).double(), None)
    other = Counting()
    other.rate = 2.0  # a setting, which a state does not overwrite
    two = Gramian(other)
    two.load_state_dict(one.state_dict())
    assert (other.steps, other.kind, other.rate) == (1, (2, torch.float64), 2.0)
    two.load_state_dict(before)
    assert (other.steps, other.kind, other.rate) == (0, None, 2.0)


def torchjd_rules():
    return pytest.importorskip("torchjd.aggregation")


@pytest.mark.parametrize("name", ["AlignedMTL", "IMTLG", "MGDA", "PCGrad", "Mean", "Sum", "Random"])
def test_aggregators_of_torchjd_become_their_weighting(name):
    rules = torchjd_rules()
    kind = getattr(rules, f"{name}Weighting")
    assert type(Gramian(getattr(rules, name)()).rule) is type(Gramian(kind()).rule) is kind


def test_a_composition_of_torchjd_with_the_gram_matrix_becomes_its_weighting():
    rules = torchjd_rules()
    assert isinstance(Gramian(rules.MGDA().weighting).rule, rules.MGDAWeighting)
    assert Gramian(rules.CRMOGMWeighting(rules.MGDAWeighting())).rule is not None


@pytest.mark.parametrize("name", ["ConFIG", "GradDrop", "ExcessMTL", "ExcessMTLWeighting", "MoDoWeighting"])
def test_rules_of_torchjd_that_need_the_jacobian_are_refused(name):
    rules = torchjd_rules()
    rule = getattr(rules, name)()
    with pytest.raises(TypeError, match=f"{name} of TorchJD needs the Jacobian.*such as UPGradWeighting"):
        Gramian(rule)
    if name.endswith("Weighting"):
        with pytest.raises(TypeError, match="CRMOGMWeighting of TorchJD needs the Jacobian"):
            Gramian(rules.CRMOGMWeighting(rule))


def aligned(gram):
    """The weights of AlignedMTL with equal preferences (Senushkin et al., CVPR 2023, algorithm 1)."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values.max() * len(gram) * torch.finfo(gram.dtype).eps
    values, vectors = values[kept], vectors[:, kept]
    return (values.min() / values).sqrt() * vectors.mean(0) @ vectors.T


def impartial(gram):
    """The weights of IMTL-G with a pseudo-inverse, for dependent gradients."""
    weights = torch.linalg.pinv(gram) @ gram.diagonal().sqrt()
    return weights / weights.sum()


@pytest.mark.parametrize("rule", [aligned, impartial])
@pytest.mark.parametrize("eps", [2.0**-23, 2.0**-16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1.0, 1e-4, 10.0)], ids=["similar", "of different size"])
def test_rounding_noise_of_dependent_gradients_does_not_count(rule, eps, sizes):
    draw = np.random.default_rng(0)
    failed = 0
    for _ in range(50):
        basis = draw.integers(-9, 10, size=(2, 40)).astype(float)
        rows = np.array([[1, 0], [0, 1], [1, 1]]) @ basis * np.array(sizes)[:, None]
        exact = rows @ rows.T
        noise = draw.normal(size=(3, 3)) * eps / 4 * np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        gram = torch.tensor(exact + noise + noise.T)
        found = rule(without_rounding_noise(gram, 3 * eps)).numpy() @ rows
        # The truth: the two columns of an exact factor have a Gram matrix of full rank.
        left, values, _ = np.linalg.svd(rows, full_matrices=False)
        left, values = left[:, :2], values[:2]
        if rule is aligned:
            weights = left @ np.diag(values.min() / values) @ left.T @ np.full(3, 1 / 3)
        else:
            weights = left @ np.diag(values**-2.0) @ left.T @ np.linalg.norm(rows, axis=1)
            weights = weights / weights.sum()
        truth = weights @ rows
        failed += np.linalg.norm(found - truth) > 1e3 * eps * np.linalg.norm(truth)
    assert failed == 0


def test_independent_gradients_keep_their_gram_matrix():
    rows = torch.tensor([[1.0, 0.0], [1e-6, 1e-6]]).double()
    gram = rows @ rows.T
    assert without_rounding_noise(gram, 2.0**-22) is gram
    gram = torch.diag(torch.tensor([0.0, 4.0]).double())  # a task without a gradient is not noise either
    assert without_rounding_noise(gram, 2.0**-22) is gram


def update_of_dependent_tasks(autocast, tolerance, rule):
    """The combined gradient for the tasks a, b, a + b of a small network with float32 parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 2))
    x, target = torch.randn(64, 16), torch.randn(64, 2)

    def loss(a, b):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            errors = (net(x).float() - target).square().mean(0)
        return a * errors[0] + b * errors[1]

    optimizer = cats.MultiTask(torch.optim.SGD(net.parameters(), lr=0.1), 3, Gramian(rule, tolerance))
    optimizer.backward([loss(1, 0), loss(0, 1), loss(1, 1)])
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("rule", [aligned, impartial])
def test_autocast_needs_a_tolerance(rule):
    truth = update_of_dependent_tasks(False, None, rule)
    found = update_of_dependent_tasks(True, 1e-3, rule)
    # bfloat16 rounds by 2^-9, here in about 6 places one after the other
    assert (found - truth).norm() < 0.03 * truth.norm()
    # without it, the rule divides by an eigenvalue that is only rounding errors
    assert update_of_dependent_tasks(True, None, rule).norm() < 0.1 * truth.norm()


def test_a_tolerance_is_relative_to_the_largest_eigenvalue_of_the_cosines():
    def shown(cosine, tolerance):
        gram = torch.tensor([[1.0, 10 * cosine], [10 * cosine, 100.0]]).double()  # eigenvalues 1 ± cosine
        return torch.linalg.matrix_rank(without_rounding_noise(gram, tolerance)).item()

    assert shown(0.99, 0.0049) == 2 and shown(0.99, 0.0051) == 1
    assert shown(1 - 1e-6, 0.0) == 2


@pytest.mark.parametrize(
    ("tolerance", "error"), [(-1e-3, ValueError), (1.0, ValueError), (float("nan"), ValueError), (True, TypeError)]
)
def test_a_tolerance_out_of_range_is_refused(tolerance, error):
    with pytest.raises(error, match="tolerance must be"):
        Gramian(aligned, tolerance)


def test_the_precision_of_gradients():
    assert precision([torch.float64]) == 2.0**-52 and precision([torch.float64, torch.float32]) == 2.0**-23
    assert precision([torch.bfloat16]) == 2.0**-16 and precision([torch.float16]) == 2.0**-22


@pytest.mark.parametrize(
    ("returned", "error", "match"),
    [
        (torch.tensor([1.0, float("nan")]), ValueError, "returned nan for task 'be'"),
        (torch.tensor([float("inf"), 1.0]), ValueError, "returned inf for task 'az'.*at most 3.4e"),
        (torch.tensor([1.0, -1e39], dtype=torch.float64), ValueError, "-1e\\+39 for task 'be'"),
        (torch.tensor([1.0, 2.0], dtype=torch.complex64), TypeError, "complex64 instead of a tensor of 2 weights"),
        (torch.tensor([True, False]), TypeError, "bool instead"),
        ([1.0, 2.0], TypeError, "returned list instead of a tensor of 2 weights"),
        (torch.ones(2, 2), ValueError, r"shape \(2, 2\) for 2 tasks"),
    ],
)
@pytest.mark.parametrize("how", ["gram", "known", "known, per task"])
def test_what_is_not_a_vector_of_weights_is_refused(returned, error, match, how):
    class Fixed(Weighting):
        period = 1 if how == "known, per task" else 0

        def weights(self):
            return returned

    p = nn.Parameter(torch.ones(2))
    weighting = Fixed() if how.startswith("known") else lambda gram: returned
    optimizer = cats.MultiTask(torch.optim.SGD([p], lr=0.1), ["az", "be"], weighting)
    with pytest.raises(error, match=match) as caught:
        optimizer.backward([p.sum(), p.square().sum()])
    assert p.grad is None and "\n" not in str(caught.value)


def test_a_weight_that_a_float64_model_can_use_but_a_half_loss_cannot():
    p = nn.Parameter(torch.ones(2).double())
    optimizer = cats.MultiTask(torch.optim.SGD([p], lr=0.1), 2, Static([1e100, 1e-100]))
    optimizer.backward([p.sum(), p.sum()])
    assert p.grad.tolist() == [1e100, 1e100]
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"weight 1e\+100 is too large for a loss of torch.float16"):
        optimizer.backward([p.sum().half(), p.sum()])
    assert p.grad is None
