"""Recipes: what they set, and which settings win over them."""

from __future__ import annotations

import pytest

from cats.nmt.config.recipes import RECIPES
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, read_config, to_toml
from cats.nmt.errors import UserError


def test_staged_is_low_then_high_temperature_with_a_restart():
    staged = apply_overrides(Config(), ["method.name=staged", "train.steps=200"])
    sampling, train = staged.sampling, staged.train
    assert (sampling.first_temperature, sampling.temperature) == (1, 3)
    assert (train.restart, train.pretrain_steps, train.restart_parts) == (True, 70, "all")


def test_a_recipe_may_be_an_order_for_a_weighting():
    found = apply_overrides(Config(), ["method.name=staged-cats", "train.steps=200", "sampling.temperature=5"])
    assert (found.method.name, found.method.strength, found.sampling.temperature) == ("cats", 1, 5)
    assert found.train == apply_overrides(Config(), ["method.name=staged", "train.steps=200"]).train


def test_settings_that_are_given_with_the_name_win():
    given = ["train.pretrain_steps=50", "method.name=staged", "sampling.temperature=5"]
    found = apply_overrides(Config(), given)
    assert (found.train.pretrain_steps, found.sampling.temperature, found.sampling.first_temperature) == (50, 5, 1)


def test_a_recipe_replaces_what_was_set_before():
    base = apply_overrides(Config(), ["sampling.unimax_epochs=2", "method.weights=uniform", "method.name=restart"])
    assert base.sampling.unimax_epochs == 2  # given with the name
    found = apply_overrides(base, ["method.name=temperature"])
    assert found == apply_overrides(Config(), ["method.name=temperature"])
    assert found.method.weights == "tokens" and not found.train.restart


def test_a_weighting_keeps_the_order_of_a_recipe():
    staged = apply_overrides(Config(), ["method.name=staged"])
    cats = apply_overrides(staged, ["method.name=cats"])
    assert (cats.sampling, cats.train) == (staged.sampling, staged.train)


@pytest.mark.parametrize("name", RECIPES)
def test_a_written_configuration_repeats_the_run(tmp_path, name):
    given = ["train.steps=200", *(["sampling.ratios=[1,2]"] if name == "ratios" else [])]
    chosen = apply_overrides(Config(), [*given, f"method.name={name}", "train.label_smoothing=0.2"])
    path = tmp_path / "config.toml"
    path.write_text(to_toml(chosen), encoding="utf-8")
    assert read_config(path) == chosen


def test_the_first_phase_follows_the_number_of_updates():
    staged = apply_overrides(Config(), ["method.name=staged"])
    assert apply_overrides(staged, ["train.steps=100"]).train.pretrain_steps == 35
    chosen = apply_overrides(staged, ["train.pretrain_steps=10"])
    assert apply_overrides(chosen, ["train.steps=100"]).train.pretrain_steps == 10


@pytest.mark.parametrize("name", ["staged-cats", "restart", "pretrain-finetune"])
@pytest.mark.parametrize("then", ["method.strength=1", "method.name=rlw"])
def test_the_first_phase_follows_the_number_of_updates_of_any_method(name, then):
    """The method of a run of staged-cats is cats, and another weighting may be trained in the order of a recipe."""
    base = apply_overrides(apply_overrides(Config(), [f"method.name={name}"]), [then])
    for steps, first in (3000, 1050), (400, 140):
        assert apply_overrides(base, [then, f"train.steps={steps}"]).train.pretrain_steps == first
    chosen = apply_overrides(base, ["train.pretrain_steps=10"])
    assert apply_overrides(chosen, ["train.steps=400"]).train.pretrain_steps == 10
    plain = apply_overrides(
        base, ["train.restart=false", "train.pretrain=[]", "train.pretrain_steps=0", "sampling.first_temperature=0"]
    )
    assert apply_overrides(plain, ["train.steps=400"]).train.pretrain_steps == 0


def test_ratios_need_ratios():
    with pytest.raises(UserError, match=r"method\.name = ratios needs sampling\.ratios"):
        apply_overrides(Config(), ["method.name=ratios"])
    known = apply_overrides(Config(), ["sampling.ratios=[1,2]"])
    assert apply_overrides(known, ["method.name=ratios"]).sampling.ratios == (1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("method.name=unimax sampling.ratios=1,2,3", "method.name = unimax draws .* leave out sampling.ratios"),
        ("method.name=unimax sampling.temperature_end=5", "leave out sampling.temperature_end"),
        ("method.name=unimax sampling.unimax_epochs=0", "method.name = unimax needs sampling.unimax_epochs, above 0"),
        ("method.name=ratios sampling.ratios=1,2 sampling.unimax_epochs=3", "leave out sampling.unimax_epochs"),
        ("method.name=temperature sampling.temperature=5 sampling.ratios=1,2,3", "leave out sampling.ratios"),
        ("method.name=temperature sampling.unimax_epochs=3", "leave out sampling.unimax_epochs"),
        ("method.name=temperature-schedule sampling.ratios=1,2,3", "leave out sampling.ratios"),
        ("method.name=temperature-schedule sampling.temperature_end=0", "needs sampling.temperature_end, above 0"),
        ("method.name=staged sampling.ratios=1,2,3", "leave out sampling.ratios"),
        ("sampling.ratios=1,2,3 sampling.unimax_epochs=2 sampling.temperature_end=5", "both say how the tasks are"),
        ("sampling.ratios=1,2,3 sampling.temperature_end=5", "ratios and sampling.temperature_end both say"),
        ("sampling.unimax_epochs=2 sampling.temperature_end=5", "unimax_epochs and sampling.temperature_end both say"),
    ],
)
def test_two_mixtures_are_refused(given, message):
    """One of them would win, and the run may have the name of the other."""
    with pytest.raises(UserError, match=message):
        apply_overrides(Config(), given.split())


@pytest.mark.parametrize("name", ["staged", "staged-cats", "restart", "pretrain-finetune"])
def test_two_phases_need_two_updates(name: str):
    with pytest.raises(UserError, match=r"needs two phases: set train\.steps to at least 2, not 1"):
        apply_overrides(Config(), [f"method.name={name}", "train.steps=1"])
