"""The method lssd: when a task is distilled, from which model, and its loss."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.config.toml import read_config
from cats.nmt.errors import UserError
from cats.nmt.methods.lssd import LSSD
from cats.nmt.training import checkpoint
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, assert_same_runs, final_state, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted

# The learning rate is so high that the validation loss does not always fall.
UNSTEADY = ["method.name=lssd", "train.lr=0.2", "train.validate_every=4", "train.keep=20"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("lssd") / "toy")


@pytest.mark.parametrize(
    ("wait", "taught"),
    [(0, [1, 2, 2, 4, 4, 4]), (1, [None, None, 2, None, 4, 4]), (2, [None, None, None, None, None, 4])],
)
def test_a_task_is_taught_while_its_last_validation_is_not_its_best(wait: int, taught: list[int | None]) -> None:
    rule = LSSD(wait=wait)
    assert rule.teacher("a") is None  # before the first validation
    found = []
    for step, nll in enumerate([3.0, 2.0, 2.5, 1.0, 1.0, 1.5], start=1):
        rule.after_validation(step, {"a": nll})
        found.append(rule.teacher("a"))
    assert found == taught


def test_the_loss_of_a_taught_task(corpus: Path, tmp_path: Path) -> None:
    """It is half the sum of the loss and of `weight` times the cross entropy with the teacher, and so its gradient."""
    config = short(corpus, "method.name=lssd", "model.dropout=0", "method.options=weight=0.3")
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    trainer.validate()  # the model is the teacher of both tasks
    before = copy.deepcopy(trainer.model.state_dict())
    for _ in range(3):
        trainer.update()
    assert trainer.distillation is not None
    trainer.distillation.after_validation(3, {"xa": 99.0, "xb": 0.1}, trainer.model)  # xa got worse, xb did not
    part = trainer.batches.take(3).parts[0]
    part.built = None
    assert [*part.indices] == ["xa", "xb"]
    normalizers = trainer.losses.normalizers(part.indices)

    def loss(mixed: bool) -> torch.Tensor:
        trainer.losses.mixed = trainer.distillation.mixed if mixed else None
        return trainer.losses.joint(part, normalizers, None).losses()

    batch = trainer.training.batch(part.indices)
    arguments = batch.source, batch.target_in, batch.source_cells, batch.target_cells
    of_xa = trainer.training.target_tokens({"xa": part.indices["xa"]})
    now = copy.deepcopy(trainer.model.state_dict())
    trainer.model.load_state_dict(before)
    q = trainer.model.logits(*arguments)[:of_xa].detach().double().softmax(-1)
    trainer.model.load_state_dict(now)
    log_p = trainer.model.logits(*arguments)[:of_xa].double().log_softmax(-1)
    ours, plain = loss(True), loss(False)
    assert torch.equal(ours[of_xa:], plain[of_xa:])
    cross_entropy = -(q * log_p).sum(-1) / normalizers["xa"]
    expected = (plain[:of_xa].double() + 0.3 * cross_entropy) / 2
    torch.testing.assert_close(ours[:of_xa].double(), expected, rtol=1e-5, atol=1e-6)  # float32
    parameters = list(trainer.model.parameters())
    for one, other in zip(
        torch.autograd.grad(ours[:of_xa].sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)  # float32


def test_teachers_are_the_best_models_and_a_resumed_run_is_exact(corpus: Path, tmp_path: Path) -> None:
    train(short(corpus, *UNSTEADY), tmp_path / "whole", quiet=True)
    state = final_state(tmp_path / "whole")["teachers"]
    losses = {line["step"]: line["valid"]["nll"] for line in metrics(tmp_path / "whole") if "valid" in line}
    best = {task: min(losses, key=lambda step: losses[step][task]) for task in ("xa", "xb")}
    assert state["step"] == best and state["parameters"].keys() == set(best.values())
    assert any(state["worse"].values())  # or the next lines would show nothing
    for step, parameters in state["parameters"].items():
        kept = checkpoint.load(tmp_path / "whole" / "checkpoints" / f"step-{step}.pt")["model"]
        assert_same(parameters, {name: kept[name] for name in parameters})
    for kill in (22, 47):
        run = tmp_path / f"parts-{kill}"
        with interrupted(kill):
            train(short(corpus, *UNSTEADY), run, quiet=True)
        train(read_config(run / "config.toml"), run, resume=True, quiet=True)
        assert_same_runs(tmp_path / "whole", run)


def test_with_an_average_the_teacher_is_the_average(corpus: Path, tmp_path: Path) -> None:
    trainer = Trainer(short(corpus, *UNSTEADY, "train.ema=0.9"), tmp_path / "run", resume=False, quiet=True)
    trainer.update()
    trainer.validate()
    assert trainer.distillation is not None
    assert_same(trainer.distillation.parameters[1], trainer.average.average)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["method.options=weight=-1"], "method.name = lssd: weight must be finite and at least 0, not -1"),
        (["data.path=bare"], "method.name = lssd needs validation pairs of xa, xb"),
    ],
)
def test_what_it_cannot_do(corpus: Path, tmp_path: Path, more: list[str], message: str, monkeypatch) -> None:
    (tmp_path / "bare").mkdir()
    for path in corpus.glob("train.*"):
        (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        train(short(corpus, "method.name=lssd", *more), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
