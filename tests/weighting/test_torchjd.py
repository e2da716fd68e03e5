"""Rules of TorchJD by their name."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import cats
from cats.weighting import torchjd
from tests.weighting.common import gram_of

rules = pytest.importorskip("torchjd.aggregation")

OPTIONS = {
    "CAGrad": {"c": 0.4},
    "Constant": {"weights": [1, 2, 3, 4.5]},
    "FairGrad": {"alpha": 1.0},
    "Krum": {"n_byzantine": 1},
    "NashMTL": {"n_tasks": 4},
}
SOLVERS = {"CAGrad": "cvxpy", "FairGrad": "scipy", "NashMTL": "ecos", "UPGrad": "quadprog", "DualProj": "quadprog"}
RANDOM = {"PCGrad", "GradVac", "Random"}
NAMES = [
    "AlignedMTL",
    "CAGrad",
    "Constant",
    "DualProj",
    "FairGrad",
    "GradVac",
    "IMTLG",
    "Krum",
    "MGDA",
    "Mean",
    "NashMTL",
]
NAMES += ["PCD", "PCGrad", "Random", "Sum", "UPGrad"]


def steps(count):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(4, 9)) + 0.5 for _ in range(count)]


@pytest.fixture
def options(request):
    if request.param in SOLVERS:
        pytest.importorskip(SOLVERS[request.param])
    return request.param, OPTIONS.get(request.param, {})


def test_random_rules_start_anew_in_a_new_optimizer():
    gram, weighting = torch.eye(3).double(), torchjd("Random")
    found = []
    for _ in range(2):
        cats.MultiTask(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 3, weighting)
        found.append([weighting.weights_from_gram(gram, None).tolist() for _ in range(3)])
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")  # cvxpy to TorchJD
@pytest.mark.parametrize("options", NAMES, indirect=True)
def test_it_is_what_torchjd_does_with_the_gradients(options):
    name, given = options
    ours = torchjd(name, **given)
    kind = getattr(rules, name)
    theirs = kind(**{k: torch.tensor(v).double() if isinstance(v, list) else v for k, v in given.items()})
    saved, later = None, []
    for step, rows in enumerate(steps(4)):
        if step == 2:
            saved = ours.state_dict()
        weights = ours.weights_from_gram(gram_of(rows), None)
        later += [weights] if step >= 2 else []
        if name not in RANDOM:
            # Solvers stop when they are close enough.
            torch.testing.assert_close(weights @ torch.tensor(rows), theirs(torch.tensor(rows)), rtol=1e-5, atol=1e-6)
    resumed = torchjd(name, **given)
    resumed.load_state_dict(saved)
    torch.rand(3)  # the global random numbers do not matter
    again = [resumed.weights_from_gram(gram_of(rows), None) for rows in steps(4)[2:]]
    assert all(map(torch.equal, again, later))


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_rules_have_their_own_random_numbers(name):
    gram = gram_of(np.random.default_rng(1).normal(size=(6, 4)))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, other = torchjd(name), torchjd(name), torchjd(name, seed=1)
    first, second = one.weights_from_gram(gram, None), one.weights_from_gram(gram, None)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(two.weights_from_gram(gram, None), first)
    assert not torch.equal(first, second) and not torch.equal(other.weights_from_gram(gram, None), first)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e5, 1e15])
@pytest.mark.parametrize(
    "options", ["UPGrad", "DualProj", "CAGrad", "GradVac", "FairGrad", "MGDA", "IMTLG"], indirect=True
)
def test_the_size_of_the_gradients_does_not_matter(options, scale):
    """TorchJD itself takes gradients with a squared norm below 1e-4 for zeros, and returns equal weights or none.

    Its IMTL-G does the same with norms above 1e12.
    """
    name, given = options
    rows = np.array([[1.0, 0, 0], [-3, 1, 0], [0, 0, 1]])
    found = torchjd(name, **given).weights_from_gram(gram_of(scale * rows), None)
    expected = torchjd(name, **given).weights_from_gram(gram_of(rows), None)
    if name == "FairGrad":
        expected = expected / scale  # with its alpha of 1 it solves G w = 1 / w
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_rules_that_depend_on_the_size_of_the_matrix_get_it_as_it_is():
    """Those that a user has written around a rule of TorchJD, and TorchJD's own mean over the steps."""
    pytest.importorskip("quadprog")
    pytest.importorskip("scipy")

    class Shrinking(rules.UPGradWeighting):
        def forward(self, gram, /):
            return super().forward(gram) / gram.trace().sqrt()

    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = rules.UPGradWeighting()

        def forward(self, gram):
            return self.inner(gram) / gram.trace().sqrt()

    gram = 1e4 * gram_of(steps(1)[0])
    for rule in Shrinking(), Around():
        assert torch.equal(cats.weighting.Gramian(rule).weights_from_gram(gram, None), rule(gram))
    mean, ours = (rules.CRMOGMWeighting(rules.FairGradWeighting(alpha=1.0), alpha=0.9) for _ in range(2))
    weighting = cats.weighting.Gramian(ours)
    for size in 1, 16, 256:
        assert torch.equal(weighting.weights_from_gram(size * gram, None), mean(size * gram))


