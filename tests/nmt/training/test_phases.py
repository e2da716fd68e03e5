"""Early stopping (train.patience), and the fresh start of the optimizer after pre-training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config.toml import read_config
from cats.nmt.data.sampler import temperature_probabilities
from cats.nmt.errors import UserError
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, assert_same_runs, final_state, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("phases") / "toy")


def test_patience_survives_a_resume(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The learning rate is so high that training soon makes no progress."""
    config = short(corpus, "train.lr=0.2", "train.validate_every=4", "train.patience=3", "train.steps=400")
    train(config, tmp_path / "whole")
    lines = [line for line in metrics(tmp_path / "whole") if "valid" in line]
    assert [line["best"] for line in lines[-3:]] == [False] * 3 and lines[-4]["best"]
    stop = lines[-1]["step"]
    assert stop < 400
    assert f"stopped after update {stop}: no improvement in 3 validations\n" in capsys.readouterr().err

    for kill in (stop - 1, stop - 6):  # between the bad validations
        run = tmp_path / f"parts-{kill}"
        with interrupted(kill):
            train(config, run, quiet=True)
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)
        assert_same_runs(tmp_path / "whole", run)
    train(config, tmp_path / "whole", resume=True, quiet=True)  # a run that stopped early is not continued
    assert final_state(tmp_path / "whole")["step"] == stop


def test_the_last_updates_before_an_early_stop_are_logged(corpus: Path, tmp_path: Path) -> None:
    more = ["train.lr=0.2", "train.validate_every=4", "train.patience=1", "train.log_every=1000"]
    train(short(corpus, *more, "train.steps=400", "train.analyse_every=1000"), tmp_path / "run", quiet=True)
    stop = final_state(tmp_path / "run")["step"]
    assert stop < 400
    (line,) = [line for line in metrics(tmp_path / "run") if "losses" in line]
    assert line["step"] == stop and all(line["tokens"].values()) and all(line["examples"].values())
    landscape = (tmp_path / "run" / "landscape.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(each)["step"] for each in landscape] == [stop]


def test_patience_does_not_count_during_pretraining(corpus: Path, tmp_path: Path) -> None:
    """During pre-training, validations do not count: the mean over all tasks gets worse while some are not trained."""
    more = ["train.lr=0.2", "train.validate_every=4", "train.patience=3", "train.steps=400"]
    train(short(corpus, *more, "train.pretrain=xa", "train.pretrain_steps=200"), tmp_path / "run", quiet=True)
    assert 212 <= final_state(tmp_path / "run")["step"] < 400


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.patience=1", r"train\.patience needs validation pairs"),
        ("evaluate.search=none", r"evaluate\.search = none scores the validation pairs only, and the corpus has none"),
    ],
)
def test_some_settings_need_validation_pairs(corpus: Path, tmp_path: Path, setting: str, message: str) -> None:
    shutil.copytree(corpus, tmp_path / "toy")
    for path in (tmp_path / "toy").glob("valid.*"):
        path.unlink()
    with pytest.raises(UserError, match=message):
        train(short(tmp_path / "toy", setting), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", [["train.pretrain=xa"], ["train.restart=true"]])
def test_a_fresh_start_is_exact_and_forgets_the_optimizer(corpus: Path, tmp_path: Path, way: list[str]) -> None:
    config = short(corpus, "train.pretrain_steps=21", *way)
    train(config, tmp_path / "whole", quiet=True)
    for kill in (21, 22):
        run = tmp_path / f"parts-{kill}"
        with interrupted(kill):
            train(config, run, quiet=True)
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)
        assert_same_runs(tmp_path / "whole", run)
    seen = {line["step"]: set(line["losses"]) for line in metrics(tmp_path / "whole") if "losses" in line}
    alone = {"xa"} if config.train.pretrain else {"xa", "xb"}
    assert seen == {10: alone, 20: alone} | {step: {"xa", "xb"} for step in (30, 40, 50, 60)}
    rates = {line["step"]: line["lr"] for line in metrics(tmp_path / "whole") if "lr" in line}
    assert rates[30] == pytest.approx(config.train.lr * 9 / 10)  # the ninth update of the second warm-up of ten
    state = final_state(tmp_path / "whole")["optimizer"]
    assert {int(moments["step"]) for moments in state["state"].values()} == {60 - 21}
    assert state["multitask"]["counts"]["step"] == 60 - 21


