"""`cats methods`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cats.nmt.cli.main import main
from cats.nmt.config.sections.method import METHODS


def test_the_table_names_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "} == set(METHODS)
    assert max(map(len, lines)) <= 120


def test_a_recipe_shows_what_it_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "staged"]) == 0
    out = capsys.readouterr().out
    assert "  train.pretrain_steps = 560\n" in out and "  sampling.first_temperature = 1.0\n" in out


def test_where_to_see_what_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "lowres-finetune"]) == 0
    out = capsys.readouterr().out
    assert "best.pt is the best by the mean over all tasks" in out
    assert "cats evaluate RUN --checkpoint last" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 120


def test_a_rule_of_torchjd_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchjd")
    assert main(["methods", "torchjd:CAGrad"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("torchjd:CAGrad: ") and "  c: of CAGrad, needed\n" in out
    assert "  seed: a whole number, train.seed by default\n" in out


def test_unknown_rules_of_torchjd(refused: Callable[..., str]) -> None:
    pytest.importorskip("torchjd")
    assert refused("methods", "torchjd:UPGard") == "torchjd:UPGard: TorchJD has no 'UPGard': did you mean 'UPGrad'?"
    assert refused("methods", "torchjd:").startswith("unknown method torchjd:")


def test_unknown_methods(refused: Callable[..., str]) -> None:
    assert refused("methods", "stagd") == "unknown method stagd (did you mean staged?); to list all: cats methods"
    assert refused("methods", "nosuch") == "unknown method nosuch; to list all: cats methods"
    assert "(did you mean staged?)" in refused("train", "--method", "stagd")
