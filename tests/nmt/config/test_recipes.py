"""Recipes: what they set, and which settings win over them."""

from __future__ import annotations

import pytest

from cats.nmt.config.recipes import RECIPES
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, read_config, to_toml
from cats.nmt.errors import UserError

GIVEN = ["sampling.ratios=[1,2]", "train.steps=200"]


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
    base = apply_overrides(Config(), ["sampling.unimax_epochs=2", "method.weights=uniform", "method.name=staged"])
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
    chosen = apply_overrides(Config(), [*GIVEN, f"method.name={name}", "train.label_smoothing=0.2"])
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


@pytest.mark.parametrize("name", ["staged", "staged-cats", "restart", "pretrain-finetune"])
def test_two_phases_need_two_updates(name: str):
    with pytest.raises(UserError, match=r"needs two phases: set train\.steps to at least 2, not 1"):
        apply_overrides(Config(), [f"method.name={name}", "train.steps=1"])
