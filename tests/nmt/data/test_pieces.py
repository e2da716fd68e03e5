"""One sentencepiece model per language, and tags of the source language: from text to translations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentencepiece")

import sentencepiece

from cats.nmt.cli import translate
from cats.nmt.cli.main import main
from cats.nmt.data import pieces
from cats.nmt.data.batch import Batch
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.data.directions import target_languages
from cats.nmt.data.encode import EncodingSettings, LengthFilter, encode_pairs
from cats.nmt.data.prepare import prepare, training_tokens
from cats.nmt.data.prepared import INDEX, read_prepared
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.data.vocabulary import language_text, train_tokenizer
from cats.nmt.errors import UserError
from cats.nmt.files import read_checked_json, write_checked_json
from cats.nmt.scoring.evaluate import evaluate
from cats.nmt.training import warmstart
from cats.nmt.training.load_corpus import load_corpus
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import Trainer, train
from tests.nmt.common import WORDS, settings, split

ENGLISH = ["the cats sat on the mat", "the 12 cats", "cats on mats"] * 3
RUSSIAN = ["кошки сидят на ковре", "12 кошек", "кошки на коврах"] * 3
TURKISH = ["kediler the halıda", "12 kedi <2ru>", "kediler on"] * 3
OWN = ["tokenizer.per_language=true", "tokenizer.vocab_size=40"]


@pytest.fixture(scope="module")
def models() -> dict[str, Tokenizer]:
    texts = {"en": ENGLISH, "ru": RUSSIAN, "tr": TURKISH}
    return {language: Tokenizer.train(text, ["ru", "tr"], 60) for language, text in texts.items()}


@pytest.fixture(scope="module")
def tokenizer(models: dict[str, Tokenizer]) -> Tokenizer:
    return Tokenizer.union(models, ["ru", "tr"])


def names(tokenizer: Tokenizer, rows: list[list[int]]) -> list[list[str]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialized())
    return [[processor.id_to_piece(i) for i in row] for row in rows]


def test_every_language_is_segmented_by_its_own_model(models: dict[str, Tokenizer], tokenizer: Tokenizer) -> None:
    assert tokenizer.languages == ["ru", "tr"] and tokenizer.first_piece == 6
    for language, text in ("en", ENGLISH), ("ru", RUSSIAN), ("tr", TURKISH):
        own = models[language]
        rows = tokenizer.encode(text, language)
        assert names(tokenizer, rows) == names(own, own.encode(text, language))
        assert not any(tokenizer.unk_id in row for row in rows)
        assert tokenizer.decode(rows) == text
    assert names(tokenizer, tokenizer.encode(["кошки"], "en")) == [["▁", "<unk>"]]  # English has no such letters
    with pytest.raises(UserError, match=r"unknown language rus \(did you mean ru\?\); known: en, ru, tr"):
        tokenizer.encode(["а"], "rus")


def test_a_piece_that_languages_share_is_one_id(models: dict[str, Tokenizer], tokenizer: Tokenizer) -> None:
    own = {language: set(names(m, [list(range(m.first_piece, m.vocab_size))])[0]) for language, m in models.items()}
    assert own["en"] & own["tr"] - {"▁"}
    assert tokenizer.vocab_size == tokenizer.first_piece + len(set().union(*own.values()))
    assert tokenizer.encode(["12"], "en") == tokenizer.encode(["12"], "ru")


def test_no_text_becomes_a_tag(models: dict[str, Tokenizer], tokenizer: Tokenizer) -> None:
    for language in "en", "tr":
        (ids,) = tokenizer.encode(["<2ru> <s>"], language)
        assert min(i for i in ids if i != tokenizer.unk_id) >= tokenizer.first_piece
    # A model that is older than a language's tag may have the tag's text as a piece.
    old = Tokenizer.train(["<2tr>"] * 9, [], 60)
    assert ["▁<2tr>"] not in names(old, [[i] for i in range(old.vocab_size)])
    old = Tokenizer(pieces.insert(old.serialized(), old.vocab_size, [], [pieces.piece("<2tr>", 0.0, pieces.NORMAL)]))
    assert old.vocab_size - 1 in old.encode(["a<2tr>"], "en")[0]
    both = Tokenizer.union({**models, "en": old}, ["ru", "tr"])
    (ids,) = both.encode(["a<2tr>"], "en")
    assert both.tag("tr") not in ids


def test_the_file_is_a_sentencepiece_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert processor.get_piece_size() == tokenizer.vocab_size
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert loaded.encode(RUSSIAN, "ru") == tokenizer.encode(RUSSIAN, "ru")
    assert loaded.digest() == tokenizer.digest() and list(loaded.models) == ["en", "ru", "tr"]


def test_a_damaged_model_of_a_language_is_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.serialized()[:-40])
    with pytest.raises(UserError, match=r"tokenizer\.model: not a sentencepiece model"):
        Tokenizer.load(tmp_path / "tokenizer.model")


def test_tags_of_the_source_language(models: dict[str, Tokenizer]) -> None:
    both = Tokenizer.union(models, ["en", "ru"], Tags("prepend", True, "source"))
    (source,) = both.encode_source(["the cats"], "en", "ru")
    assert source[0] == both.tag("en") and both.start("ru") == both.tag("ru")
    assert both.translates("en", "ru") and not both.translates("tr", "ru") and not both.translates("en", "tr")
    tags = Tags("replace-eos", True, "source")
    (source,) = Tokenizer.union(models, ["en", "ru"], tags).encode_source(["the cats"], "en", "ru")
    assert source[-1] == both.tag("en")


def test_lengths_that_are_multiples(tokenizer: Tokenizer) -> None:
    pairs = list(zip(ENGLISH, RUSSIAN, strict=True))
    shards = {"ru": encode_pairs(pairs, tokenizer, ("en", "ru"), LengthFilter(100))[0]}
    chosen = {"ru": torch.arange(2).numpy()}

    def batch(multiple: int) -> Batch:
        return TokenDataset(shards, {"ru": ("en", "ru")}, tokenizer, torch.device("cpu"), multiple=multiple).batch(
            chosen
        )

    plain, padded = batch(1), batch(8)
    for name in "source", "target_in", "target_out":
        before, after = getattr(plain, name), getattr(padded, name)
        assert after.shape[1] % 8 == 0 and after.shape[1] - before.shape[1] in range(8)
        assert torch.equal(after[:, : before.shape[1]], before) and (after[:, before.shape[1] :] == 0).all()
    for name in "source", "target":
        cells = [getattr(batch, f"{name}_cells") for batch in (plain, padded)]
        ids = [getattr(batch, "source" if name == "source" else "target_out").flatten() for batch in (plain, padded)]
        assert torch.equal(ids[0][cells[0]], ids[1][cells[1]]) and (ids[0][cells[0]] != 0).all()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two languages beside English: xa has the same words, xb has them in capitals and in reverse order."""
    tasks = []
    for number, language in enumerate(("xa", "xb")):
        parts = [split(count, 3 * number + seed, language == "xb") for seed, count in enumerate((80, 10, 10))]
        if language == "xb":
            parts = [Split(part.source, [line.upper() for line in part.target]) for part in parts]
        tasks.append(Task(language, "en", language, *parts))
    write_corpus(Corpus("toy", tasks), tmp_path / "toy")
    return tmp_path / "toy"


