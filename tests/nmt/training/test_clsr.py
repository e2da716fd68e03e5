"""A run with language-specific routing: resumed, loaded, scored and exported; what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.errors import UserError
from cats.nmt.scoring.evaluate import evaluate
from cats.nmt.training import export
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import train
from tests.nmt.common import assert_same_runs, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted

SETTINGS = ("model.clsr=0.25", "train.steps=12", "train.validate_every=6", "method.inner_steps=3")


def test_a_run_is_resumed_bit_for_bit_and_its_model_can_be_used(tmp_path: Path) -> None:
    corpus = write_short_corpus(tmp_path / "toy")
    train(short(corpus, *SETTINGS), tmp_path / "whole", quiet=True)
    with interrupted(8):
        train(short(corpus, *SETTINGS), tmp_path / "run", quiet=True)
    train(short(corpus, *SETTINGS), tmp_path / "run", resume=True, quiet=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")
    logged = [line for line in metrics(tmp_path / "run") if "engine" in line]
    assert logged[-1]["engine"] == "per_task"  # the budget joins the tasks of a pass, so outer steps take them apart
    export.write(tmp_path / "exported", RunDirectory(tmp_path / "run").load_model(), ["xa", "xb"])
    scores = evaluate(tmp_path / "run", quiet=True)
    ours, theirs = (RunDirectory(tmp_path / name).load_model() for name in ("run", "exported"))
    assert ours.model.routing is not None and scores.model.tasks.keys() == {"xa", "xb"}
    for (name, value), (other, same) in zip(
        ours.model.state_dict().items(), theirs.model.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(value, same)


@pytest.mark.parametrize(
    "setting",
    ["tokenizer.source_tag=none", "method.engine=one_pass", "train.distributed=fsdp", "train.compile=true"],
)
def test_what_does_not_fit_is_refused_by_name(setting: str) -> None:
    name, value = setting.split("=")
    with pytest.raises(UserError, match=f"model.clsr needs {name} = "):
        replace_settings(Config(), {"model.clsr": 0.3, name: True if value == "true" else value})
