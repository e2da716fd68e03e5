"""The run directory: its files, its lock, and what happens to files that do not fit."""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import read_config
from cats.nmt.data.corpus_files import read_corpus
from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint, export
from cats.nmt.training.load_corpus import load_corpus
from cats.nmt.training.origin import Origin
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import train
from tests.nmt.common import metrics, settings, write_toy_corpus


def test_the_run_directory(corpus, tmp_path):
    config = settings(corpus)
    train(config, tmp_path / "run", quiet=True)
    files = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert [file for file in files if not file.startswith("tensorboard/")] == [  # only where TensorBoard is installed
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "config.toml",
        "metrics.jsonl",
        "tokenizer.model",
    ]
    assert read_config(tmp_path / "run" / "config.toml") == config
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "losses" in line] == [10, 20, 30]
    assert [line["step"] for line in lines if "valid" in line] == [10, 20, 30]
    best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")
    validations = [line for line in lines if "valid" in line]
    assert best["best"] == min(line["valid"]["all"] for line in validations)
    first = lines[0]
    assert sum(first["alpha"].values()) == pytest.approx(1.0)
    assert first["tokens"].keys() == {"xa", "xb"}


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_cannot_be_created_leaves_nothing(corpus, tmp_path, monkeypatch, there):
    def full(_path: Path, _state: dict[str, Any]) -> None:
        raise UserError("last.pt: the disk is full")

    if there:
        (tmp_path / "run").mkdir()
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        train(settings(corpus), tmp_path / "run", quiet=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "toy"] == (["run"] if there else [])
    assert not there or list((tmp_path / "run").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="no flock")
def test_two_processes_cannot_train_one_run(corpus, tmp_path):
    train(settings(corpus), tmp_path / "run", quiet=True)
    with (
        RunDirectory(tmp_path / "run").training_lock(),
        pytest.raises(UserError, match="another process is training this run"),
    ):
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)
    train(settings(corpus), tmp_path / "run", resume=True, quiet=True)


@pytest.mark.parametrize("change", ["since_log", "optimizer", "shape", "text"])
def test_a_checkpoint_of_another_version_is_named(corpus, tmp_path, change):
    train(settings(corpus), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    state = checkpoint.load(path)
    if change == "shape":
        state["model"] = {name: tensor[:1] for name, tensor in state["model"].items()}
    elif change == "text":
        state["optimizer"] = "moments"
    else:
        del state[change]
    checkpoint.save(path, state)
    with pytest.raises(UserError, match=r"last\.pt does not match .*config\.toml") as error:
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["{", "7", '{"loss": 1}', '{"step": "x"}'])
def test_damaged_metrics_are_named(corpus, tmp_path, line):
    train(settings(corpus), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "metrics.jsonl"
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    path.write_text(f"{first}\n{line}\n{rest}", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged"):
        train(settings(corpus), tmp_path / "run", resume=True, quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus toy/ and the run run/. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    write_toy_corpus(folder / "toy")
    train(settings(folder / "toy", "train.steps=2", "train.validate_every=1"), folder / "run", quiet=True)
    return folder


def changed_text(corpus: Path) -> None:
    path = corpus / "train.en-xa.xa"
    path.write_text(path.read_text(encoding="utf-8").replace("alpha", "omega"), encoding="utf-8")


def another_language(corpus: Path) -> None:
    for split in ("train", "valid", "test"):
        for side in ("en", "xc"):
            (corpus / f"{split}.en-xc.{side}").write_text("nothing that the tokenizer knows: яюэ\n", encoding="utf-8")


def a_language_less(corpus: Path) -> None:
    for path in corpus.glob("*xb*"):
        path.unlink()


def fewer_pairs(corpus: Path) -> None:
    for side in ("en", "xb"):
        path = corpus / f"train.en-xb.{side}"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:30]))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (changed_text, "its tasks and their sizes are the same, but its text differs"),
        (another_language, "xc is new"),
        (a_language_less, "xb is missing"),
        (fewer_pairs, "xb has 30 train pairs instead of 40"),
    ],
)
def test_a_changed_corpus_is_noticed(trained, tmp_path, change, difference):
    """The difference is named, before the text is encoded. Both --resume and cats evaluate look at it."""
    shutil.copytree(trained / "toy", tmp_path / "toy")
    change(tmp_path / "toy")
    config = replace_settings(read_config(trained / "run" / "config.toml"), {"data.path": str(tmp_path / "toy")})
    expected = (
        f"{trained / 'run'}: the corpus is not the one this run was started on ({tmp_path / 'toy'}: {difference}); "
        "give that one with --data, or start a new run"
    )
    with pytest.raises(UserError) as error:
        train(config, trained / "run", resume=True, quiet=True)
    assert str(error.value) == expected
    model = RunDirectory(trained / "run").load_model()
    with pytest.raises(UserError) as error:
        RunDirectory(trained / "run").load_corpus(config, model.origin)
    assert str(error.value) == expected


def test_a_run_of_an_earlier_version(trained, tmp_path):
    """Its checkpoints hold an older digest of the corpus, and nothing about the other files."""
    shutil.copytree(trained / "run", tmp_path / "run")
    older = read_corpus(trained / "toy").older_digest()
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        state = checkpoint.load(path)
        for name in ("corpus", "tokenizer", "settings", "limits"):
            del state[name]
        checkpoint.save(path, {**state, "digest": older})
    run = RunDirectory(tmp_path / "run")
    model = run.load_model()
    assert model.origin == Origin(older) and run.load_corpus(model.config, model.origin).sizes == {"xa": 200, "xb": 40}
    train(settings(trained / "toy", "train.steps=3"), tmp_path / "run", resume=True, quiet=True)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    origin = Origin.of_state(checkpoint.load(last))
    assert origin.corpus == {"xa": [200, 20, 20], "xb": [40, 20, 20]} and origin.digest == older
    checkpoint.average([tmp_path / "run" / "checkpoints" / "best.pt", last])


