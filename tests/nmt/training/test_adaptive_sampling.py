"""Runs whose sampling probabilities a method changes: what it sees, when a change counts, and exact resuming."""

from __future__ import annotations

import copy
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.config.toml import read_config
from cats.nmt.data.sampler import ChangingMixture
from cats.nmt.errors import UserError
from cats.nmt.training.reference_runs import ReferenceRuns
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import assert_same, assert_same_runs, final_state, metrics, short, write_short_corpus
from tests.nmt.training.common import interrupted

OPTIONS = {
    "adaptive": "baselines=[0.5,2.0]",
    "bandit": "period=4",
    "chi-square-ibr": "period=5,rho=0.5",
    "mirror": "period=3,first=6,rate=1.0",
    "multidds": "period=11",
    "multidds-s": "period=11",
}


def options(name: str, text: str | None = None) -> list[str]:
    return [f"method.name={name}", f"method.options={text or OPTIONS[name]}"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_short_corpus(tmp_path_factory.mktemp("adaptive") / "toy")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_is_the_same(corpus: Path, tmp_path: Path, name: str) -> None:
    """It is stopped between two decisions, and just after one."""
    config = short(corpus, "train.steps=45", "train.ema=0.9", *options(name))
    train(config, tmp_path / "whole", quiet=True)
    run = tmp_path / "parts"
    for stop in (13, 22, 23):
        with interrupted(stop, signal.SIGINT):
            train(read_config(run / "config.toml") if run.exists() else config, run, resume=run.exists(), quiet=True)
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)
    assert_same_runs(tmp_path / "whole", run)
    changes = [line for line in metrics(run) if "probabilities" in line]
    assert len(changes) > 2 and changes[0]["step"] == changes[0]["from_update"] == 1
    assert all(line["from_update"] == line["step"] + 2 for line in changes[1:])
    assert len({tuple(line["probabilities"].values()) for line in changes}) > 2


def test_the_batches_follow_the_changes(corpus: Path, tmp_path: Path) -> None:
    """The same batches as from a sampler that knows all changes from the start, with prefetching or without."""
    trainers = [Trainer(short(corpus, *options("mirror")), tmp_path / name, resume=False, quiet=True) for name in "ab"]
    trainers[1].batches.prefetch = lambda step: None
    seen: list[list[dict[str, list[int]]]] = [[], []]
    for trainer, batches in zip(trainers, seen, strict=True):
        take = trainer.batches.take

        def noting(step: int, take: Any = take, batches: Any = batches) -> Any:
            batch = take(step)
            batches.append({task: rows.tolist() for task, rows in batch.indices.items()})
            return batch

        trainer.batches.take = noting
        for _ in range(40):
            trainer.update()
    assert seen[0] == seen[1]
    sampler = trainers[0].sampler
    again = copy.copy(sampler)
    again.mixture = ChangingMixture(sampler.mixture.before)
    for first, values in zip(sampler.mixture.first, sampler.mixture.values, strict=True):
        again.mixture.change(first, values)
    again.orders, again.phase = {}, float("nan")
    again._restart()
    drawn = [again.batch(step) for step in range(40)]
    assert [{task: rows.tolist() for task, rows in batch.items()} for batch in drawn] == seen[0]
    assert len(sampler.mixture.first) > 8


def test_the_rule_sees_the_losses_of_every_update(corpus: Path, tmp_path: Path) -> None:
    """They are the sums that metrics.jsonl has, also with parts and with lines of metrics in between."""
    config = short(corpus, *options("bandit", "period=20"), "train.accumulate=2", "train.log_every=5", "train.steps=20")
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    windows = []
    decide = trainer.adaptive.rule.decide
    trainer.adaptive.rule.decide = lambda seen: (windows.append(seen.losses), decide(seen))[1]
    trainer.probe_largest_batch()  # its losses do not count
    trainer.run()
    (window,) = windows
    assert window.shape == (20, 2, 2)
    lines = [line for line in metrics(tmp_path / "run") if "losses" in line]
    for i, line in enumerate(lines):
        nats, tokens = window[5 * i : 5 * i + 5].sum(0).T
        assert dict(zip(trainer.tasks, tokens, strict=True)) == line["tokens"]
        for task, nll in zip(trainer.tasks, nats / tokens, strict=True):
            assert line["losses"][task] == pytest.approx(nll, rel=1e-12)