def test_many_to_many(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["data.direction=many-to-many", "tokenizer.tag_of=source", "tokenizer.target_tag=true", "train.steps=12"]
    run = tmp_path / "run"
    train(settings(corpus, *OWN, *more), run, quiet=True)
    scores = evaluate(run, quiet=True)
    assert scores.model.tasks.keys() == {"xa", "xb", "xa-en", "xb-en"}
    tokenizer = RunDirectory(run).load_model().tokenizer
    assert tokenizer.languages == ["en", "xa", "xb"] and list(tokenizer.models) == ["en", "xa", "xb"]
    text = tmp_path / "in.txt"
    assert translate.example(run, ["xa", "xa-en", "xb-en"], tokenizer) == f"cats translate {run} --to xa"
    assert translate.example(run, ["xa-en", "xb-en"], tokenizer) == f"cats translate {run} --from xa --to en"
    assert target_languages([("en", "xa"), ("en", "xb")], tokenizer) == ["xa", "xb"]  # en has a tag, as a source
    text.write_text("".join(f"{line}\n" for line in load_corpus(settings(corpus).data).tasks[1].test.target))
    assert main(["translate", str(run), "--to", "en", "--input", str(text)]) == 2
    assert "give the language of the text with --from: xa, xb" in capfd.readouterr().err
    assert main(["translate", str(run), "--from", "xb", "--to", "en", "--input", str(text)]) == 0
    assert capfd.readouterr().out == (run / "hyp" / "test.xb-en.txt").read_text()
    assert main(["translate", str(run), "--to", "xa", "--input", str(text)]) == 0  # from English alone
    assert main(["translate", str(run), "--from", "xd", "--to", "xa", "--input", str(text)]) == 2
    assert "does not translate from 'xd'" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["eng", "en"])
