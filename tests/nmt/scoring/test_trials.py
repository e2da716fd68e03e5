"""cats.nmt.scoring.grid.trials: the settings to try, and which of them is chosen."""

from __future__ import annotations

import math

import pytest

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.errors import UserError
from cats.nmt.methods import options
from cats.nmt.methods.catalogue import CATALOGUE, Method
from cats.nmt.scoring.grid import trials
from tests.nmt.scoring.samples import cell, content, scores


def test_every_method_has_the_same_number_of_trials() -> None:
    space = {"method.strength": ("0.25", "1"), "method.alpha_lr": ("0.1", "0.3")}
    grid = ["train.lr=0.001", "train.lr=0.003", "train.lr=0.006"]
    for count in (3, 5, 7, 9):
        plain, own = (trials.trial_settings(each, [1e-3, 3e-3, 6e-3], count) for each in ({}, space))
        assert len(plain) == len(own) == len({*plain}) == len({*own}) == count
        assert [each[0] for each in plain[:3]] == [each[0] for each in own[:3]] == grid
        assert all(len(each) == 1 for each in plain)
    assert sum(len(each) == 3 for each in own) == 4  # all combinations; the others are learning rates
    assert {each[0] for each in own if len(each) == 3} == {*grid}  # in turn


def test_more_learning_rates_lie_in_the_widest_gaps() -> None:
    assert trials.learning_rates([1e-3, 3e-3, 6e-3], 5) == [1e-3, 3e-3, 6e-3, 1.73e-3, 4.24e-3]
    assert trials.learning_rates([1e-3], 3) == [1e-3, 2e-3, 1.41e-3]


def test_settings_are_chosen_by_the_mean_over_the_groups() -> None:
    groups = {"all": cell(1.0, 9.0, languages=["az", "be", "ru"]), "lores": cell(1.0, 2.0, languages=["az", "be"])}
    groups["hires"] = cell(1.0, 1.0, languages=["ru"])
    assert trials.validation_nll(scores(groups=groups)) == 1.5
    groups["hires"]["nll"] = None
    assert trials.validation_nll(scores(groups=groups)) == math.inf
    only = {"all": cell(1.0, 3.0, languages=["ru"]), "lores": cell(None, None, languages=[]), "hires": cell(1.0, 3.0)}
    only["hires"]["languages"] = ["ru"]
    assert trials.validation_nll(scores(languages={"ru": content()["languages"]["ru"]}, groups=only)) == 3.0


@pytest.mark.parametrize("method", [method for method in CATALOGUE if method.space], ids=lambda method: method.name)
def test_the_values_of_every_space_are_allowed(method: Method) -> None:
    for settings in trials.trial_settings(method.space, [1e-3], 1 + math.prod(map(len, method.space.values()))):
        config = apply_overrides(Config(), [f"method.name={method.name}", *settings])
        if method.made_by:  # only some of these classes need the argument
            options.build(method.name, config.method.options, trusted={"a": "b"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1e-3, 3e-3], 1, 0, [1]), r"--trials 1 is too few for the 2 learning rates"),
        (([], 0, 0, [1]), r"--trials must be at least 1, not 0"),
        (([1e-3, 1e-3], 2, 0, [1]), r"--lr 0.001 0.001: must be different numbers above 0"),
        (([0.0], 1, 0, [1]), r"above 0"),
        (([1e-3], 2, 1, [1, 2]), r"--tuning-seed 1 is one of --seeds"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        trials.check(*arguments)