def test_a_loss_that_is_not_finite_counts_as_absent(corpus: Path, tmp_path: Path) -> None:
    trainer = Trainer(short(corpus, *options("mirror")), tmp_path / "run", resume=False, quiet=True)
    adaptive, seen = trainer.adaptive, []
    adaptive.rule.decide = lambda window: seen.append(window.losses.tolist())
    for step, nll in ((1, 6.0), (2, float("nan")), (3, 8.0)):
        adaptive.after_update(
            step, [("xa", torch.tensor(nll), 2), ("xb", torch.tensor(1.0), 1), ("xa", torch.ones(()), 1)]
        )
    assert seen == [[[[7, 3], [1, 1]], [[0, 0], [1, 1]], [[9, 3], [1, 1]]]]


@pytest.mark.parametrize(("name", "kept"), [("bandit", 3), ("multidds-s", 0), ("adaptive", 0)])
def test_losses_are_kept_only_for_rules_that_look_at_them(corpus: Path, tmp_path: Path, name: str, kept: int) -> None:
    trainer = Trainer(short(corpus, *options(name)), tmp_path / "run", resume=False, quiet=True)
    for _ in range(7):
        trainer.update()
    assert len(trainer.adaptive.state_dict()["losses"]) == kept


def test_gradients_disturb_nothing(corpus: Path, tmp_path: Path) -> None:
    """A run with a method that takes gradients, but never changes a probability, is the static run."""
    same = ["sampling.temperature=3", "train.steps=12"]
    train(short(corpus, "method.name=static", *same), tmp_path / "static", quiet=True)
    config = short(corpus, *options("multidds", "period=2"), *same)
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    asked = []
    trainer.adaptive.rule.decide = lambda seen: asked.append(
        type(trainer.adaptive.rule).rewards(trainer.adaptive.rule, seen.gradients, 2)
    )
    trainer.run()
    assert len(asked) == 6 and np.isfinite(asked).all()
    static, other = (final_state(tmp_path / name) for name in ("static", "run"))
    assert_same(static["model"], other["model"])
    assert_same(static["optimizer"], other["optimizer"])
    lines = [[line for line in metrics(tmp_path / name) if "losses" in line] for name in ("static", "run")]
    assert lines[0] == lines[1]


