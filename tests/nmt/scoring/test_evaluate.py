"""cats.nmt.scoring.evaluate: scores with signatures, likelihoods, strata, groups, and what a run's folder gets."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, to_toml
from cats.nmt.data.batch import collate
from cats.nmt.data.corpus import Corpus, Split, Task, read_corpus, write_corpus
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model.transformer import Transformer
from cats.nmt.scoring import evaluate, nearest_neighbour
from cats.nmt.scoring.evaluate import Output
from cats.nmt.scoring.off_target import identifier
from cats.nmt.training import checkpoint
from cats.nmt.training.run import RunDirectory, TrainedModel
from cats.nmt.training.trainer import train

# ---- scores

HYPOTHESES = ["Monday, 3 hours ago", "in 12 kilometres", "the Czech koruna", "5 min and 20 s, then 1 h"]
REFERENCES = ["Tuesday, 3 hours ago", "in 12 kilometres", "Czech koruna", "5 min and 20 s, then 2 h"]


def test_golden_scores_with_signatures() -> None:
    score = evaluate.score(HYPOTHESES, REFERENCES, "en")
    # Computed by hand from the definitions too.
    assert (round(score.bleu, 2), round(score.chrf, 2)) == (71.79, 87.07)
    version = re.compile(r"version:[\d.]+$")
    assert {metric: version.sub("*", signature) for metric, signature in score.signatures.items()} == {
        "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|*",
        "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|*",
        "chrfpp": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|*",
    }
    assert score.chrfpp == pytest.approx(chrfpp_by_hand(HYPOTHESES, REFERENCES))


def chrfpp_by_hand(hypotheses: list[str], references: list[str]) -> float:
    """From the definition (Popović, 2017): F2 of the mean precision and recall of 6 character and 2 word orders."""

    def units(line: str) -> list[Counter[Any]]:
        characters, words = line.replace(" ", ""), re.findall(r"\w+|[^\w\s]", line)
        text = [(characters, n) for n in range(1, 7)] + [(tuple(words), n) for n in (1, 2)]
        return [Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t, n in text]

    totals = np.zeros((8, 3))
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for row, (a, b) in enumerate(zip(units(hypothesis), units(reference), strict=True)):
            totals[row] += (a.total(), b.total(), (a & b).total())
    precision, recall = (totals[:, 2] / totals[:, 0]).mean(), (totals[:, 2] / totals[:, 1]).mean()
    return float(100 * 5 * precision * recall / (4 * precision + recall))


def test_spbleu_only_where_its_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sacrebleu.tokenizers import tokenizer_spm

    def download(*_arguments: Any) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(tokenizer_spm, "download_file", download)
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    missing = evaluate.score(HYPOTHESES, REFERENCES, "en")
    assert missing.spbleu is None and "spbleu" not in missing.signatures
    evaluate.spbleu_model().parent.mkdir()
    Tokenizer.train(REFERENCES, [], 60).save(evaluate.spbleu_model())
    found = evaluate.score(HYPOTHESES, REFERENCES, "en")
    assert found.spbleu is not None and found.bleu == missing.bleu and 0 < found.spbleu != found.bleu
    assert "tok:flores200" in found.signatures["spbleu"]


def test_equal_text_scores_100_and_unrelated_text_nearly_nothing() -> None:
    score = evaluate.score(REFERENCES, REFERENCES, "en")
    assert math.isclose(score.bleu, 100) and math.isclose(score.chrf, 100)
    # BLEU's exponential smoothing keeps it above zero on four short lines.
    score = evaluate.score(["x"] * 4, REFERENCES, "en")
    assert score.bleu < 1 and score.chrf == 0


def test_chinese_is_segmented() -> None:
    line, other = ["这是一个很好的例子。"], ["这是一个很坏的例子。"]
    zh = evaluate.score(line, other, "zh")
    assert "tok:zh" in zh.signatures["bleu"] and zh.bleu > 30  # 13a sees one or two words a line and finds nothing
    assert evaluate.score(line, other, "en").bleu < zh.bleu
    assert zh.bleu_13a == evaluate.score(line, other, "en").bleu == evaluate.score(line, other, "en").bleu_13a
    assert "tok:13a" in zh.signatures["bleu_13a"] and "bleu_13a" not in evaluate.score(line, other, "en").signatures


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [("az", "13a"), ("zh", "zh"), ("zh_CN", "zh"), ("ZH-Hant", "zh"), ("th", "char"), ("zhx", "13a")]
    + [(code, "zh") for code in ("zho", "cmn", "zho_Hans", "chi", "zh-TW", "yue_Hant")]
    + [(code, "char") for code in ("tha", "mya", "khm", "lao", "th_TH", "my_MM")]
    + [(code, evaluate.bleu_tokenizer("ja")) for code in ("jpn", "ja_XX", "jpn_Jpan")]
    + [(code, evaluate.bleu_tokenizer("ko")) for code in ("kor", "ko_KR", "kor_Hang")],
)
def test_tokenizer_by_language(language: str, tokenizer: str) -> None:
    assert evaluate.bleu_tokenizer(language) == tokenizer


@pytest.mark.parametrize(("language", "best"), [("ja", "ja-mecab"), ("ko", "ko-mecab")])
def test_characters_where_mecab_is_missing(language: str, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sacrebleu.metrics

    evaluate.bleu_tokenizer.cache_clear()
    monkeypatch.setattr(sacrebleu.metrics, "BLEU", lambda tokenize: None)
    assert evaluate.bleu_tokenizer(language) == best

    def absent(tokenize: str) -> None:
        raise RuntimeError("no MeCab")

    evaluate.bleu_tokenizer.cache_clear()
    monkeypatch.setattr(sacrebleu.metrics, "BLEU", absent)
    assert evaluate.bleu_tokenizer(language) == "char"
    evaluate.bleu_tokenizer.cache_clear()


# ---- likelihoods

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
    found = evaluate.line_nll(model, tokenizer, split, "en", "xb", batch_tokens=40)
    assert found.shape == (12, 2) and found.dtype == np.float64
    assert model.training  # dropout off while it measured, and on again afterwards
    model.eval()
    sources, targets = tokenizer.encode_source(split.source, "en", "xb"), tokenizer.encode_target(split.target, "xb")
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        batch = collate([source], [target], [tokenizer.bos_id])
        logits = model(batch.source, batch.target_in)[0]
        expected = torch.nn.functional.cross_entropy(logits, batch.target_out[0], reduction="sum")
        # float32 sums over at most some 40 tokens, in another order because of the padding
        assert found[i, 0] == pytest.approx(expected.item(), rel=1e-5)
        assert found[i, 1] == len(target)
    assert evaluate.line_nll(model, tokenizer, Split([], []), "en", "xb", batch_tokens=40).shape == (0, 2)


def test_a_line_longer_than_the_batch_goes_alone(tokenizer: Tokenizer) -> None:
    model = Transformer(tokenizer.vocab_size, 16, 2, 32, 1, 1, 0.0)
    split = Split(lines(5, 3), lines(5, 4))
    one = evaluate.line_nll(model, tokenizer, split, "en", "xa", batch_tokens=1)
    np.testing.assert_allclose(
        one, evaluate.line_nll(model, tokenizer, split, "en", "xa", batch_tokens=10**6), rtol=1e-5
    )


# ---- strata and groups


def corpus_of(sizes: dict[str, int], tests: dict[str, Split]) -> Corpus:
    tasks = [
        Task(name, "en", name, Split(["a"] * size, ["a"] * size), Split([], []), tests[name])
        for name, size in sizes.items()
    ]
    return Corpus("toy", tasks)


def test_headline_scores_are_of_the_headline_stratum_and_nll_of_all_lines() -> None:
    meta = [("new-pair", "1"), ("seen-skeleton", "2"), ("seen-skeleton", "2")]
    test = Split(["s"] * 3, ["one two three four", "five six seven eight", "nine ten eleven twelve"], meta)
    none = Split([], [], [])
    corpus = corpus_of({"xa": 10, "xb": 100, "xc": 10}, {"xa": test, "xb": test, "xc": none})
    right, wrong = test.target, ["zzz"] * 3
    nll = np.array([[2.0, 4.0], [9.0, 3.0], [1.0, 1.0]])
    ours = {
        "xa": Output("xa", test, [right[0], wrong[1], right[2]], nll),
        "xb": Output("xb", test, right, nll * [2, 1]),
        "xc": Output("xc", none, [], np.zeros((0, 2))),
    }
    theirs = {
        "xa": Output("xa", test, wrong),
        "xb": Output("xb", test, right),
        "xc": Output("xc", none, []),
    }
    table = evaluate.tabulate(ours, theirs, corpus)
    assert table["headline"] == "new-pair" and sorted(table["strata"]) == ["new-pair", "seen-skeleton"]
    xa = table["languages"]["xa"]
    assert (round(xa["bleu"]), round(xa["chrf"]), xa["lines"], xa["pairs"]) == (100, 100, 1, 10)
    assert xa["nll"] == 12 / 8
    assert table["strata"]["new-pair"]["languages"]["xa"]["nll"] == 2 / 4
    assert table["strata"]["seen-skeleton"]["languages"]["xa"]["nll"] == 10 / 4
    assert table["strata"]["seen-skeleton"]["languages"]["xa"]["lines"] == 2
    assert 30 < table["strata"]["seen-skeleton"]["languages"]["xa"]["chrf"] < 80
    none_of_it = dict.fromkeys((*evaluate.SCORES, "nll", "perplexity"))
    assert table["languages"]["xc"] == {**none_of_it, "lines": 0, "pairs": 10}
    assert xa["perplexity"] == pytest.approx(math.exp(1.5))
    only = evaluate.tabulate(ours, {"xb": theirs["xb"], "xc": theirs["xc"]}, corpus)
    assert only["lookup"]["languages"]["xa"]["chrf"] is None and only["lookup"]["languages"]["xa"]["lines"] == 1
    assert only["beats_lookup"] == {"all": None, "lores": None, "hires": False}
    # xc has no test lines and so no part in the averages
    assert table["groups"]["all"]["nll"] == pytest.approx((12 / 8 + 24 / 8) / 2)
    assert table["groups"]["lores"]["languages"] == ["xa", "xc"] and table["groups"]["lores"]["nll"] == 12 / 8
    assert table["lookup"]["groups"]["lores"]["chrf"] < 1 and "nll" not in table["lookup"]["groups"]["lores"]
    assert table["beats_lookup"] == {"all": True, "lores": True, "hires": False}  # as good is not better


def test_without_strata_all_lines_count() -> None:
    test = Split(["s", "s"], ["one two three four", "five six seven eight"], [("m", "1"), ("m", "2")])
    corpus = corpus_of({"xa": 10}, {"xa": test})
    ours = {"xa": Output("xa", test, ["one two three four", "zzz"], np.array([[1.0, 1.0], [math.inf, 1.0]]))}
    table = evaluate.tabulate(ours, {"xa": Output("xa", test, ["zzz", "zzz"])}, corpus)
    assert table["headline"] is None and table["strata"] == {}
    assert table["languages"]["xa"]["lines"] == 2 and table["languages"]["xa"]["chrf"] < 80
    assert table["languages"]["xa"]["nll"] is None  # not finite, and JSON has no infinity
    assert table["groups"]["all"]["nll"] is None
    assert (
        table["groups"]["lores"]["chrf"] is None and table["beats_lookup"]["lores"] is None
    )  # nobody is below the mean


def test_the_perplexity_of_a_group_is_that_of_its_mean_loss() -> None:
    cells = {n: {"nll": v, "perplexity": math.exp(v), "lines": 1} for n, v in (("az", 1.0), ("ru", 3.0))}
    assert evaluate.averages(cells, {"all": ["az", "ru"]})["all"] == {"nll": 2.0, "perplexity": math.exp(2.0)}


def test_an_average_does_not_hide_a_language_that_diverged() -> None:
    cells = {
        "a": {"bleu": 1.0, "chrf": 2.0, "nll": None, "lines": 1},
        "b": {"bleu": 3.0, "chrf": 4.0, "nll": 5.0, "lines": 1},
    }
    assert evaluate.averages(cells, {"all": ["a", "b"]}) == {"all": {"bleu": 2.0, "chrf": 3.0, "nll": None}}


# ---- a run


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
    settings = [
        f"data.path={folder / 'toy'}",
        "tokenizer.vocab_size=70",
        "model.d_model=16",
        "model.heads=2",
        "model.ffn=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "train.steps=20",
        "train.warmup=5",
        "train.lr=0.01",
        "train.validate_every=10",
        "train.threads=1",
        "sampling.batch_tokens=100",
        "decode.beam=2",
    ]
    train(apply_overrides(Config(), settings), folder / "run", quiet=True)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run and its corpus, to change and to break."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "toy", tmp_path / "toy")
    config = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    (tmp_path / "run" / "config.toml").write_text(config.replace(str(trained), str(tmp_path)), encoding="utf-8")
    return tmp_path


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_evaluate(folder: Path) -> None:
    run = folder / "run"
    scores = evaluate.evaluate(run)
    assert scores == json.loads((run / "scores.json").read_text(encoding="utf-8"))
    wanted = {"languages", "groups", "lookup", "method", "seed", "seconds", "tokens_per_second", "strata", "signatures"}
    assert wanted <= scores.keys()
    assert (scores["method"], scores["seed"], scores["corpus"], scores["split"]) == ("cats", 1, "toy", "test")
    assert scores["seconds"] > 0 and scores["tokens_per_second"] > 0
    corpus = read_corpus(folder / "toy")
    for task in corpus.tasks:
        cell = scores["languages"][task.name]
        assert cell["pairs"] == len(task.train.source) and cell["lines"] == 10
        hypotheses = read_lines(run / "hyp" / f"test.{task.name}.txt")
        expected = evaluate.score(hypotheses, task.test.target, task.name)
        assert (cell["bleu"], cell["chrf"]) == (expected.bleu, expected.chrf)
        nats, tokens = np.array(
            [list(map(float, line.split("\t"))) for line in read_lines(run / "hyp" / f"test.{task.name}.nll")]
        ).T
        assert len(nats) == 10 and cell["nll"] == pytest.approx(nats.sum() / tokens.sum(), abs=1e-4)  # four decimals
        assert 0.5 < cell["nll"] < math.log(70)  # better than a uniform guess, and not perfect after 20 updates
        baseline = evaluate.score(
            nearest_neighbour.translate(task.train, task.test.source), task.test.target, task.name
        )
        assert scores["lookup"]["languages"][task.name]["chrf"] == baseline.chrf
        assert read_lines(run / "hyp" / f"test.{task.name}.src") == task.test.source
        assert read_lines(run / "hyp" / f"test.{task.name}.ref") == task.test.target
        assert cell["perplexity"] == pytest.approx(math.exp(cell["nll"]))
        assert (cell["spbleu"] is not None) == evaluate.spbleu_model().is_file()
        known, expected = identifier(corpus), task.test.target
        assert cell["off_target"] == known.off_target(hypotheses, task.name, expected)
        assert cell["off_target_references"] == known.off_target(expected, task.name, expected)
    means = {m: sum(scores["languages"][t][m] for t in ("xa", "xb")) / 2 for m in ("bleu", "chrf", "nll")}
    for metric, mean in means.items():
        assert scores["groups"]["all"][metric] == pytest.approx(mean)
    assert scores["groups"]["lores"]["languages"] == ["xb"] and scores["groups"]["hires"]["languages"] == ["xa"]


def test_validation_nll_is_that_of_training(folder: Path) -> None:
    run = folder / "run"
    scores = evaluate.evaluate(run, split="valid", checkpoint="last")
    assert (run / "scores.valid.last.json").exists() and (run / "hyp-last" / "valid.xa.txt").exists()
    assert not (run / "scores.json").exists() and not (run / "hyp").exists()
    records = [json.loads(line) for line in read_lines(run / "metrics.jsonl")]
    logged = next(record["valid"]["nll"] for record in reversed(records) if "valid" in record)
    for name, nll in logged.items():
        assert scores["languages"][name]["nll"] == pytest.approx(nll, rel=1e-5)  # float32 sums in another order


def test_zero_shot_directions_and_long_training_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run"
    before = evaluate.evaluate(run)
    load = RunDirectory.load_corpus

    def with_more(run: RunDirectory, trained: TrainedModel) -> Any:
        tests = [Task(f"xa-{t}", "xa", t, Split([], []), Split([], []), split(4, 9)) for t in ("xb", "xz")]
        return dataclasses.replace(load(run, trained), zero_shot=tests)

    monkeypatch.setattr(RunDirectory, "load_corpus", with_more)
    monkeypatch.setattr(evaluate, "LOOKUP_PAIRS", 30)
    monkeypatch.setitem(evaluate.TOKENIZERS, "xa", ("ja-mecab", "13a"))
    monkeypatch.setattr(evaluate, "bleu_tokenizer", lambda language: "13a")
    capsys.readouterr()
    scores = evaluate.evaluate(run)
    assert capsys.readouterr().err.splitlines() == [
        "xa-xz: not scored, the model has no tag or pieces for them",
        "xa: BLEU counts characters as words, for want of ja-mecab; install it with: pip install 'sacrebleu[ja]'",
    ]
    assert list(scores["zero_shot"]) == ["xa-xb"]  # nothing was trained to translate into xz
    cell = scores["zero_shot"]["xa-xb"]
    hypotheses = read_lines(run / "hyp" / "test.xa-xb.txt")
    assert cell["lines"] == 4 and cell["chrf"] == evaluate.score(hypotheses, split(4, 9).target, "xb").chrf
    assert (scores["languages"], scores["groups"]) == (before["languages"], before["groups"])
    # xa has 60 training pairs: no lookup for it, nor for a group that it is in.
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
    refused(folder / "toy", "toy is no run directory: it holds no config.toml")
    refused(run, r"unknown split 'tset' \(did you mean test\?\)", split="tset")
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(config.replace("d_model = 16", "d_model = 32"), encoding="utf-8")
    refused(run, r"best\.pt does not fit .*config\.toml")
    (run / "config.toml").write_text(config, encoding="utf-8")

    with (
        (folder / "toy" / "train.en-xa.en").open("a") as source,
        (folder / "toy" / "train.en-xa.xa").open("a") as target,
    ):
        source.write("alpha\n"), target.write("ALPHA\n")
    refused(run, r"toy is not what .*run was trained on")

    path = run / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    checkpoint.save(path, {"model": state["model"]})
    refused(run, r"toy is not what .*run was trained on")
    checkpoint.save(path, {"model": "weights"})
    refused(run, r"best\.pt does not fit .*config\.toml")
    checkpoint.save(path, state)

    whole = (run / "checkpoints" / "best.pt").read_bytes()
    (run / "checkpoints" / "best.pt").write_bytes(whole[:1000])
    refused(run, r"best\.pt is damaged")
    (run / "checkpoints" / "best.pt").unlink()
    refused(run, r"holds no trained model yet \(best\.pt\); go on with: cats train --resume")


def test_a_corpus_without_test_lines(folder: Path) -> None:
    for path in (folder / "toy").glob("test.*"):
        path.unlink()
    run = folder / "run"
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    checkpoint.save(run / "checkpoints" / "best.pt", {**state, "digest": read_corpus(folder / "toy").digest()})
    refused(run, "the corpus toy has no test lines to evaluate on")


def test_infinite_temperature_is_json(folder: Path) -> None:
    run = folder / "run"
    config = apply_overrides(RunDirectory(run).read_config(), ["sampling.temperature=inf"])
    (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert evaluate.evaluate(run)["temperature"] == "inf"
