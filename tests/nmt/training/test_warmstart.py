"""Runs that start from the model of another run, with more languages."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

import torch

from cats.nmt.config.schema import Decode
from cats.nmt.config.toml import read_config
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model import decode
from cats.nmt.training import checkpoint, warmstart
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import final_state, metrics, settings, split

GREEK = ["άλφα", "βήτα", "γάμμα", "δέλτα", "έψιλον", "ζήτα", "ήτα", "θήτα"]


def greek(count: int, seed: int) -> Split:
    part = split(count, seed, False)
    rng = random.Random(seed)
    return Split(part.source, [" ".join(rng.choices(GREEK, k=4)) for _ in part.source])


def task(name: str, make: Any) -> Task:
    return Task(name, "en", name, make(60, 1), make(10, 2), make(10, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old/: a corpus of two languages. new/: one of them and a third one in Greek letters. run/: trained on old/."""
    folder = tmp_path_factory.mktemp("warmstart")
    copy, turn = task("xa", lambda n, s: split(n, s, False)), task("xc", lambda n, s: split(n, s, True))
    write_corpus(Corpus("old", [copy, turn]), folder / "old")
    write_corpus(Corpus("new", [copy, task("xb", greek)]), folder / "new")
    train(settings(folder / "old", "train.steps=250", "train.validate_every=250"), folder / "run", quiet=True)
    return folder


def started(folder: Path, corpus: str, out: Path, *more: str, quiet: bool = True) -> Trainer:
    config = settings(folder / corpus, f"train.init_from={folder / 'run'}", *more)
    return Trainer(config, out, resume=False, quiet=quiet)


@pytest.mark.parametrize("extend", [0, 60])
def test_old_languages_are_translated_as_before(folder: Path, tmp_path: Path, extend: int) -> None:
    trained = RunDirectory(folder / "run").load_model()
    old, before = trained.tokenizer, trained.model
    trainer = started(folder, "new", tmp_path / "run", f"tokenizer.extend={extend}")
    tokenizer = Tokenizer.load(tmp_path / "run" / "tokenizer.model")
    assert tokenizer.languages == ["xa", "xc", "xb"]
    assert (tokenizer.vocab_size > old.vocab_size + 8) == bool(extend)
    trainer.model.eval()
    lines = read_corpus(folder / "old").tasks[0].test.source
    for language in ("xa", "xc"):
        one, other = (
            decode.translate(model, by, lines, "en", language, Decode(beam=1, length_penalty=1.0, batch_tokens=500))
            for model, by in ((before, old), (trainer.model, tokenizer))
        )
        assert one == other and any(one)

    # Each old piece keeps its embedding. Those of new pieces, including the tag, are the mean of the old ones.
    now, then = trainer.model.embedding.weight, before.embedding.weight
    known = {piece: i for i, piece in enumerate(old.pieces())}
    assert len(tokenizer.pieces()) == tokenizer.vocab_size
    for i, piece in enumerate(tokenizer.pieces()):
        assert torch.equal(now[i], then[known[piece]] if piece in known else then[1:].mean(0)), piece

    # The letters of the new language are known if and only if the tokenizer is extended.
    text = read_corpus(folder / "new").tasks[1].train.target
    rows = tokenizer.encode(text, "xa")
    assert all((tokenizer.unk_id in row) == (not extend) for row in rows)
    if extend:
        assert tokenizer.decode(rows) == text
        assert max(map(len, rows)) < max(map(len, text))  # longer pieces than letters


def test_the_same_languages_copy_the_model_but_not_the_optimizer(folder: Path, tmp_path: Path) -> None:
    trainer = started(folder, "old", tmp_path / "run")
    best = checkpoint.load(folder / "run" / "checkpoints" / "best.pt")["model"]
    assert all(torch.equal(tensor, best[name]) for name, tensor in trainer.model.state_dict().items())
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == (folder / "run" / "tokenizer.model").read_bytes()
    assert (trainer.step, trainer.optimizer.state_dict()["state"]) == (0, {})
    trainer.run()
    assert metrics(tmp_path / "run")[0]["lr"] == pytest.approx(trainer.config.train.lr)  # after its own warm-up


def test_a_started_run_is_resumed_without_the_first(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "all")
    started(tmp_path / "all", "new", tmp_path / "run", "tokenizer.extend=60")
    shutil.rmtree(tmp_path / "all" / "run")
    train(read_config(tmp_path / "run" / "config.toml"), tmp_path / "run", resume=True, quiet=True)
    assert final_state(tmp_path / "run")["step"] == 30


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.ffn=32"], r"run has model\.ffn = 64, not 32; set model\.ffn as there, or start from another run"),
        (["model.heads=4", "model.ffn=32"], r"has model\.heads = 2, not 4"),
        (["tokenizer.source_tag=none"], r"has tokenizer\.source_tag = prepend, not none"),
        (
            ["tokenizer.extend=3"],
            r"tokenizer\.extend=3 is too small: the text has 17 characters that the tokenizer of",
        ),
        (["train.init_from=absent"], r"absent: no such folder"),
    ],
)
def test_what_cannot_be_started_from(folder: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        started(folder, "new", tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_dropout_and_length_may_change(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(folder, "new", tmp_path / "run", "model.dropout=0.3", "model.max_length=100", quiet=False)
    assert "characters are unknown to the tokenizer that training starts from (" in capsys.readouterr().err


def test_a_model_of_another_version_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    for change in ("missing", "more", "shape"):
        model = dict(state["model"])
        if change == "missing":
            del model["encoder_norm.weight"]
        elif change == "more":
            model["another.weight"] = torch.ones(1)
        else:
            model["encoder_norm.weight"] = torch.ones(3)
        checkpoint.save(path, {**state, "model": model})
        with pytest.raises(UserError, match=r"best\.pt does not match"):
            train(settings(folder / "old", f"train.init_from={tmp_path / 'run'}"), tmp_path / "new", quiet=True)


def test_extended_twice(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that was extended once can be extended again."""
    first = started(folder, "new", tmp_path / "first", "tokenizer.extend=60")
    first.save_model(better=True)
    corpus = read_corpus(folder / "new")
    more = Task("xd", "en", "xd", *(Split(["alpha"] * 3, ["жар дым"] * 3) for _ in range(3)))
    config = settings(folder / "new", f"train.init_from={tmp_path / 'first'}", "tokenizer.extend=10")
    tokenizer = warmstart.initial_tokenizer(Corpus("more", [*corpus.tasks, more]), config)
    assert tokenizer is not None and tokenizer.languages == ["xa", "xc", "xb", "xd"]
    known = Tokenizer.load(tmp_path / "first" / "tokenizer.model")
    text = [*GREEK, "alpha bravo"]
    assert [[i - 1 for i in row] for row in tokenizer.encode(text, "xa")] == known.encode(text, "xa")
    assert tokenizer.decode(tokenizer.encode(["жар дым"], "xd")) == ["жар дым"]


@pytest.mark.parametrize("method", ["cats", "static"])
def test_a_corpus_of_one_task(folder: Path, tmp_path: Path, method: str) -> None:
    config = settings(folder / "old", "data.tasks=xa", f"method.name={method}")
    train(config, tmp_path / "run", quiet=True)
    last = [line for line in metrics(tmp_path / "run") if "alpha" in line][-1]
    assert last["alpha"] == {"xa": 1.0} and last["skipped"] == 0