def test_the_gradient_of_a_task(corpus: Path, tmp_path: Path) -> None:
    """It is that of the task's mean loss over the pairs that are drawn, and moving is undone exactly."""
    trainer = Trainer(short(corpus, *options("multidds")), tmp_path / "run", resume=False, quiet=True)
    gradients = trainer.adaptive.gradients(7)
    parameters = list(trainer.model.parameters())
    before = [p.detach().clone() for p in parameters]
    one, two = gradients.training(1), gradients.training(1)
    assert_same(one, two)
    assert_same(gradients.validation_sum(), trainer.adaptive.gradients(7).validation_sum())
    assert any(not torch.equal(a, b) for a, b in zip(one, trainer.adaptive.gradients(8).training(1), strict=True))

    def loss() -> float:
        with torch.no_grad():
            rows = gradients._draw(0, 1, gradients.tokens)
            batch = trainer.training.batch(rows)
            trainer.model.eval()
            logits = trainer.model.logits(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
            targets = batch.target_out.flatten()[batch.target_cells]
            smoothing, size = trainer.config.train.label_smoothing, logits.shape[-1]
            wanted = torch.full_like(logits, smoothing / (size - 1), dtype=torch.float64)
            wanted.scatter_(1, targets[:, None], 1 - smoothing)
            return float(-(wanted * logits.double().log_softmax(-1)).sum(-1).mean())

    norm = sum(float((g.double() ** 2).sum()) for g in one)
    step = 1e-3 / norm**0.5
    with gradients.moved(one, step):
        above = loss()
    with gradients.moved(one, -step):
        below = loss()
    assert (above - below) / (2 * step) == pytest.approx(norm, rel=1e-2)  # a difference quotient in float32
    assert_same(before, [p.detach() for p in parameters])
    assert all(p.grad is None for p in parameters)


def test_the_first_phase_keeps_its_probabilities(corpus: Path, tmp_path: Path) -> None:
    """The rule begins after the first phase; a restart without a phase of its own changes nothing."""
    restart = ["train.restart=true", "train.pretrain_steps=21", "sampling.temperature=2"]
    for name, more, begin in (("phase", ["sampling.first_temperature=1"], 21), ("restart", [], 0)):
        run = tmp_path / name
        train(short(corpus, *options("bandit", "period=6"), *restart, *more), run, quiet=True)
        changes = [line for line in metrics(run) if "probabilities" in line]
        assert changes[0]["from_update"] == begin + 1
        assert [line["from_update"] for line in changes[1:]] == list(range(begin + 14, 63, 6))
        configured = np.sqrt([60, 20]) / np.sqrt([60, 20]).sum()
        np.testing.assert_allclose(list(changes[0]["probabilities"].values()), configured)


def test_doremi_in_three_runs(corpus: Path, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("reference", "proxy", "final")}
    train(short(corpus, "method.name=static"), paths["reference"], quiet=True)
    train(short(corpus, *options("doremi", f"reference={paths['reference']}")), paths["proxy"], quiet=True)
    train(
        short(corpus, *options("doremi", f"ratios_from={paths['proxy']}"), "train.steps=5"), paths["final"], quiet=True
    )
    used = np.zeros((60, 2))
    for line in metrics(paths["proxy"]):
        if "probabilities" in line:
            used[line["from_update"] - 1 :] = list(line["probabilities"].values())
    (final,) = [line for line in metrics(paths["final"]) if "probabilities" in line]
    np.testing.assert_allclose(list(final["probabilities"].values()), used.mean(0))
    assert used[0].tolist() == [0.5, 0.5] and (used[-1] != 0.5).all()
    runs = ReferenceRuns(["xa", "xb"], {})
    last = metrics(paths["reference"])[-2]
    assert last["step"] == 60 and dict(zip("ab", runs.training_nll(str(paths["reference"])), strict=True)) == {
        "a": pytest.approx(last["losses"]["xa"]),
        "b": pytest.approx(last["losses"]["xb"]),
    }
    valid = [
        line["valid"]["nll"] for name in ("reference", "proxy") for line in metrics(paths[name]) if "valid" in line
    ]
    lowest = [min(nll[task] for nll in valid) for task in ("xa", "xb")]
    assert runs.validation_nll([str(paths["reference"]), str(paths["proxy"])]).tolist() == lowest
    with pytest.raises(UserError, match=r"method\.options: .*/reference is not the run of an adaptive method"):
        runs.mean_probabilities(str(paths["reference"]))
    with pytest.raises(UserError, match=r"method\.options: .*/reference has no validation NLL of xc$"):
        ReferenceRuns(["xa", "xc"], {}).validation_nll([str(paths["reference"])])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (options("bandit", "rat=1"), r"method\.options of bandit: unknown option rat \(did you mean rate"),
        (options("bandit", "rate=0"), r"method\.name = bandit: rate must be above 0, not 0"),
        (options("adaptive", "power=2"), r"method\.name = adaptive: give the validation NLL of a baseline"),
        (options("adaptive", "baselines=[1]"), r"baselines has 1 numbers, the corpus 2 tasks \(xa, xb\)"),
        (options("doremi", "rate=1"), r"method\.name = doremi: it takes three runs"),
        (options("doremi", "reference=nowhere"), r"method\.options: nowhere: no such folder"),
        ([*options("mirror"), "sampling.temperature_end=5"], r"mirror changes the probabilities itself; leave out"),
        ([*options("mirror"), "data.tasks=xa"], r"mirror needs at least two tasks"),
        ([*options("adaptive"), "data.valid_pairs=0"], None),
    ],
)
def test_clear_errors(corpus: Path, tmp_path: Path, more: list[str], message: str | None) -> None:
    if message is None:  # without validation files
        shutil.copytree(corpus, tmp_path / "toy")
        for path in (tmp_path / "toy").glob("valid.*"):
            path.unlink()
        corpus, message = tmp_path / "toy", r"method\.name = adaptive needs validation pairs of xa, xb"
    with pytest.raises(UserError, match=message):
        train(short(corpus, *more), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
