"""BLEU and chrF of validation lines while training (`train.validate_bleu`), and the best model by them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from sacrebleu.metrics import BLEU, CHRF

from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.corpus import evenly_spread
from cats.nmt.errors import UserError
from cats.nmt.model.decode import LengthLimit, translate
from cats.nmt.training import checkpoint, trainer
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, assert_same_runs, final_state, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted

SHORTER = ["train.steps=24", "train.validate_every=6", "train.log_every=8"]
SCORED = [*SHORTER, "train.validate_bleu=1", "train.best_metric=chrf", "train.validate_lines=6"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("scored") / "toy")


@pytest.fixture(scope="module")
def scored(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("scored") / "run"
    train(short(corpus, *SCORED), run, quiet=True)
    return run


def validations(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if "valid" in line]


def test_evenly_spread() -> None:
    assert evenly_spread("abcdefgh", 3) == ["a", "c", "f"]
    assert evenly_spread("abc", 0) == evenly_spread("abc", 9) == ["a", "b", "c"]


def test_scores_change_nothing_of_the_training(corpus: Path, scored: Path, tmp_path: Path) -> None:
    train(short(corpus, *SHORTER), tmp_path / "run", quiet=True)
    ours, theirs = final_state(scored), final_state(tmp_path / "run")
    for state in (ours, theirs):
        for name in ("settings", "best", "waited"):  # what may differ: what the best model is
            state.pop(name)
    assert_same(ours, theirs)
    for line, other in zip(metrics(scored), metrics(tmp_path / "run"), strict=True):
        if "valid" in line:
            del line["scores"], line["valid"]["bleu"], line["valid"]["chrf"], line["best"], other["best"]
        assert line == other


def test_scores_are_those_of_sacrebleu(corpus: Path, scored: Path) -> None:
    """The scores at the last update, computed again from its checkpoint."""
    line = validations(scored)[-1]
    trained = RunDirectory(scored).load_model("last", quiet=True)
    greedy = apply_overrides(trained.config, ["decode.beam=1"]).decode
    for task in ("xa", "xb"):
        limit = trained.origin.length_limit(task)
        assert limit != LengthLimit()
        rows = [0, 1, 3, 5, 6, 8]  # six of ten lines
        source, target = ((corpus / f"valid.en-{task}.{side}").read_text().splitlines() for side in ("en", task))
        found = translate(trained.model, trained.tokenizer, [source[i] for i in rows], "en", task, greedy, limit=limit)
        references = [[target[i] for i in rows]]
        assert line["scores"]["bleu"][task] == BLEU(force=True).corpus_score(found, references).score
        assert line["scores"]["chrf"][task] == CHRF().corpus_score(found, references).score
    assert line["valid"]["chrf"] == sum(line["scores"]["chrf"].values()) / 2


def test_the_best_model_has_the_highest_score(scored: Path) -> None:
    lines = validations(scored)
    chrf = [line["valid"]["chrf"] for line in lines]
    assert [line["best"] for line in lines] == [
        all(value > other for other in chrf[:i]) for i, value in enumerate(chrf)
    ]
    best = checkpoint.load(scored / "checkpoints" / "best.pt")
    assert best["best"] == max(chrf) and best["step"] == lines[chrf.index(max(chrf))]["step"]


def test_a_resumed_run_continues_exactly(corpus: Path, scored: Path, tmp_path: Path) -> None:
    with interrupted(15):
        train(short(corpus, *SCORED), tmp_path / "run", quiet=True)
    train(short(corpus, *SCORED), tmp_path / "run", resume=True, quiet=True)
    assert_same_runs(scored, tmp_path / "run")


def test_patience_counts_the_validations_that_have_the_metric(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bleu = iter([10.0, 20.0, 20.0, 5.0])
    monkeypatch.setattr(trainer, "validation_scores", lambda *_: {"bleu": {"xa": next(bleu)}, "chrf": {"xa": 1.0}})
    more = ["train.validate_every=2", "train.validate_bleu=2", "train.best_metric=bleu", "train.patience=2"]
    config = short(corpus, *more)
    with interrupted(14):
        train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert "stopped after update 16: no improvement in 2 validations" in capsys.readouterr().err
    lines = validations(tmp_path / "run")
    assert [line["step"] for line in lines if line["best"]] == [4, 8]
    assert [line["step"] for line in lines if "scores" in line] == [4, 8, 12, 16]
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["step"] == 8


def test_another_metric_starts_anew(scored: Path, tmp_path: Path) -> None:
    run = shutil.copytree(scored, tmp_path / "run")
    config = apply_overrides(RunDirectory(run).read_config(), ["train.best_metric=nll", "train.patience=1"])
    RunDirectory(run).write_config(config)
    resumed = Trainer(config, run, resume=True, quiet=True)
    assert resumed.best == math.inf and resumed.bad_validations == 0


def test_trusted_pairs_are_not_translated(corpus: Path, tmp_path: Path) -> None:
    config = short(corpus, "train.validate_bleu=1", "method.name=target-projection", "model.max_length=8")
    run = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    for task, text in run.validation_text.items():
        sources, _ = run.validation.rows(task)
        assert run.tokenizer.encode_source([source for source, _ in text.pairs], "en", task) == sources


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["train.best_metric=bleu"],
            r"^train\.best_metric = bleu needs train\.validate_bleu \(1: at each validation\)$",
        ),
        (["train.validate_bleu=1"], r"^train\.validate_bleu needs validation pairs, and the corpus has none$"),
    ],
)
def test_refused(tmp_path: Path, more: list[str], message: str) -> None:
    folder = write_short_corpus(tmp_path / "toy")
    for path in folder.glob("valid.*"):
        path.unlink()
    with pytest.raises(UserError, match=message):
        train(short(folder, *more), tmp_path / "run", quiet=True)
