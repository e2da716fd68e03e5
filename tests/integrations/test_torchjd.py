"""Every class of TorchJD's rules: it works, or it is refused by name. The page about them has the table made here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cats
from tests.conftest import ROOT

rules = pytest.importorskip("torchjd.aggregation")

PAGE = ROOT / "docs/integrations/torchjd.md"
BASES = {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Weighting"}
NAMES = list(dict.fromkeys(name.removesuffix("Weighting") for name in rules.__all__ if name not in BASES))
ARGUMENTS = {
    "CAGrad": lambda: {"c": 0.4},
    "Constant": lambda: {"weights": torch.tensor([1.0, 2.0, 3.0, 4.5]).double()},
    "CRMOGM": lambda: {"weighting": rules.MGDAWeighting()},
    "FairGrad": lambda: {"alpha": 1.0},
    "Krum": lambda: {"n_byzantine": 1},
    "NashMTL": lambda: {"n_tasks": 4},
    "TrimmedMean": lambda: {"trim_number": 1},
}
SOLVERS = {"CAGrad": "cvxpy", "FairGrad": "scipy", "NashMTL": "cvxpy", "UPGrad": "quadprog", "DualProj": "quadprog"}
HEAD = "| Rule | as an Aggregator | as a Weighting |\n| --- | --- | --- |\n"


def outcome(name: str, rule: str) -> str:
    """What cats.MultiTask does with an object of a class: a step, which must be TorchJD's, or an error."""
    kind = getattr(rules, name, None)
    if kind is None:
        return ""
    torch.manual_seed(0)  # random rules draw from the global random numbers, here and there
    rows = torch.tensor(np.random.default_rng(0).normal(size=(4, 9)) + 0.5)
    theta = torch.nn.Parameter(torch.zeros(9).double())
    try:
        optimizer = cats.MultiTask(torch.optim.SGD([theta], lr=1.0), 4, kind(**ARGUMENTS.get(rule, dict)()))
    except TypeError as error:
        assert "\n" not in str(error) and str(error).startswith(f"{name} of TorchJD needs the Jacobian matrix")
        return "refused: needs the Jacobian matrix"
    optimizer.backward(list(rows @ theta))
    optimizer.step()
    torch.manual_seed(0)
    theirs = kind(**ARGUMENTS.get(rule, dict)())
    expected = theirs(rows) if isinstance(theirs, rules.Aggregator) else theirs(rows @ rows.T) @ rows
    # Solvers stop when they are close enough.
    torch.testing.assert_close(-theta.detach(), expected, rtol=1e-5, atol=1e-6)
    return "works"


def row(rule: str) -> str:
    return f"| {rule} | {outcome(rule, rule)} | {outcome(f'{rule}Weighting', rule)} |\n"


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")  # cvxpy to TorchJD
@pytest.mark.parametrize("rule", NAMES)
def test_the_table_says_what_happens(rule):
    if rule in SOLVERS:
        pytest.importorskip(SOLVERS[rule])
    assert row(rule) in PAGE.read_text(encoding="utf-8")


def test_the_table_has_no_other_rules():
    _, _, table = PAGE.read_text(encoding="utf-8").partition(HEAD)
    found = [line.split("|")[1].strip() for line in table.partition("\n\n")[0].splitlines()]
    assert found == NAMES


if __name__ == "__main__":  # the table for the page
    print(HEAD + "".join(map(row, NAMES)))
