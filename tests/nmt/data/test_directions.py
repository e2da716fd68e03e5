"""Directions: the languages of a task, of a run and of a tokenizer."""

from __future__ import annotations

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.data.directions import direction


def test_languages_of_a_task_with_hyphens() -> None:
    targets = ["az", "zh-cn", "en", "zh-Hans"]
    for task, languages in {
        "az": ("en", "az"),
        "zh-cn": ("en", "zh-cn"),
        "zh-cn-en": ("zh-cn", "en"),
        "pt-br-zh-cn": ("pt-br", "zh-cn"),
        "az-zh-Hans": ("az", "zh-Hans"),
    }.items():
        assert direction(task, targets) == languages
