"""The table of methods."""

from __future__ import annotations

import pytest

from cats.nmt.config.recipes import RECIPES
from cats.nmt.config.schema import METHODS
from cats.nmt.methods.catalogue import CATALOGUE, FAMILIES, RECIPE, Method, find


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


def test_rules_of_torchjd_differ():
    assert find("torchjd:MGDAWeighting").relative is False and find("torchjd:CAGrad").relative is True
    assert find("torchjd:PCGrad").sums is True and find("torchjd:UPGrad").sums is False
