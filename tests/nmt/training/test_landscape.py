"""The loss landscape of a run: what is measured, and that measuring changes nothing of the training."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.errors import UserError
from cats.nmt.model.loss import token_losses
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import landscape
from cats.nmt.training.device import default_device
from cats.nmt.training.landscape import Landscape, LandscapeSettings, analyse, kind_of, read_landscape
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from cats.nmt.training.training_data import load_training_data
from tests.nmt.common import assert_same_runs, settings, write_short_corpus
from tests.nmt.training.common import interrupted


def config(corpus: Path, *more: str) -> Config:
    """8 updates of a tiny model with dropout, with an average of the parameters; all validations are kept."""
    tiny = ["model.d_model=8", "model.ffn=8", "model.dropout=0.3", "train.ema=0.9", "sampling.batch_tokens=60"]
    often = ["train.steps=8", "train.validate_every=4", "train.keep=2", "train.log_every=2"]
    return settings(corpus, *tiny, *often, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus toy, the run `plain`, and `measured`: the same with measurements after every 4th update.

    Tests must not change it.
    """
    folder = tmp_path_factory.mktemp("landscape")
    corpus = write_short_corpus(folder / "toy")
    train(config(corpus), folder / "plain", quiet=True)
    train(config(corpus, "train.analyse_every=4"), folder / "measured", quiet=True)
    return folder


def test_measuring_changes_nothing_of_the_training(runs: Path) -> None:
    for name in ("plain", "measured"):  # the setting itself is in the checkpoints
        shutil.copytree(runs / name, runs / f"{name}-copy")
    plain, measured = runs / "plain-copy", runs / "measured-copy"
    without_setting(measured)
    without_setting(plain)
    assert_same_runs(plain, measured)
    assert [record.step for record in read_landscape(measured / "landscape.jsonl")] == [4, 8]
    assert not (plain / "landscape.jsonl").exists()


def without_setting(run: Path) -> None:
    """Removes train.analyse_every from the checkpoints of a run."""
    from cats.nmt.training import checkpoint

    for path in (run / "checkpoints").iterdir():
        state = checkpoint.load(path)
        state["settings"].pop("train.analyse_every")
        checkpoint.save(path, state)


def test_a_resumed_run_has_the_same_landscape(runs: Path, tmp_path: Path) -> None:
    """It is stopped in the 6th update, and has a line of a later one, as if a later checkpoint had been lost."""
    settings = config(runs / "toy", "train.analyse_every=4")
    with interrupted(6):
        train(settings, tmp_path / "run", quiet=True)
    file = tmp_path / "run" / "landscape.jsonl"
    lost = dataclasses.replace(read_landscape(file)[-1], step=7, model="lost")
    landscape.add_record(RunDirectory(tmp_path / "run"), lost)
    assert [record.step for record in read_landscape(file)] == [4, 7]
    train(settings, tmp_path / "run", resume=True, quiet=True)
    assert file.read_bytes() == (runs / "measured" / "landscape.jsonl").read_bytes()


def test_checkpoints_give_the_numbers_of_the_training(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "measured", tmp_path / "run")
    file = tmp_path / "run" / "landscape.jsonl"
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Landscape, "measure", None)  # it is not needed
        found = analyse(tmp_path / "run")
    assert [record.step for record in found] == [4, 8] and file.read_bytes() == before
    assert "step-4: measured before" in capfd.readouterr().err
    assert [key.key for key in found] == [key.key for key in read_landscape(file)]

    file.unlink()
    again = analyse(tmp_path / "run", ["step-4", "last"], quiet=True)
    assert [record.checkpoint for record in again] == ["step-4", "last"] and capfd.readouterr().err == ""
    names = ("step-4", "last")
    expected = [dataclasses.replace(each, checkpoint=name) for each, name in zip(found, names, strict=True)]
    assert [str(record) for record in read_landscape(file)] == [str(record) for record in expected]

    # Other settings give other numbers, and a line of their own. A task has the same batch whatever other tasks are.
    other = analyse(tmp_path / "run", ["last"], split="train", batches=2, batch_tokens=20, tasks=["xb"], quiet=True)
    alone = analyse(tmp_path / "run", ["last"], tasks=["xb"], quiet=True)
    assert len(read_landscape(file)) == 4 and other[0].eigenvalues != alone[0].eigenvalues
    assert 40 <= other[0].tokens["xb"] <= 60 and other[0].tasks == ["xb"]
    assert alone[0].eigenvalues["xb"] == pytest.approx(found[-1].eigenvalues["xb"], rel=1e-6)  # 7 digits in the file


