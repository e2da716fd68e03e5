"""What a run is trained on: pairs that are left out, and a task with a single pair."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.errors import UserError
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import train
from cats.nmt.training.training_data import load_training_data
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


def test_the_ratio_of_lengths_leaves_no_validation_pair_out(corpus, tmp_path):
    """Otherwise runs that differ in data.max_ratio would be validated on other lines."""
    with (corpus / "valid.en-xa.en").open("a") as source, (corpus / "valid.en-xa.xa").open("a") as target:
        source.write("alpha\n"), target.write("alpha bravo " * 20 + "\n")
    for ratio in 0, 3:
        config = settings(corpus, f"data.max_ratio={ratio}", "train.validate_bleu=1")
        data = load_training_data(config, RunDirectory(tmp_path), torch.device("cpu"), started_with=None, quiet=True)
        assert len(data.validation.shards["xa"]) == len(data.validation_text["xa"].pairs) == 21


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.patience=1", "train.patience needs validation pairs, and all"),
        ("evaluate.search=none", "evaluate.search = none scores the validation pairs only, and all"),
        ("method.name=lssd", "method.name = lssd needs validation pairs of xa, xb, and all"),
        ("method.name=multidds", "method.name = multidds needs validation pairs of xa, xb, and all"),
        ("method.name=target-projection", "needs at least two validation pairs of each task that are no longer than"),
    ],
)
def test_validation_pairs_that_are_all_too_long_are_said_to_be_left_out(corpus, tmp_path, setting, message):
    for path in corpus.glob("valid.*"):
        path.write_text("alpha bravo " * 60 + "\n" + "bravo alpha " * 60 + "\n")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        train(settings(corpus, "model.max_length=60", setting), tmp_path / "run", quiet=True)
    assert "target-projection" in setting or str(error.value).endswith(
        "all were left out as too long; raise model.max_length"
    )


def test_a_language_of_one_sentence(corpus, tmp_path):
    one = Split(["alpha bravo"], ["bravo alpha"])
    tasks = [*read_corpus(corpus).tasks, Task("xc", "en", "xc", one, one, one)]
    write_corpus(Corpus("three", tasks), tmp_path / "three")
    for method in "cats", "static":
        train(settings(tmp_path / "three", f"method.name={method}"), tmp_path / method, quiet=True)
        assert "xc" in metrics(tmp_path / method)[-1]["valid"]["nll"]