def test_english_by_another_name(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parts = [split(30, seed, False) for seed in range(3)]
    write_corpus(Corpus("toy", [Task("xa", name, "xa", *parts)]), tmp_path / "toy")
    train(settings(tmp_path / "toy", *OWN, "train.steps=3"), tmp_path / "run", quiet=True)
    (tmp_path / "in.txt").write_text("alpha\n")
    for more in [], ["--from", "en"], ["--from", "eng"]:
        assert main(["translate", str(tmp_path / "run"), "--to", "xa", "--input", f"{tmp_path}/in.txt", *more]) == 0
    assert len(set(capfd.readouterr().out.splitlines())) == 1


def test_a_prepared_folder_has_the_tokens_that_memory_has(corpus: Path, tmp_path: Path) -> None:
    """Also with two processes, which get the models from this one."""
    config = settings(corpus, *OWN)
    loaded = load_corpus(config.data)
    encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
    prepare(loaded, encoding, tmp_path / "prepared", processes=2, quiet=True)
    found = read_prepared(tmp_path / "prepared", encoding)
    memory = training_tokens(loaded, encoding)
    assert found.tokenizer.serialized() == memory.tokenizer.serialized()
    for task, shard in memory.shards.items():
        assert (found.shards[task].tokens == shard.tokens).all() and (found.shards[task].offsets == shard.offsets).all()
    with pytest.raises(UserError, match=r"prepared with tokenizer\.per_language=True, not False"):
        other = dataclasses.replace(encoding, tokenizer=settings(corpus, OWN[1]).tokenizer)
        read_prepared(tmp_path / "prepared", other)


def test_a_folder_that_is_older_than_a_setting(corpus: Path, tmp_path: Path) -> None:
    config = settings(corpus)
    encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
    prepare(load_corpus(config.data), encoding, tmp_path / "prepared", quiet=True)
    index = tmp_path / "prepared" / INDEX
    content = read_checked_json(index)
    del content["settings"]["tokenizer.per_language"]
    write_checked_json(index, content)
    assert read_prepared(tmp_path / "prepared", encoding).shards


def test_a_language_is_added(corpus: Path, tmp_path: Path) -> None:
    train(settings(corpus, *OWN), tmp_path / "run", quiet=True)
    old = RunDirectory(tmp_path / "run").load_model().tokenizer
    greek = [Split(part.source, ["αβ γδ"] * len(part.source)) for part in (split(20, s, False) for s in range(3))]
    write_corpus(Corpus("new", [Task("xc", "en", "xc", *greek)]), tmp_path / "new")
    config = settings(tmp_path / "new", *OWN, f"train.init_from={tmp_path / 'run'}", "train.steps=5")
    tokenizer = warmstart.initial_tokenizer(load_corpus(config.data), config)
    assert tokenizer is not None and tokenizer.languages == ["xa", "xb", "xc"]
    assert list(tokenizer.models) == ["en", "xa", "xb", "xc"]
    for language in "en", "xa":
        assert names(tokenizer, tokenizer.encode(WORDS, language)) == names(old, old.encode(WORDS, language))
    assert tokenizer.unk_id not in tokenizer.encode(["αβ γδ"], "xc")[0]
    train(config, tmp_path / "more", quiet=True)
    assert evaluate(tmp_path / "more", quiet=True).model.tasks.keys() == {"xc"}
    with pytest.raises(UserError, match=r"has tokenizer\.per_language = True, not False"):
        train(settings(tmp_path / "new", f"train.init_from={tmp_path / 'run'}"), tmp_path / "other", quiet=True)


@pytest.mark.parametrize("more", [["tokenizer.source_tag=none"], ["tokenizer.tag_of=source"]])
def test_tags_that_do_not_tell_the_target_are_refused(corpus: Path, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(UserError, match="nothing tells the model which language to translate into"):
        Trainer(settings(corpus, *more), tmp_path / "run", resume=False, quiet=True)
    assert not (tmp_path / "run").exists()
    Trainer(settings(corpus, *more, "data.tasks=xa"), tmp_path / "run", resume=False, quiet=True)


def test_a_vocabulary_with_no_room_names_the_language(corpus: Path) -> None:
    config = settings(corpus, OWN[0], "tokenizer.vocab_size=10")
    with pytest.raises(UserError, match=r"^en: tokenizer\.vocab_size=10 is too small"):
        train_tokenizer(load_corpus(config.data), config.tokenizer)


def test_long_text_is_sampled(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_corpus(settings(corpus).data)
    assert len(language_text(loaded, "xa", 1000)) == len(set(loaded.tasks[0].train.target))
    for most in 40, 41, 79, 81, 120:
        assert len(language_text(loaded, "en", most)) <= most
    assert len(language_text(loaded, "en", 40)) > 35