def test_groups_of_tasks_are_trained_alone(corpus: Path, tmp_path: Path) -> None:
    """xa has 60 pairs and is HiRes, xb has 20 and is LoRes."""
    for name, later in (("pretrain-finetune", {"xa", "xb"}), ("lowres-finetune", {"xb"})):
        config = short(corpus, f"method.name={name}", "train.log_every=7")
        assert config.train.pretrain_steps == 21
        train(config, tmp_path / name, quiet=True)
        seen = {line["step"]: set(line["losses"]) for line in metrics(tmp_path / name) if "losses" in line}
        assert seen == {7: {"xa"}, 14: {"xa"}, 21: {"xa"}} | {step: later for step in (28, 35, 42, 49, 56, 60)}
    mixed = short(corpus, "method.name=lowres-finetune", "train.pretrain=xa,lores", "train.finetune=hires")
    mixture = Trainer(mixed, tmp_path / "mixed", resume=False, quiet=True).sampler.mixture
    assert (mixture.pretrain, mixture.finetune) == (("xa", "xb"), ("xa",))
    empty = short(corpus, "method.name=lowres-finetune", "evaluate.lores_below=1")
    with pytest.raises(UserError, match=r"train\.finetune = lores: no task of the corpus is in this group; name tasks"):
        train(empty, tmp_path / "empty", quiet=True)


def test_the_restart_is_pretraining_on_all_tasks(corpus: Path, tmp_path: Path) -> None:
    """train.restart, and train.pretrain with all tasks, give the same run."""
    for name, way in (("all", "train.pretrain=xb,xa"), ("restart", "train.restart=true")):
        train(short(corpus, "train.pretrain_steps=21", way), tmp_path / name, quiet=True)
    one, other = (final_state(tmp_path / name) for name in ("all", "restart"))
    assert metrics(tmp_path / "all") == metrics(tmp_path / "restart")
    assert_same({**one, "settings": None}, {**other, "settings": None})  # only these differ


@pytest.mark.parametrize("parts", ["all", "learning-rate", "optimizer"])
def test_what_the_restart_renews(corpus: Path, tmp_path: Path, parts: str) -> None:
    way = ["train.restart=true", "train.pretrain_steps=21", f"train.restart_parts={parts}"]
    train(short(corpus, *way), tmp_path / "run", quiet=True)
    config = short(corpus, *way).train
    rates = {line["step"]: line["lr"] for line in metrics(tmp_path / "run") if "lr" in line}
    inverse_sqrt = config.lr * (config.warmup / 30) ** 0.5  # of update 30 without a restart
    assert rates[30] == pytest.approx(inverse_sqrt if parts == "optimizer" else config.lr * 9 / 10)
    state = final_state(tmp_path / "run")["optimizer"]["state"]
    assert {int(moments["step"]) for moments in state.values()} == {60 if parts == "learning-rate" else 39}


def test_staged_training_begins_with_another_temperature(corpus: Path, tmp_path: Path) -> None:
    staged = ["train.restart=true", "train.pretrain_steps=21", "sampling.first_temperature=1", "sampling.temperature=3"]
    trainer = Trainer(short(corpus, *staged), tmp_path / "run", resume=False, quiet=True)
    sizes = trainer.sampler.sizes
    for step, temperature in ((0, 1.0), (20, 1.0), (21, 3.0), (59, 3.0)):
        mixture = trainer.sampler.mixture
        found = mixture.probabilities(mixture.phase(step), sizes, dict.fromkeys(sizes, 1.0), 800)
        assert found == list(temperature_probabilities(sizes, temperature).values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["sampling.first_temperature=1"], r"sampling\.first_temperature has no effect without train\.restart"),
        (["train.restart_parts=optimizer"], r"train\.restart_parts has no effect without"),
        (["train.pretrain=xa"], r"train\.pretrain needs train\.pretrain_steps between 1 and 59, not 0"),
        (
            ["train.restart=true", "train.pretrain_steps=60"],
            r"train\.restart needs train\.pretrain_steps between 1 and 59",
        ),
        (["train.pretrain_steps=5"], r"train\.pretrain_steps has no effect without train\.pretrain or train\.restart"),
        (
            ["train.pretrain=xa", "train.restart=true", "train.pretrain_steps=5"],
            r"train\.pretrain, which makes the same reset; leave one out",
        ),
        (
            ["train.pretrain=xz", "train.pretrain_steps=5"],
            r"train\.pretrain: unknown task xz; known: xa, xb, all, lores, hires",
        ),
        (["train.finetune=xa"], r"train\.finetune has no effect without train\.pretrain or train\.restart"),
    ],
)
def test_fresh_starts_that_make_no_sense(corpus: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(short(corpus, *more), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