def test_a_run_of_an_earlier_version_on_text_in_another_form(trained, tmp_path):
    """What it recorded does not tell whether the text differs."""
    config = replace_settings(Config(), {"data.path": str(trained / "toy")})
    message = (
        r"differs, or only its form: .* recorded raw text and prepared text differently\); give that one with --data"
    )
    with pytest.raises(UserError, match=message):
        RunDirectory(trained / "run").load_corpus(config, Origin("older"))


def edited(run: Path, old: str, new: str) -> None:
    text = (run / "config.toml").read_text(encoding="utf-8")
    assert old in text
    (run / "config.toml").write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "then"),
    [
        ("heads = 2", "heads = 4", "model.heads = 4, but best.pt was trained with 2"),
        (
            'source_tag = "prepend"',
            'source_tag = "none"',
            'tokenizer.source_tag = "none", but best.pt was trained',
        ),
        ("target_tag = false", "target_tag = true", "tokenizer.target_tag = true, but best.pt was trained with false"),
    ],
)
def test_a_setting_that_the_model_depends_on(trained, tmp_path, old, new, then):
    """The parameters have the same shapes, so nothing else would notice it."""
    shutil.copytree(trained / "run", tmp_path / "run")
    edited(tmp_path / "run", old, new)
    with pytest.raises(UserError, match=re.escape(f"config.toml has {then}")):
        RunDirectory(tmp_path / "run").load_model()
    with pytest.raises(UserError, match=re.escape(f"config.toml has {then}".replace("best", "last"))):
        train(read_config(tmp_path / "run" / "config.toml"), tmp_path / "run", resume=True, quiet=True)


def test_other_settings_may_be_changed(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    edited(run.path, "beam = 4", "beam = 5")
    assert run.load_model().config.decode.beam == 5
    assert capsys.readouterr().err == ""
    for quiet in True, False:
        run.check_resumed(run.read_config(), run.newest_checkpoint()[0], quiet=quiet)
    expected = f"cats: {run.config_file} was changed since last.pt was written: decode.beam = 5 (was 4)\n"
    assert capsys.readouterr().err == expected

    edited(run.path, "max_ratio = 0.0", "max_ratio = 2.0")
    for quiet in True, False:
        model = run.load_model(quiet=quiet)
    expected = f"cats: {run.config_file} was changed since best.pt was written: data.max_ratio = 2.0 (was 0.0)\n"
    assert capsys.readouterr().err == expected
    export.write(tmp_path / "model", model, ["xa", "xb"])
    RunDirectory(tmp_path / "model").load_model()
    assert capsys.readouterr().err == ""  # these are the settings that it was exported with


def test_another_tokenizer_is_noticed(trained, tmp_path):
    """Also one with the same number of pieces."""
    shutil.copytree(trained / "run", tmp_path / "run")
    file = tmp_path / "run" / "tokenizer.model"
    file.write_bytes(file.read_bytes().replace(b"\n\x08\n\x01a\x15", b"\n\x08\n\x01q\x15"))
    assert file.read_bytes() != (trained / "run" / "tokenizer.model").read_bytes()
    for use in (RunDirectory(tmp_path / "run").load_model, partial(resumed, tmp_path / "run")):
        with pytest.raises(UserError, match=r"model is not the tokenizer that (best|last)\.pt was trained with"):
            use()


def resumed(run: Path) -> None:
    train(read_config(run / "config.toml"), run, resume=True, quiet=True)


@pytest.mark.parametrize("name", ["config.toml", "tokenizer.model", "checkpoints/best.pt"])
def test_what_is_no_regular_file_is_refused(trained, tmp_path, name):
    """A pipe would be waited for."""
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(UserError, match=r"is not a (regular file|run directory)"):
        RunDirectory(tmp_path / "run").load_model() if "best" in name else resumed(tmp_path / "run")


@pytest.mark.parametrize(("name", "value"), [("step", "x"), ("step", True), ("best", None), ("waited", 1.5)])
def test_a_checkpoint_with_a_wrong_type(trained, tmp_path, name, value):
    shutil.copytree(trained / "run", tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    checkpoint.save(path, {**checkpoint.load(path), name: value})
    with pytest.raises(UserError, match=r"last\.pt does not match"):
        resumed(tmp_path / "run")


def test_only_the_named_tasks_of_the_built_in_corpus_are_trained(corpus, monkeypatch):
    monkeypatch.setattr("cats.nmt.training.load_corpus._built_in_corpus", lambda *_: read_corpus(corpus))

    def sizes(*names: str) -> dict[str, int]:
        return load_corpus(replace_settings(Config(), {"data.tasks": list(names)}).data).sizes

    assert sizes() == {"xa": 200, "xb": 40} and sizes("xb") == {"xb": 40} and list(sizes("xb", "xa")) == ["xa", "xb"]
    with pytest.raises(UserError, match=r"data\.tasks: unknown task xc.*xa"):
        sizes("xa", "xc")
    # Earlier versions ignored the setting: a run of theirs has all tasks.
    config = replace_settings(Config(), {"data.tasks": ["xb"]})
    older = Origin(read_corpus(corpus).digest())
    assert RunDirectory(corpus).load_corpus(config, older).sizes == {"xa": 200, "xb": 40}
    assert RunDirectory(corpus).load_corpus(config, Origin(load_corpus(config.data).digest())).sizes == {"xb": 40}
    with pytest.raises(UserError, match="the corpus is not the one this run was started on"):
        RunDirectory(corpus).load_corpus(config, Origin("another"))
