"""cats.nmt.scoring.evaluate: likelihoods, and the files that an evaluation leaves in a run directory."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt import quality
from cats.nmt.config.schema import Config, Decode, Evaluate
from cats.nmt.config.toml import apply_overrides, to_toml
from cats.nmt.data.batch import collate
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.files import read_checked_json
from cats.nmt.model import loss
from cats.nmt.model.transformer import Transformer
from cats.nmt.scoring import evaluate, hypotheses, nearest_neighbour
from cats.nmt.scoring.off_target import train_identifier
from cats.nmt.scoring.scores import read_scores, to_json
from cats.nmt.scoring.summarise import Output
from cats.nmt.training import checkpoint
from cats.nmt.training.origin import Origin
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import train
from tests.nmt.cli.common import TINY

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel"]


def lines(count: int, seed: int) -> list[str]:
    random_ = random.Random(seed)
    return [" ".join(random_.choices(WORDS, k=random_.randint(1, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(lines(100, 0), ["xa", "xb"], 60)


def test_line_nll_against_torch_line_by_line(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Transformer(tokenizer.vocab_size, 16, 2, 32, 1, 1, 0.5)
    split = Split(lines(12, 1), lines(12, 2))
    found = evaluate.line_nll(model, tokenizer, split, "en", "xb", Decode(batch_tokens=40))
    assert found.shape == (12, 2) and found.dtype == np.float64
    assert model.training  # dropout is off during the measurement, and on again afterwards
    model.eval()
    sources, targets = tokenizer.encode_source(split.source, "en", "xb"), tokenizer.encode_target(split.target, "xb")
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        batch = collate([source], [target], [tokenizer.bos_id])
        logits = model(batch.source, batch.target_in)[0]
        expected = torch.nn.functional.cross_entropy(logits, batch.target_out[0], reduction="sum")
        # float32 sums over about 40 tokens at most, in another order because of the padding
        assert found[i, 0] == pytest.approx(expected.item(), rel=1e-5)
        assert found[i, 1] == len(target)
    assert evaluate.line_nll(model, tokenizer, Split([], []), "en", "xb", Decode(batch_tokens=40)).shape == (0, 2)


def test_a_line_longer_than_the_batch_is_a_batch_of_its_own(tokenizer: Tokenizer) -> None:
    model = Transformer(tokenizer.vocab_size, 16, 2, 32, 1, 1, 0.0)
    split = Split(lines(5, 3), lines(5, 4))
    one = evaluate.line_nll(model, tokenizer, split, "en", "xa", Decode(batch_tokens=1))
    np.testing.assert_allclose(
        one, evaluate.line_nll(model, tokenizer, split, "en", "xa", Decode(batch_tokens=10**6)), rtol=1e-5
    )


def test_a_side_that_is_too_long_is_cut_to_as_many_pieces_as_said(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Transformer(tokenizer.vocab_size, 16, 2, 32, 1, 1, 0.0)
    short, long = "alpha", "alpha bravo carol delta echo"
    pieces = {text: len(tokenizer.encode([text], "xb")[0]) for text in (short, long)}
    most = pieces[short]
    assert pieces[long] > most + 1
    text = Split([short, long, short], [short, short, long])
    found = evaluate.line_nll(model, tokenizer, text, "en", "xb", Decode(max_length=most), "en-xb")
    assert found[:, 1].tolist() == [most + 1] * 3  # the pieces and the end
    said = f"cats: en-xb: 2 of 3 lines are too long: only the first {most} pieces of a side are scored"
    assert capsys.readouterr().err == f"{said} (decode.max_length)\n"
    before, after = tokenizer.frame("en", "xb")
    sources = [[*before, *tokenizer.encode([line], "en")[0][:most], *after] for line in text.source]
    targets = [[*tokenizer.encode([line], "xb")[0][:most], tokenizer.eos_id] for line in text.target]
    start = tokenizer.start("xb")
    np.testing.assert_array_equal(found, loss.line_nll(model, sources, targets, start=start, batch_tokens=4000))
    at_most = Decode(max_length=max(pieces.values()))  # nothing is cut
    np.testing.assert_array_equal(
        evaluate.line_nll(model, tokenizer, text, "en", "xb", at_most),
        evaluate.line_nll(model, tokenizer, text, "en", "xb", Decode()),
    )
    assert capsys.readouterr().err == ""


def split(count: int, seed: int) -> Split:
    source = lines(count, seed)
    return Split(source, [line.upper() for line in source])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    tasks = [
        Task(name, "en", name, split(count, count), split(8, 5), split(10, 6))
        for name, count in (("xa", 60), ("xb", 20))
    ]
    write_corpus(Corpus("toy", tasks), folder / "toy")
    settings = [f"data.path={folder / 'toy'}", *TINY, "train.lr=0.01"]
    train(apply_overrides(Config(), settings), folder / "run", quiet=True)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run and its corpus, which a test may change."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "toy", tmp_path / "toy")
    config = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    (tmp_path / "run" / "config.toml").write_text(config.replace(str(trained), str(tmp_path)), encoding="utf-8")
    return tmp_path


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_evaluate(folder: Path) -> None:
    run = folder / "run"
    evaluated = evaluate.evaluate(run)
    assert evaluated == read_scores(run)
    scores = to_json(evaluated)
    assert scores == read_checked_json(run / "scores.json")
    assert scores["files"].keys() == {path.name for path in (run / "hyp").iterdir()}
    wanted = {"languages", "groups", "lookup", "method", "seed", "seconds", "tokens_per_second", "strata", "signatures"}
    assert wanted <= scores.keys()
    assert (scores["method"], scores["seed"], scores["corpus"], scores["split"]) == ("cats", 1, "toy", "test")
    assert scores["seconds"] > 0 and scores["tokens_per_second"] > 0
    corpus = read_corpus(folder / "toy")
    for task in corpus.tasks:
        cell = scores["languages"][task.name]
        assert cell["pairs"] == len(task.train.source) and cell["lines"] == 10
        hypotheses = read_lines(run / "hyp" / f"test.{task.name}.txt")
        expected = quality.score(hypotheses, task.test.target, task.name)
        assert (cell["bleu"], cell["chrf"]) == (expected.bleu, expected.chrf)
        nats, tokens = np.array(
            [list(map(float, line.split("\t"))) for line in read_lines(run / "hyp" / f"test.{task.name}.nll")]
        ).T
        assert len(nats) == 10 and cell["nll"] == pytest.approx(nats.sum() / tokens.sum(), abs=1e-4)  # four decimals
        assert 0.5 < cell["nll"] < math.log(70)  # better than a uniform guess, and not perfect after 20 updates
        baseline = quality.score(nearest_neighbour.translate(task.train, task.test.source), task.test.target, task.name)
        assert scores["lookup"]["languages"][task.name]["chrf"] == baseline.chrf
        assert read_lines(run / "hyp" / f"test.{task.name}.src") == task.test.source
        assert read_lines(run / "hyp" / f"test.{task.name}.ref") == task.test.target
        assert cell["perplexity"] == pytest.approx(math.exp(cell["nll"]))
        assert (cell["spbleu"] is not None) == quality.spbleu_model().is_file()
        known, expected = train_identifier(corpus), task.test.target
        assert cell["off_target"] == known.off_target(hypotheses, task.name, expected)
        assert cell["off_target_references"] == known.off_target(expected, task.name, expected)
    means = {m: sum(scores["languages"][t][m] for t in ("xa", "xb")) / 2 for m in ("bleu", "chrf", "nll")}
    for metric, mean in means.items():
        assert scores["groups"]["all"][metric] == pytest.approx(mean)
    assert scores["groups"]["lores"]["languages"] == ["xb"] and scores["groups"]["hires"]["languages"] == ["xa"]


def test_validation_nll_is_that_of_training(folder: Path) -> None:
    run = folder / "run"
    scores = to_json(evaluate.evaluate(run, split="valid", checkpoint="last"))
    assert (run / "scores.valid.last.json").exists() and (run / "hyp-last" / "valid.xa.txt").exists()
    assert not (run / "scores.json").exists() and not (run / "hyp").exists()
    records = [json.loads(line) for line in read_lines(run / "metrics.jsonl")]
    logged = next(record["valid"]["nll"] for record in reversed(records) if "valid" in record)
    for name, nll in logged.items():
        assert scores["languages"][name]["nll"] == pytest.approx(nll, rel=1e-5)  # float32 sums in another order


def test_the_first_validation_pairs_are_scored_as_in_training(folder: Path) -> None:
    set_config(folder / "run", "data.valid_pairs=2")
    scores = evaluate.evaluate(folder / "run", split="valid")
    every = read_corpus(folder / "toy")
    for task in every.tasks:
        assert scores.model.tasks[task.name].lines == 2
        assert read_lines(folder / "run" / "hyp" / f"valid.{task.name}.ref") == task.valid.target[:2]
    assert evaluate.evaluate(folder / "run").model.tasks["xa"].lines == 10  # the test lines are not cut


def test_messages_about_long_lines_name_the_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(folder / "run", "decode.max_length=2")
    evaluate.evaluate(folder / "run")
    err = capsys.readouterr().err
    for task in ("xa", "xb"):
        assert f"cats: {task}: line 9 is too long: only the first 2 of" in err
        assert re.search(rf"^cats: {task}: \d+ of 10 lines are too long: only the first 2 pieces of a side", err, re.M)


def set_config(run: Path, *overrides: str) -> None:
    directory = RunDirectory(run)
    directory.write_config(apply_overrides(directory.read_config(), overrides))


def test_some_lines_are_translated_and_all_have_a_likelihood(folder: Path) -> None:
    run = folder / "run"
    whole = evaluate.evaluate(run)
    lines = read_lines(run / "hyp" / "test.xa.txt")
    set_config(run, "evaluate.lines=4", "evaluate.baseline=false")
    part = evaluate.evaluate(run)
    kept = [lines[i] for i in (0, 2, 5, 7)]  # evenly spread over 10
    assert read_lines(run / "hyp" / "test.xa.txt") == kept
    assert {suffix: len(read_lines(run / "hyp" / f"test.xa.{suffix}")) for suffix in ("src", "ref", "nll")} == {
        "src": 4,
        "ref": 4,
        "nll": 4,
    }
    cell, references = part.model.tasks["xa"], read_lines(run / "hyp" / "test.xa.ref")
    assert cell.quality == quality.score(kept, references, "xa") and cell.lines == 4
    assert cell.likelihood == whole.model.tasks["xa"].likelihood
    assert part.nearest_neighbour.tasks["xa"].quality.chrf is None and not part.is_below_baseline


def test_greedy_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beams = []
    translate, origin = evaluate.decode.translate, RunDirectory(folder / "run").load_model(quiet=True).origin

    def spied(model: Any, tokenizer: Any, lines: Any, source: str, target: str, settings: Decode, **more: Any) -> Any:
        beams.append(settings.beam)
        assert more["limit"] == origin.length_limit(target) != evaluate.decode.LengthLimit()
        return translate(model, tokenizer, lines, source, target, settings, **more)

    monkeypatch.setattr(evaluate.decode, "translate", spied)
    evaluate.evaluate(folder / "run")
    set_config(folder / "run", "evaluate.search=greedy")
    evaluate.evaluate(folder / "run")
    assert beams == [2, 2, 1, 1]


def test_without_a_search_there_are_likelihoods_only(folder: Path) -> None:
    run = folder / "run"
    whole = evaluate.evaluate(run, split="valid")
    shutil.rmtree(run / "hyp")
    set_config(run, "evaluate.search=none")
    scores = evaluate.evaluate(run, split="valid")
    assert scores == read_scores(run, "scores.valid.json")
    assert not (run / "hyp").exists() and scores.files == {} and scores.scored_tasks == []
    for group, cell in scores.model.groups.items():
        assert cell.likelihood == whole.model.groups[group].likelihood and cell.likelihood is not None
        assert cell.quality.chrf is None and cell.off_target is None


def test_only_the_headline_stratum_is_translated() -> None:
    meta = [("new-pair" if i % 2 else "seen", "t") for i in range(12)]
    test = Split([str(i) for i in range(12)], [str(i) for i in range(12)], meta)

    def rows(headline: str | None = "new-pair", **settings: Any) -> list[int]:
        return hypotheses.translated_rows(test, headline, Evaluate(**settings))

    assert rows() == rows(None, strata="headline") == list(range(12))
    assert rows(strata="headline") == [1, 3, 5, 7, 9, 11]
    assert rows(strata="headline", lines=3) == [1, 5, 9] and rows(lines=3) == [0, 4, 8]
    assert rows(lines=100) == list(range(12)) and rows(search="none") == []
    # A stratum without translations has a likelihood, too.
    output = Output("xa", test, [str(i) for i in (1, 5, 9)], np.ones((12, 2)), rows=[1, 5, 9])
    assert (output.cell("new-pair").lines, output.cell("seen").lines, output.cell(None).lines) == (3, 0, 3)
    assert output.cell("new-pair").quality.chrf == 100.0 and output.cell("seen").quality.chrf is None
    assert output.cell("seen").likelihood == output.cell(None).likelihood


def test_zero_shot_directions_and_long_training_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run"
    before = to_json(evaluate.evaluate(run))
    load = RunDirectory.load_corpus

    def with_more(run: RunDirectory, config: Config, origin: Origin, *, quiet: bool) -> Any:
        tests = [Task(f"xa-{t}", "xa", t, Split([], []), Split([], []), split(4, 9)) for t in ("xb", "xz")]
        return dataclasses.replace(load(run, config, origin, quiet=quiet), zero_shot=tests)

    monkeypatch.setattr(RunDirectory, "load_corpus", with_more)
    monkeypatch.setattr(evaluate.nearest_neighbour, "MOST_NEIGHBOURS", 30)
    monkeypatch.setitem(quality.TOKENIZERS, "xa", ("ja-mecab", "13a"))
    monkeypatch.setattr(quality, "bleu_tokenizer", lambda language: "13a")
    capsys.readouterr()
    scores = to_json(evaluate.evaluate(run))
    assert capsys.readouterr().err.splitlines() == [
        "xa-xz: not scored, the model has no tag or pieces for them",
        "xa: BLEU counts characters as words because ja-mecab is not installed; "
        "install it with: pip install 'sacrebleu[ja]'",
    ]
    assert list(scores["zero_shot"]) == ["xa-xb"]  # the model was not trained to translate into xz
    cell = scores["zero_shot"]["xa-xb"]
    hypotheses = read_lines(run / "hyp" / "test.xa-xb.txt")
    assert cell["lines"] == 4 and cell["chrf"] == quality.score(hypotheses, split(4, 9).target, "xb").chrf
    assert (scores["languages"], scores["groups"]) == (before["languages"], before["groups"])
    # xa has 60 training pairs, so neither xa nor a group with xa has a baseline.
    assert before["lookup"]["languages"]["xa"]["chrf"] is not None
    assert scores["lookup"]["languages"]["xa"]["chrf"] is None
    assert scores["lookup"]["languages"]["xb"] == before["lookup"]["languages"]["xb"]
    assert scores["beats_lookup"]["all"] is None and scores["beats_lookup"]["lores"] is not None
    rows = list(csv.DictReader(read_lines(run / "scores.csv")))
    assert [row["name"] for row in rows] == ["xb", "xa", "all", "lores", "hires", "xa-xb"]
    assert float(rows[0]["chrf"]) == scores["languages"]["xb"]["chrf"] and rows[1]["lookup_chrf"] == ""


def refused(run: Path, message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as info:
        evaluate.evaluate(run, **options)
    assert "\n" not in str(info.value)


def test_what_cannot_be_evaluated(folder: Path) -> None:
    run = folder / "run"
    refused(folder / "toy", "toy is not a run directory: it has no config.toml")
    refused(run, r"unknown split 'tset' \(did you mean test\?\)", split="tset")
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(config.replace("d_model = 16", "d_model = 32"), encoding="utf-8")
    refused(run, r"config\.toml has model\.d_model = 32, but best\.pt was trained with 16; set it back")
    (run / "config.toml").write_text(config, encoding="utf-8")

    with (
        (folder / "toy" / "train.en-xa.en").open("a") as source,
        (folder / "toy" / "train.en-xa.xa").open("a") as target,
    ):
        source.write("alpha\n"), target.write("ALPHA\n")
    refused(run, r"run: the corpus is not the one this run was started on")

    path = run / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    checkpoint.save(path, {"model": state["model"]})
    refused(run, r"run: the corpus is not the one this run was started on")
    checkpoint.save(path, {"model": "weights"})
    refused(run, r"best\.pt does not match .*config\.toml")
    checkpoint.save(path, state)

    whole = (run / "checkpoints" / "best.pt").read_bytes()
    (run / "checkpoints" / "best.pt").write_bytes(whole[:1000])
    refused(run, r"best\.pt is damaged")
    (run / "checkpoints" / "best.pt").unlink()
    refused(run, r"has no trained model yet \(best\.pt\); resume it with: cats train --resume")


def test_a_corpus_without_test_lines(folder: Path) -> None:
    for path in (folder / "toy").glob("test.*"):
        path.unlink()
    run = folder / "run"
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    checkpoint.save(run / "checkpoints" / "best.pt", {**state, "digest": read_corpus(folder / "toy").digest()})
    refused(run, f"toy has no test lines to evaluate on; .*: cats evaluate {re.escape(str(run))} --split valid")
    assert evaluate.evaluate(run, split="valid").run.split == "valid"


def test_infinite_temperature_is_json(folder: Path) -> None:
    run = folder / "run"
    config = apply_overrides(RunDirectory(run).read_config(), ["sampling.temperature=inf"])
    (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert evaluate.evaluate(run).run.temperature == math.inf
    assert json.loads((run / "scores.json").read_text(encoding="utf-8"))["temperature"] == "inf"


def test_a_run_that_diverged_is_scored_with_a_notice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "diverged": "training diverged at update 15 (why)"}\n')
    evaluate.evaluate(run)
    said = "training diverged at update 15 (why)"
    assert f"cats: {run}: {said}; scored is the model of best.pt\n" in capsys.readouterr().err
    (run / "checkpoints" / "best.pt").unlink()
    refused(run, rf"run: {re.escape(said)}: lower train\.lr and start a new run")
