"""What a run is trained on: pairs that are left out, and a task with a single pair."""

from __future__ import annotations

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.errors import UserError
from cats.nmt.training.trainer import train
from tests.nmt.common import metrics, settings


def test_what_is_left_out_is_said(corpus, tmp_path, capsys):
    with (corpus / "train.en-xa.en").open("a") as source, (corpus / "train.en-xa.xa").open("a") as target:
        source.write("alpha\n" + "alpha bravo " * 40 + "\n"), target.write("\nalpha\n")
    config = settings(corpus, "model.max_length=60", "train.steps=1")
    train(config, tmp_path / "run")
    err = capsys.readouterr().err
    assert "en-xa: 1 train pairs left out, a side is blank\n" in err
    assert "xa: 1 training pairs left out, longer than 60 tokens\n" in err
    train(config, tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""


def test_pairs_that_are_too_long_leave_a_clear_message(corpus, tmp_path):
    with pytest.raises(
        UserError, match=r"xa: every training pair is left out \(longer than 3 tokens\); raise model\.max_length"
    ):
        train(settings(corpus, "model.max_length=3"), tmp_path / "run", quiet=True)


def test_a_language_of_one_sentence(corpus, tmp_path):
    one = Split(["alpha bravo"], ["bravo alpha"])
    tasks = [*read_corpus(corpus).tasks, Task("xc", "en", "xc", one, one, one)]
    write_corpus(Corpus("three", tasks), tmp_path / "three")
    for method in "cats", "static":
        train(settings(tmp_path / "three", f"method.name={method}"), tmp_path / method, quiet=True)
        assert "xc" in metrics(tmp_path / method)[-1]["valid"]["nll"]