def test_subclasses_of_a_rule_do_not_take_small_gradients_for_zeros():
    pytest.importorskip("quadprog")
    mine = type("Mine", (rules.UPGradWeighting,), {})
    gram = gram_of(np.array([[1.0, 0], [-1, 1]]))
    found = cats.weighting.Gramian(mine()).weights_from_gram(1e-8 * gram, None)
    torch.testing.assert_close(found, cats.weighting.Gramian(mine()).weights_from_gram(gram, None))


def test_fair_grad_with_the_largest_alpha():
    pytest.importorskip("scipy")
    gram = gram_of(np.eye(4)[:3] + 0.1)
    weights, small = (torchjd("FairGrad", alpha=np.inf).weights_from_gram(s * gram, None) for s in (1, 2.0**-30))
    torch.testing.assert_close(small, weights * 2.0**30, rtol=1e-5, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_fair_grad_solves_its_equation_at_any_size(alpha):
    pytest.importorskip("scipy")
    gram = gram_of(1e-4 * steps(1)[0])
    weights = torchjd("FairGrad", alpha=alpha).weights_from_gram(gram, None)
    if alpha == 0:
        assert weights.tolist() == [0.25] * 4  # the mean, as in TorchJD
    else:  # its solver stops when it is close enough
        torch.testing.assert_close(gram @ weights, weights ** (-1 / alpha), rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")
def test_nash_mtl_takes_any_number_of_tasks():
    pytest.importorskip("ecos")
    weighting = torchjd("NashMTL", max_norm=0.0)
    for rows in steps(1)[0], steps(1)[0][:2], steps(1)[0]:
        gram = gram_of(rows)
        weights = weighting.weights_from_gram(gram, None)
        product = weights * (gram @ weights)  # G w = 1 / w, up to a common factor
        torch.testing.assert_close(product / product.mean(), torch.ones_like(product), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("max_norm", "weight"), [(0.0, 1.0), (1.0, 0.5), (3.0, 1.0)])
def test_nash_mtl_of_one_task_and_of_gradients_that_are_0(max_norm, weight):
    pytest.importorskip("ecos")
    weighting = torchjd("NashMTL", max_norm=max_norm)
    assert weighting.weights_from_gram(torch.tensor([[4.0]]).double(), None).tolist() == [weight]
    assert weighting.weights_from_gram(torch.zeros(3, 3).double(), None).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["ConFIG", "GradDrop", "ExcessMTL", "SDMGradWeighting", "MoDoWeighting"])
def test_rules_that_need_the_jacobian_are_refused(name):
    with pytest.raises(TypeError, match=f"{name} of TorchJD needs the Jacobian"):
        torchjd(name)


def test_wrong_names_and_options():
    with pytest.raises(ValueError, match="no 'upgrad': did you mean 'UPGrad'"):
        torchjd("upgrad")
    with pytest.raises(ValueError, match="no 'Weighting'"):
        torchjd("Weighting")
    with pytest.raises(ValueError, match="it has AlignedMTL, "):
        torchjd("quadratic")
    with pytest.raises(TypeError, match="AlignedMTL of TorchJD has no option 'scale'; it has pref_vector, scale_mode"):
        torchjd("AlignedMTL", scale=1)
    with pytest.raises(TypeError, match=r"CAGrad of TorchJD needs c$"):
        torchjd("CAGrad")
    with pytest.raises(ValueError, match="beta"):
        torchjd("GradVac", beta=2.0)
    with pytest.raises(TypeError, match="seed must be an integer"):
        torchjd("Random", seed="x")
    with pytest.raises(TypeError, match="the name of a class of TorchJD is a str, got 3"):
        torchjd(3)


@pytest.mark.parametrize(
    ("name", "option"), [("Constant", "weights"), ("AlignedMTL", "pref_vector"), ("UPGrad", "pref_vector")]
)
def test_weights_and_preferences_of_absent_tasks_are_left_out(name, option):
    if name in SOLVERS:
        pytest.importorskip(SOLVERS[name])
    rows, present, losses = steps(1)[0], [0, 2, 3], torch.ones(3).double()
    weighting = torchjd(name, **{option: [1.0, 2.0, 3.0, 4.5]})
    weighting.start(4)
    (found,) = weighting.weights_from_grams(gram_of(rows[present])[None], losses, present)
    alone = torchjd(name, **{option: [1.0, 3.0, 4.5]})
    assert torch.equal(found, alone.weights_from_gram(gram_of(rows[present]), losses))
    (found,) = weighting.weights_from_grams(gram_of(rows)[None], torch.ones(4).double(), range(4))  # all are back
    assert torch.equal(found, torchjd(name, **{option: [1.0, 2.0, 3.0, 4.5]}).weights_from_gram(gram_of(rows), None))
    with pytest.raises(ValueError, match="has 4 weights or preferences, but there are 3 tasks"):
        weighting.start(3)


def test_a_rule_that_does_not_take_so_few_tasks_says_so_in_one_line():
    weighting = torchjd("Krum", n_byzantine=1)
    weighting.start(4)
    gram, losses = torch.eye(4).double(), torch.ones(4).double()
    weighting.weights_from_grams(gram[None], losses, range(4))
    said = r"^this step has 2 of the 4 tasks, and the rule does not take so few: .*rows"
    with pytest.raises(ValueError, match=said) as error:
        weighting.weights_from_grams(gram[None, :2, :2], losses[:2], [1, 3])
    assert "\n" not in str(error.value)


def test_numbers_that_are_nan_are_no_lack_of_tasks():
    weighting = torchjd("MGDA")
    weighting.start(3)
    with pytest.raises(ValueError, match="Gramian: the Gram matrix has numbers that are nan"):
        weighting.weights_from_grams(torch.full((1, 2, 2), torch.nan).double(), torch.ones(2).double(), [0, 2])


@pytest.mark.parametrize("options", ["UPGrad", "CAGrad", "PCGrad", "IMTLG", "NashMTL"], indirect=True)
def test_the_default_device_may_be_another_one(options):
    name, given = options
    gram = gram_of(steps(1)[0])
    expected = torchjd(name, **given).weights_from_gram(gram, None)
    with torch.device("meta"):
        assert torch.equal(torchjd(name, **given).weights_from_gram(gram, None), expected)


def test_without_torchjd(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ImportError, match=r"TorchJD is not installed; install with: pip install '\.\[torchjd\]'"):
        torchjd("UPGrad")


def test_without_its_solver(monkeypatch):
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"CAGrad of TorchJD: .*cvxpy.*; install .* pip install '\.\[torchjd\]'"):
        torchjd("CAGrad", c=0.4)