def test_the_numbers_of_a_record(runs: Path) -> None:
    """Compared with the losses of the training, with finite differences, and between kinds of layer."""
    directory = RunDirectory(runs / "plain")
    trained = directory.load_model("last", quiet=True)
    data = load_training_data(trained.config, directory, default_device(), started_with=trained.origin, quiet=True)
    measured = Landscape(data.validation, LandscapeSettings(batches=2, batch_tokens=20, label_smoothing=0.1))
    record = measured.measure(trained.model, 8)

    def loss(task: str) -> torch.Tensor:
        """The mean over the tokens, with the loss of the training, which is differentiated only once."""
        parts = []
        for batch in measured.batches[task]:
            logits = trained.model.logits(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
            parts.append(token_losses(logits, batch.target_out.flatten()[batch.target_cells], 0.1)[0])
        assert len(parts) == 2 and all(abs(len(part) - 20) < 6 for part in parts)
        assert record.tokens[task] == sum(map(len, parts))
        return torch.cat(parts).mean()

    named, start = dict(trained.model.named_parameters()), copy.deepcopy(trained.model.state_dict())
    grads = {task: torch.autograd.grad(loss(task), list(named.values())) for task in record.tasks}
    for kind, similar in record.kinds.items():
        chosen = [i for i, name in enumerate(named) if kind in ("all", kind_of(name))]
        a, b = (torch.cat([grads[task][i].double().flatten() for i in chosen]) for task in ("xa", "xb"))
        assert similar.cosine[0, 1] == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)
        assert similar.magnitude[0, 1] == pytest.approx(
            float(2 / (a.norm() / b.norm() + b.norm() / a.norm())), abs=1e-5
        )
        if kind == "all":
            assert list(record.norms.values()) == pytest.approx([float(a.norm()), float(b.norm())], rel=1e-5)
    assert all(record.smallest[task] < 0 < record.largest[task] == record.eigenvalues[task] for task in record.tasks)
    before = [loss(task).item() for task in record.tasks]
    for j, task in enumerate(record.tasks):
        moved = {name: p - 0.01 * g for (name, p), g in zip(named.items(), grads[task], strict=True)}
        trained.model.load_state_dict(moved, strict=False)
        after = [loss(each).item() for each in record.tasks]
        trained.model.load_state_dict(start)
        # The losses, of about 5, are rounded to 5e-7.
        assert record.interference[:, j] == pytest.approx(np.subtract(after, before), abs=2e-6)
        assert abs(record.interference[:, j]).min() > 1e-3


@pytest.mark.parametrize(
    ("norm", "tags", "more"),
    [
        ("layernorm", (), {"E.LN", "D.LN"}),
        ("scalenorm", (7, 8), {"E.LN", "D.LN", "CLSR"}),
        ("layernorm-plain", (), set()),
    ],
)
def test_kinds_of_layer(norm: str, tags: tuple[int, ...], more: set[str]) -> None:
    model = Transformer(
        9, 4, 2, 4, 2, 1, 0.1, norm=norm, embedding_norm=True, embeddings="separate", language_tags=tags
    )
    kinds = {name: kind_of(name) for name, _ in model.named_parameters()}
    assert set(kinds.values()) == {"E.SA", "E.FC", "D.SA", "D.EA", "D.FC", "Emb"} | more
    assert kinds["encoder.1.attention.key_value.weight"] == "E.SA" and kinds["decoder.0.cross.out.weight"] == "D.EA"
    assert kinds["output.weight"] == "Emb"


def test_what_is_not_defined_is_nan(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "measured", tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    record = read_landscape(directory.landscape_file)[0]
    undefined = np.full((2, 2), math.nan)
    kinds = dict.fromkeys(("all", "D.LN"), landscape.KindSimilarity(undefined, undefined))
    landscape.add_record(directory, dataclasses.replace(record, kinds=kinds))  # in place of the one before
    found = read_landscape(directory.landscape_file)
    assert "NaN" not in directory.landscape_file.read_text() and len(found) == 2
    assert np.isnan(found[0].kinds["D.LN"].cosine).all()

    line = json.loads(directory.landscape_file.read_text().splitlines()[0])
    huge = 10**400  # more than a float can be
    changes = ({"kinds": {}}, {"step": math.inf}, {"norms": {"xa": huge, "xb": 1}}, {"settings": {"split": []}})
    damaged = [json.dumps({**line, **change}) for change in changes]
    for damage in ('{"step": 1}', "[]", '{"step": 4, "tasks": ["xa"]}', *damaged):
        directory.landscape_file.write_text(f"{damage}\n")
        with pytest.raises(UserError, match=r"landscape.jsonl, line 1: damaged; remove the line$"):
            read_landscape(directory.landscape_file)


def test_a_model_that_is_not_finite(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The training goes on; a checkpoint is refused."""
    shutil.copytree(runs / "measured", tmp_path / "run")
    trainer = Trainer(
        replace_settings(config(runs / "toy"), {"train.analyse_every": 4}), tmp_path / "run", resume=True, quiet=True
    )
    with torch.no_grad():
        for average in trainer.average.average.values():
            average.fill_(math.nan)
    assert trainer.landscape is not None
    assert trainer.analyse(trainer.landscape) == "landscape not measured (xa: the loss is nan)"
    trainer.save_model(better=True)
    with pytest.raises(UserError, match=r"best.pt: xa: the loss is nan; choose another checkpoint$"):
        analyse(tmp_path / "run", ["best"], quiet=True)


def test_refused_settings(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"distributed = fsdp needs train.analyse_every = 0"):
        config(runs / "toy", "train.analyse_every=4", "train.distributed=fsdp")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("train.en-xa.en", "train.en-xa.xa", "train.en-xb.en", "train.en-xb.xb"):
        shutil.copy(runs / "toy" / name, bare / name)
    with pytest.raises(UserError, match=r"train.analyse_every needs validation pairs"):
        train(config(bare, "train.analyse_every=4"), tmp_path / "run", quiet=True)
    empty = TokenDataset.__new__(TokenDataset)
    empty.shards = {}
    with pytest.raises(UserError, match=r"^the corpus has no valid pairs to measure the landscape on$"):
        Landscape(empty, LandscapeSettings(), ["xa"])  # xa is no unknown task
