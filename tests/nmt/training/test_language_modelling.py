"""Language modelling as tasks of a run, beside translation or alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.cli.main import main
from cats.nmt.config.toml import to_toml
from cats.nmt.errors import UserError
from cats.nmt.scoring.evaluate import evaluate
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.task_gradients import TaskGradients
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same_runs, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted

TASKS = ("data.tasks=en-en,xb,xb-xb", "tokenizer.vocab_size=90", "train.steps=16", "train.validate_every=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("lm") / "toy")


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "run"
    train(short(folder, *TASKS), path, quiet=True)
    return path


def test_an_interrupted_run_is_the_same_bit_for_bit(folder: Path, run: Path, tmp_path: Path) -> None:
    config = short(folder, *TASKS)
    with interrupted(11):
        train(config, tmp_path / "run", quiet=True)
    train(config, tmp_path / "run", resume=True, quiet=True)
    assert_same_runs(run, tmp_path / "run")


def test_every_update_draws_other_spans_and_validation_always_the_same(folder: Path, tmp_path: Path) -> None:
    first, second = (
        Trainer(short(folder, *TASKS, f"train.seed={seed}"), tmp_path / f"{seed}", resume=False, quiet=True)
        for seed in (1, 2)
    )
    indices = {"en-en": np.arange(20)}
    sources = [trainer.training.batch(indices, step).source for trainer, step in ((first, 0), (first, 1), (second, 0))]
    assert all(source.shape == sources[0].shape for source in sources)
    assert not (sources[0] == sources[1]).all() and not (sources[0] == sources[2]).all()
    assert first.validation.rows("en-en") == second.validation.rows("en-en")
    built, later = (first.batches.take(step).parts[0] for step in (0, 1))
    assert built.built is not None and (built.step, later.step) == (0, 1)
    assert (built.built.source == first.training.batch(built.indices, 0).source).all()


def test_samplers_measure_gradients_on_the_spans_of_the_update(folder: Path, tmp_path: Path) -> None:
    run = Trainer(short(folder, *TASKS), tmp_path / "run", resume=False, quiet=True)

    def gradients(step: int) -> list[torch.Tensor]:
        text = [run.training.subset({"en-en": ("en-en", np.array([3]))})] * 2  # one line, so that the same is drawn
        measured = TaskGradients(run.model, *text, smoothing=0.0, tokens=1, seed=1, step=step)
        return [torch.cat([g.flatten() for g in part(0)]) for part in (measured.training, measured.validation)]

    (first, kept), (later, kept_later) = gradients(0), gradients(1)
    assert not torch.equal(first, later) and torch.equal(kept, kept_later)


def test_such_tasks_are_validated_and_not_translated(run: Path) -> None:
    validated = [line["valid"]["nll"] for line in metrics(run) if "valid" in line]
    assert all(set(nll) == {"en-en", "xb", "xb-xb"} for nll in validated)
    assert set(evaluate(run, quiet=True).model.tasks) == {"xb"}
    scored = evaluate(run, split="valid", quiet=True).model.tasks
    best = min(validated, key=lambda nll: sum(nll.values()))
    for name, cell in scored.items():
        assert cell.get("nll") == pytest.approx(best[name], rel=1e-5)  # other batches, so other orders of float32 sums
    assert scored["en-en"].get("bleu") is None
    assert not list((run / "hyp").glob("*en-en*")) and (run / "hyp" / "test.xb.txt").exists()


@pytest.mark.parametrize("text", ["the lines of its pairs", "files"])
def test_a_run_may_have_only_language_modelling(folder: Path, tmp_path: Path, text: str) -> None:
    tasks = "data.tasks=en-en,xb-xb"
    if text == "files":
        pairs, folder, tasks = folder, tmp_path / "text", "data.tasks="
        folder.mkdir()
        for split in ("train", "valid"):
            shutil.copy(pairs / f"{split}.en-xa.en", folder / f"{split}.en-en.en")
    config = short(folder, *TASKS, tasks, "train.steps=2")
    (tmp_path / "lm.toml").write_text(to_toml(config))
    assert main(["train", "--config", str(tmp_path / "lm.toml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert RunDirectory(tmp_path / "run").scores_file("valid").exists()


def test_a_tokenizer_without_sentinels_is_refused(folder: Path, tmp_path: Path) -> None:
    train(short(folder, "train.steps=1"), tmp_path / "old", quiet=True)
    warm = short(folder, "data.tasks=en-en,xb", f"train.init_from={tmp_path / 'old'}", "train.steps=1")
    with pytest.raises(UserError, match="en-en: language modelling needs a tokenizer with sentinels"):
        train(warm, tmp_path / "new", quiet=True)
