"""Prepared folders: making them, continuing after a kill, and reading them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cats.nmt.cli.main import main
from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data import prepare
from cats.nmt.data.encode import EncodingSettings
from cats.nmt.data.prepare import training_tokens
from cats.nmt.data.prepared import is_prepared, read_json, read_prepared
from cats.nmt.errors import UserError
from cats.nmt.training.load_corpus import load_corpus
from cats.nmt.training.trainer import Trainer, train

SMALL = [
    "tokenizer.vocab_size=80",
    "model.d_model=16",
    "model.ffn=16",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "train.steps=6",
    "train.validate_every=3",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three tasks of made-up words, with validation and test text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    draw = random.Random(1)
    words = [a + b for a in "bdfgk" for b in "aeiou"]
    for language, size in ("xa", 900), ("xb", 230), ("xc", 40):
        for split, count in ("train", size), ("valid", 5), ("test", 5):
            lines = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(count)]
            stem = folder / f"{split}.en-{language}"
            stem.with_name(f"{stem.name}.en").write_text("".join(f"{line}\n" for line in lines))
            stem.with_name(f"{stem.name}.{language}").write_text("".join(f"{line[::-1]}\n" for line in lines))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes every corpus count as large, and blocks small."""
    monkeypatch.setattr("cats.nmt.data.corpus_files.MOST_IN_MEMORY", 10)
    monkeypatch.setattr(prepare, "BLOCK", 100)
    monkeypatch.setattr(
        prepare, "available_cores", lambda: 1
    )  # one process: starting more takes longer than the encoding
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setenv("CATS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(folder: Path, *overrides: str) -> Config:
    return apply_overrides(replace_settings(Config(), {"data.path": str(folder)}), [*SMALL, *overrides])


def encoding(config: Config) -> EncodingSettings:
    return EncodingSettings(config.data, config.tokenizer, config.model.max_length)


def make(folder: Path, out: Path, *overrides: str, **options: Any) -> None:
    config = settings(folder, *overrides)
    prepare.prepare(load_corpus(config.data), encoding(config), out, quiet=True, **{"processes": 1, **options})


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def fails(message: str, folder: Path, out: Path, *overrides: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        make(folder, out, *overrides)
    assert "\n" not in str(error.value)


# Folders.


def test_files_have_the_tokens_that_memory_has(corpus, cache, tmp_path, monkeypatch):
    make(corpus, tmp_path / "one")
    make(corpus, tmp_path / "two", processes=2)
    found = contents(tmp_path / "one")
    assert found == contents(tmp_path / "two")
    assert sorted(name for name in found if "text" not in name) == [
        "prepared.json",
        "tokenizer.model",
        *[f"train/{t}.{part}" for t in ("xa", "xb", "xc") for part in ("json", "offsets.npy", "tokens.npy")],
    ]
    config = settings(corpus)
    files = read_prepared(tmp_path / "one", encoding(config))
    monkeypatch.setattr("cats.nmt.data.corpus_files.MOST_IN_MEMORY", 1 << 30)
    memory = training_tokens(load_corpus(config.data), encoding(config), quiet=True)
    assert memory.tokenizer.digest() == files.tokenizer.digest()
    assert memory.shards.keys() == files.shards.keys()
    for task, shard in memory.shards.items():
        assert np.array_equal(shard.tokens, files.shards[task].tokens)
        assert np.array_equal(shard.offsets, files.shards[task].offsets)


def test_the_corpus_of_a_prepared_folder(corpus, cache, tmp_path):
    make(corpus, tmp_path / "out")
    text, kept = load_corpus(settings(corpus).data), load_corpus(settings(tmp_path / "out").data)
    assert kept.sizes == text.sizes == {"xa": 900, "xb": 230, "xc": 40}
    assert (kept.name, kept.notices) == (text.name, text.notices)
    for a, b in zip(kept.tasks, text.tasks, strict=True):
        assert (a.name, a.source, a.target, a.valid, a.test) == (b.name, b.source, b.target, b.valid, b.test)
    some = load_corpus(settings(tmp_path / "out", "data.tasks=xc").data)
    assert list(some.sizes) == ["xc"]
    with pytest.raises(UserError, match=r"unknown task xd.*known: xa, xb, xc"):
        load_corpus(settings(tmp_path / "out", "data.tasks=xd").data)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert load_corpus(settings(tmp_path / "elsewhere").data).digest() == kept.digest()


def test_training_does_not_care_where_the_tokens_are(corpus, cache, tmp_path, monkeypatch):
    def losses(run: Path) -> list[Any]:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(r["step"], r.get("losses"), r.get("valid"), r.get("alpha")) for r in records]

    make(corpus, tmp_path / "out")
    train(settings(tmp_path / "out"), tmp_path / "prepared", quiet=True)
    train(settings(corpus), tmp_path / "cached", quiet=True)
    assert len(list((cache / "prepared").iterdir())) == 1
    train(settings(corpus), tmp_path / "again", quiet=True)
    train(settings(corpus, "model.max_length=9"), tmp_path / "other", quiet=True)
    assert len(list((cache / "prepared").iterdir())) == 2  # keyed by settings
    monkeypatch.setattr("cats.nmt.data.corpus_files.MOST_IN_MEMORY", 1 << 30)
    train(settings(corpus), tmp_path / "memory", quiet=True)
    assert losses(tmp_path / "prepared") == losses(tmp_path / "cached") == losses(tmp_path / "memory")
    assert losses(tmp_path / "again") == losses(tmp_path / "memory") != losses(tmp_path / "other")


KILLED = """
import sys
from pathlib import Path

from cats.nmt.config.toml import read_config
from cats.nmt.data import corpus_files, encoders, prepare
from cats.nmt.data.encode import EncodingSettings
from cats.nmt.training.load_corpus import load_corpus
corpus_files.MOST_IN_MEMORY, prepare.BLOCK = 10, 20
config = read_config(sys.argv[1])
encode, count = encoders.encode_block, 0
def counted(*arguments):
    global count
    count += 1
    encode(*arguments)
encoders.encode_block = counted
settings = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
prepare.prepare(load_corpus(config.data), settings, Path(sys.argv[2]), processes=1, quiet=True)
print(count)
"""


@pytest.mark.parametrize(
    "files", [pytest.param(2, marks=pytest.mark.slow), 70, pytest.param(150, marks=pytest.mark.slow)]
)
def test_it_continues_after_a_kill(corpus, cache, tmp_path, files):
    from cats.nmt.config.toml import to_toml

    (tmp_path / "config.toml").write_text(to_toml(settings(corpus)))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.toml"), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    written: set[Path] = set()
    deadline = time.monotonic() + 120
    while len(written) < files and process.poll() is None and time.monotonic() < deadline:
        written.update(tmp_path.glob("out/train/*"))
        time.sleep(0.001)  # the assertions below hold whenever the kill happens
    process.kill()
    process.wait(60)
    # There are 45 + 12 + 2 blocks of 20 pairs. Blocks with a mark, or of finished tasks, are not encoded again.
    blocks = {"xa": 45, "xb": 12, "xc": 2}
    marks = [file.name.split(".") for file in tmp_path.glob("out/train/*.json")]
    finished = {name[0] for name in marks if len(name) == 2}
    done = sum(blocks[task] for task in finished) + sum(len(n) == 3 and n[0] not in finished for n in marks)
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert int(again.stdout) == (0 if is_prepared(tmp_path / "out") and not process.returncode else 59 - done)
    make(corpus, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_folder_that_was_hardly_begun(corpus, cache, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".0123456789abcdef.tmp").write_text("{")  # killed while its first file was written
    make(corpus, tmp_path / "out")
    make(corpus, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_resuming_does_not_prepare_again(corpus, cache, tmp_path):
    config = settings(corpus)
    trainer = Trainer(config, tmp_path / "run", resume=False, quiet=True)
    before = contents(cache)
    Trainer(config, tmp_path / "run", resume=True, quiet=True)
    assert contents(cache) == before and trainer.training.shards.keys() == {"xa", "xb", "xc"}


def test_two_processes_take_turns(corpus, cache, tmp_path):
    from cats.nmt.config.toml import to_toml
    from cats.nmt.files import locked

    (tmp_path / "config.toml").write_text(to_toml(settings(corpus)))
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", lambda: None):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "config.toml"), str(tmp_path / "out")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline().endswith("out: waiting for another process that prepares it\n")
        assert list((tmp_path / "out").iterdir()) == []
    assert process.wait(120) == 0
    process.stderr.close()
    assert len(read_prepared(tmp_path / "out", encoding(settings(corpus))).shards) == 3


def test_two_that_prepare_at_once(corpus, cache, tmp_path):
    """One prepares, the other waits and finds it done."""
    from cats.nmt.config.toml import to_toml

    (tmp_path / "config.toml").write_text(to_toml(settings(corpus)))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.toml"), str(tmp_path / "out")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0] and "Traceback" not in "".join(said)
    make(corpus, tmp_path / "alone")
    for part in "tokenizer.model", "train", "text":
        ours, theirs = tmp_path / "out" / part, tmp_path / "alone" / part
        assert (
            ours.read_bytes() == theirs.read_bytes() if part.endswith("model") else contents(ours) == contents(theirs)
        )


def test_a_cache_follows_the_text(corpus, cache):
    for end in "", "one more\n", "":
        for suffix in "en", "xc":
            with (corpus / f"train.en-xc.{suffix}").open("a") as file:
                file.write(end)
        config = settings(corpus)
        prepared = training_tokens(load_corpus(config.data), encoding(config), quiet=True)
        assert len(prepared.shards["xc"]) == (40 if not end and len(list((cache / "prepared").iterdir())) == 1 else 41)
    assert len(list((cache / "prepared").iterdir())) == 2


def test_fine_tuning_from_a_prepared_folder(corpus, cache, tmp_path):
    """A folder must have the pieces of the run that training starts from, else it is refused."""
    train(settings(corpus), tmp_path / "run", quiet=True)
    more = tmp_path / "more"
    shutil.copytree(corpus, more)
    for suffix in "en", "xc":
        path = more / f"train.en-xc.{suffix}"
        path.write_text(path.read_text().replace("b", "ß"))
    given = ["--init-from", str(tmp_path / "run"), "--set", "tokenizer.extend=30", "--processes", "1"]
    assert main(["data", "prepare", str(more), "--out", str(tmp_path / "out"), *given]) == 0
    start = [f"train.init_from={tmp_path / 'run'}", "tokenizer.extend=30"]
    train(settings(tmp_path / "out", *start), tmp_path / "tuned", quiet=True)
    assert "ß" in sentencepiece_pieces(tmp_path / "tuned" / "tokenizer.model")
    make(more, tmp_path / "other", *start[1:], "data.tasks=xc")  # its tokenizer has other tags
    with pytest.raises(
        UserError, match=r"other: prepared without the pieces of .*run; use cats data prepare --init-from"
    ):
        train(settings(tmp_path / "other", *start), tmp_path / "refused", quiet=True)


def sentencepiece_pieces(path: Path) -> set[str]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return {processor.id_to_piece(i) for i in range(processor.get_piece_size())}


# Bad input.


def test_other_settings_are_refused(corpus, cache, tmp_path):
    make(corpus, tmp_path / "out")
    fails("out: prepared from another corpus or with other settings", corpus, tmp_path / "out", "model.max_length=9")
    config = settings(tmp_path / "out", "tokenizer.vocab_size=90")
    message = "prepared with tokenizer.vocab_size=80, not 90; give --set tokenizer.vocab_size=80, or prepare"
    with pytest.raises(UserError, match=re.escape(message)):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    make(corpus, tmp_path / "out", "tokenizer.target_tag=true")  # it changes no length
    message = "prepared with data.direction=one-to-many, not many-to-one; give --set data.direction=one-to-many"
    with pytest.raises(UserError, match=re.escape(message)):
        train(settings(tmp_path / "out", "data.direction=many-to-one"), tmp_path / "run")
    with pytest.raises(UserError, match="prepared already; give the folder of the text"):
        make(tmp_path / "out", tmp_path / "further")


def test_an_unfinished_folder_of_another_corpus_is_refused(corpus, cache, tmp_path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "making.json").write_text(json.dumps({"format": 1, "corpus": "x"}))
    fails("out: prepared from another corpus or with other settings", corpus, tmp_path / "out")
    (tmp_path / "out" / "making.json").write_text("{")
    fails("making.json: damaged or made by another version of cats", corpus, tmp_path / "out")


def test_a_folder_with_something_else_is_refused(corpus, cache, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    fails("mine: the folder is not empty; choose another", corpus, tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    fails("file: cannot be created", corpus, tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prepared.json", b"{", "prepared.json: damaged or made by another version of cats"),
        ("prepared.json", b'{"format": 99}', "prepared.json: damaged or made by another version of cats"),
        (
            "train/xb.tokens.npy",
            None,
            "xb.tokens.npy: cannot be read (No such file or directory); prepare the text again",
        ),
        ("tokenizer.model", None, "tokenizer.model: cannot be read"),
        ("text/test.en-xa.xa", None, "test.en-xa.xa: cannot be read"),
        ("text/test.en-xa.meta", b"a\tb\n" * 5, "test.en-xa.meta: changed since it was prepared"),
    ],
)
def test_damage_is_reported(corpus, cache, tmp_path, name, content, message):
    make(corpus, tmp_path / "out")
    if content is None:
        (tmp_path / "out" / name).unlink()
    else:
        (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        train(settings(tmp_path / "out"), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)


def turned(content: bytes) -> bytes:
    """The content with one bit turned, in the middle."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


CHANGES = {
    "a bit": turned,
    "cut": lambda content: content[:-10],
    "zeros at the end": lambda content: content[:-20] + bytes(20),
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_changed_file_is_named(corpus, cache, tmp_path, change):
    """Also if its size and time are as before. After it is restored, the folder is as good as new."""
    make(corpus, tmp_path / "out")
    config = settings(tmp_path / "out")
    index = read_json(tmp_path / "out" / "prepared.json")
    assert len(index["files"]) == 1 + 3 * 2 + 3 * 2 * 2  # tokenizer, tokens and offsets, validation and test text

    def read() -> None:
        training_tokens(load_corpus(config.data), encoding(config))

    for name in index["files"]:
        file = tmp_path / "out" / name
        before, times = file.read_bytes(), file.stat()
        file.write_bytes(CHANGES[change](before))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(
            UserError, match=re.escape(f"{file}: changed since it was prepared; prepare the text again")
        ):
            read()
        file.write_bytes(before)
        read()


def test_damage_in_the_cache_is_reported(corpus, cache, tmp_path):
    """Nobody prepared this folder, so nobody can prepare it again."""
    config = settings(corpus)
    training_tokens(load_corpus(config.data), encoding(config), quiet=True)
    (folder,) = (cache / "prepared").iterdir()
    file = folder / "train" / "xa.tokens.npy"
    file.write_bytes(turned(file.read_bytes()))
    message = f"{file}: changed since it was prepared; remove {folder} and start again"
    with pytest.raises(UserError, match=re.escape(message)):
        training_tokens(load_corpus(config.data), encoding(config), quiet=True)


def test_swapped_files_are_noticed(corpus, cache, tmp_path):
    make(corpus, tmp_path / "out")
    files = [tmp_path / "out" / "train" / f"{task}.tokens.npy" for task in ("xa", "xb")]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[::-1], strict=True):
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"xa\.tokens\.npy: changed since it was prepared"):
        read_prepared(tmp_path / "out", encoding(settings(tmp_path / "out")))


def test_a_changed_index_is_noticed(corpus, cache, tmp_path):
    make(corpus, tmp_path / "out")
    index = tmp_path / "out" / "prepared.json"
    text = index.read_text()
    for old, new in (
        ('"kept": 40', '"kept": 41'),
        ('"name": "corpus"', '"name": "other"'),
        ('"zero_shot": []', '"zero": []'),
        ('"checksum": ', '"checksun": '),
    ):
        assert old in text
        index.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=r"prepared\.json: damaged or made by another version of cats; remove"):
            load_corpus(settings(tmp_path / "out").data)


def older(folder: Path) -> dict[str, Any]:
    """Makes a prepared folder one of an earlier version, which has no checksums. Returns its index."""
    index = json.loads((folder / "prepared.json").read_text())
    for key in ("checksum", "files"):
        del index[key]
    for entry in index["tasks"]:
        del entry["sha256"]
    (folder / "prepared.json").write_text(json.dumps(index))
    return index


def test_a_folder_of_an_earlier_version(corpus, cache, tmp_path, capsys):
    """It is read, with one notice, and its tokens are looked at instead. Unless it is finished, it cannot be used."""
    make(corpus, tmp_path / "out")
    index = older(tmp_path / "out")
    index["corpus"] = load_corpus(settings(corpus).data).older_digest()
    (tmp_path / "out" / "prepared.json").write_text(json.dumps(index))
    config = settings(tmp_path / "out")
    assert load_corpus(config.data, quiet=True).sizes == {"xa": 900, "xb": 230, "xc": 40}
    assert capsys.readouterr().err == ""
    for _ in range(2):
        load_corpus(config.data)
    make(corpus, tmp_path / "out")
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and "out was prepared by an earlier version, without checksums" in notice
    assert len(read_prepared(tmp_path / "out", encoding(config)).shards) == 3
    fails("prepared from another corpus or with other settings", corpus, tmp_path / "out", "model.max_length=9")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "making.json").write_text(json.dumps(index))
    fails("begun: begun by an earlier version of cats; remove it and prepare again", corpus, tmp_path / "begun")
    tokens, offsets = (tmp_path / "out" / "train" / f"xa.{part}.npy" for part in ("tokens", "offsets"))
    for file, change in (
        (tokens, lambda array: np.where(np.arange(len(array)) == 5, 60_000, array).astype(array.dtype)),
        (tokens, lambda array: array[:-1]),
        (offsets, lambda array: np.where(np.arange(len(array)) == 5, array[4] - 1, array)),
    ):
        before = file.read_bytes()
        np.save(file, change(np.load(file)))
        with pytest.raises(UserError, match=r"the tokens of xa do not match prepared\.json; prepare the text again"):
            read_prepared(tmp_path / "out", encoding(config))
        file.write_bytes(before)
    for content in (b"", b"junk", tokens.read_bytes()[:-100], b"PK\x03\x04"):
        tokens.write_bytes(content)
        with pytest.raises(UserError, match="damaged; prepare the text again"):
            read_prepared(tmp_path / "out", encoding(config))


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [[]], [{}], {"name": 1}])
@pytest.mark.parametrize("key", ["settings", "tasks", "zero_shot", "digest", "notices", "name"])
def test_an_index_of_an_earlier_version_with_a_wrong_type(tmp_path, key, value):
    index = {"format": 1, "settings": {}, "tasks": [], "zero_shot": [], "digest": "", "notices": [], "name": "c"}
    (tmp_path / "prepared.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(UserError):
        load_corpus(settings(tmp_path).data)
    with pytest.raises(UserError):
        read_prepared(tmp_path, encoding(settings(tmp_path)))


def test_one_text_has_one_digest(corpus, cache, tmp_path, monkeypatch):
    """In memory, streamed and prepared; also of some of the tasks, and with pairs that are left out."""
    with (corpus / "train.en-xc.en").open("a") as sources, (corpus / "train.en-xc.xc").open("a") as targets:
        sources.write("ba\n\nba\rbe\r\r\nbo\n" * 5000)
        targets.write("ab\nab\n\u2028\ufeffab\neb\n" * 5000)
    (corpus / "test.en-xb.xb").write_bytes("\ufeff\ufeffone\r\r\ntwo\nthree\rfour\nfive\nsix\n".encode())
    make(corpus, tmp_path / "out")
    for some in ((), ("data.tasks=xc,xb",)):
        streamed, prepared = (load_corpus(settings(folder, *some).data) for folder in (corpus, tmp_path / "out"))
        with monkeypatch.context() as patch:
            patch.setattr("cats.nmt.data.corpus_files.MOST_IN_MEMORY", 1 << 30)
            memory = load_corpus(settings(corpus, *some).data)
        assert memory.digest() == streamed.digest() == prepared.digest()
        assert memory.older_digest() != streamed.older_digest() != prepared.older_digest()


def test_text_of_the_same_size_and_time_is_noticed(corpus, cache):
    file = corpus / "train.en-xc.xc"
    before, times = load_corpus(settings(corpus).data).digest(), file.stat()
    file.write_text(file.read_text().replace("b", "p"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_corpus(settings(corpus).data).digest() != before


def test_a_damaged_scan_is_made_again(corpus, cache):
    before = load_corpus(settings(corpus).data)
    for scan in (cache / "scans").iterdir():
        scan.write_text(scan.read_text().replace('"pairs": ', '"pairs": 1'))
    after = load_corpus(settings(corpus).data)
    assert (after.sizes, after.digest()) == (before.sizes, before.digest())


def test_a_damaged_block_is_encoded_again(corpus, cache, tmp_path, monkeypatch):
    """Also its mark. A tokenizer that was changed since the first blocks were encoded is refused."""
    make(corpus, tmp_path / "whole")
    monkeypatch.setattr(prepare, "_join", lambda *arguments: sys.exit())
    with pytest.raises(SystemExit):
        make(corpus, tmp_path / "out")
    monkeypatch.undo()
    for name in ("xa.3.tokens.npy", "xa.5.json"):
        file = tmp_path / "out" / "train" / name
        file.write_bytes(turned(file.read_bytes()))
    tokenizer = tmp_path / "out" / "tokenizer.model"
    before = tokenizer.read_bytes()
    tokenizer.write_bytes(turned(before))
    monkeypatch.setattr("cats.nmt.data.corpus_files.MOST_IN_MEMORY", 10)
    monkeypatch.setattr(prepare, "BLOCK", 100)
    monkeypatch.setenv("CATS_CACHE", str(cache))
    fails("tokenizer.model: changed since it was prepared", corpus, tmp_path / "out")
    tokenizer.write_bytes(before)
    make(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_only_tasks_without_training_text_are_refused(corpus, cache, tmp_path):
    for side in ("xa", "xb"):
        (corpus / f"test.xa-xb.{side}").write_text("ba\n")
    make(corpus, tmp_path / "out", "data.direction=many-to-many")
    for folder in (corpus, tmp_path / "out"):
        with pytest.raises(UserError, match="there is no training text for xb-xa"):
            load_corpus(settings(folder, "data.direction=many-to-many", "data.tasks=xb-xa").data)


def test_inspecting_needs_no_writable_cache(corpus, cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CATS_CACHE", str(tmp_path / "file"))
    assert load_corpus(settings(corpus).data).sizes == {"xa": 900, "xb": 230, "xc": 40}


def test_one_line_of_a_hundred_thousand_words(corpus, cache, tmp_path):
    for side in ("en", "xa"):
        with (corpus / f"train.en-xa.{side}").open("a") as file:
            file.write("ba " * 100_000 + "\n")
    make(corpus, tmp_path / "out")
    found = read_prepared(tmp_path / "out", encoding(settings(corpus)))
    assert found.left_out == {"xa": {"longer than 256 tokens": 1}} and len(found.shards["xa"]) == 900


def test_a_full_disk_is_reported(corpus, cache, tmp_path, monkeypatch):
    import errno
    import os

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        fails("the disk is full; free some space and start again", corpus, tmp_path / "out")
    make(corpus, tmp_path / "out")
    assert len(read_prepared(tmp_path / "out", encoding(settings(corpus))).shards) == 3


def test_a_task_without_pairs_that_fit_is_reported(corpus, tmp_path):
    config = settings(corpus, "model.max_length=2")
    message = r"xa: every training pair is left out \(longer than 2 tokens\); raise model\.max_length$"
    with pytest.raises(UserError, match=message):
        training_tokens(load_corpus(config.data), encoding(config))


def test_the_setting_that_leaves_out_all_pairs_is_named(corpus):
    (corpus / "train.en-xc.xc").write_text("ba\n" * 40)
    (corpus / "train.en-xc.en").write_text("ba be bi bo bu da de di do du\n" * 40)
    ratio = settings(corpus, "data.tasks=xc", "data.max_ratio=2")
    with pytest.raises(UserError, match=r"\(one side more than 2 times as long as the other\); raise data\.max_ratio$"):
        training_tokens(load_corpus(ratio.data), encoding(ratio))
    (corpus / "train.en-xc.xc").write_text("ba\n" * 39 + "ba " * 99 + "\n")
    both = settings(corpus, "data.tasks=xc", "data.max_ratio=2", "model.max_length=50")
    with pytest.raises(UserError, match=r"; raise model\.max_length and data\.max_ratio$"):
        training_tokens(load_corpus(both.data), encoding(both))
