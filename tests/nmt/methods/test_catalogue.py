"""The table of methods."""

from __future__ import annotations

import pytest

from cats.nmt.config.recipes import RECIPES
from cats.nmt.config.sections.method import METHODS
from cats.nmt.errors import UserError
from cats.nmt.methods import options
from cats.nmt.methods.catalogue import CATALOGUE, FAMILIES, RECIPE, Method, find

# What the methods say that need an option.
NEEDED = {
    "adaptive": "give the validation NLL of a baseline",
    "doremi": "it takes three runs",
    "double-power-law": "it is fitted to a sweep",
}


def test_the_table_has_the_names_of_the_setting():
    assert sorted(method.name for method in CATALOGUE) == sorted(METHODS)
    assert {method.name for method in CATALOGUE if method.family == RECIPE} == set(RECIPES)


@pytest.mark.parametrize("method", CATALOGUE, ids=lambda method: method.name)
def test_every_line_is_complete(method: Method):
    assert method.family in FAMILIES
    assert all(text and text == text.strip() for text in (method.what, method.paper, method.needs, method.cost))
    assert find(method.name.replace("NAME", "UPGrad")) is method
    if method.made_by:
        assert callable(method.maker()) and method.maker().__doc__


@pytest.mark.parametrize("method", [m.name for m in CATALOGUE if m.name != "torchjd:NAME"])
def test_options_are_checked_before_the_tasks_are_known(method: str):
    if method in NEEDED:
        with pytest.raises(UserError, match=rf"method\.name = {method}: {NEEDED[method]}"):
            options.check(method, ())
    else:
        options.check(method, ())


def test_rules_of_torchjd_differ():
    assert find("torchjd:MGDAWeighting").relative is False and find("torchjd:CAGrad").relative is True
    assert find("torchjd:PCGrad").sums is True and find("torchjd:UPGrad").sums is False
