"""Reading a folder of parallel text as a corpus, and writing one."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cats.nmt.data.corpus import Corpus, Split, StreamedSplit, Task
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.errors import UserError
from cats.nmt.files import read_checked_json, write_checked_json

EMPTY = Split([], [])


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def moses(folder: Path, pair: str, train: int = 2, valid: int = 1, test: int = 1) -> None:
    """Numbered lines in both languages of `pair`; a split of 0 lines is not written."""
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        for side in pair.split("-") if count else ():
            put(folder / f"{split}.{pair}.{side}", "".join(f"{side} {split} {i}\n" for i in range(count)))


def fails(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_corpus(folder, **options)
    assert "\n" not in str(error.value)


# Layouts.


def test_moses_pairs(tmp_path):
    moses(tmp_path, "en-be", train=3)
    moses(tmp_path, "en-az", train=2)
    put(tmp_path / "README.md", "not text")
    corpus = read_corpus(tmp_path)
    assert corpus.name == tmp_path.name
    assert [task.name for task in corpus.tasks] == ["az", "be"]
    assert corpus.notices == []
    assert corpus.tasks[1] == Task(
        "be",
        "en",
        "be",
        Split(["en train 0", "en train 1", "en train 2"], ["be train 0", "be train 1", "be train 2"]),
        Split(["en valid 0"], ["be valid 0"]),
        Split(["en test 0"], ["be test 0"]),
    )


def test_either_order_of_the_languages(tmp_path):
    moses(tmp_path, "az-en")
    task = read_corpus(tmp_path).tasks[0]
    assert (task.name, task.source, task.target) == ("az", "en", "az")
    assert (task.train.source[0], task.train.target[0]) == ("en train 0", "az train 0")


def test_both_orders_of_one_pair(tmp_path):
    moses(tmp_path, "az-en", train=5)
    moses(tmp_path, "en-az", train=2)
    corpus = read_corpus(tmp_path)
    assert corpus.sizes == {"az": 2}
    assert corpus.notices == ["az-en: left out, en-az is used"]


def test_other_sources(tmp_path):
    for pair in ("de-fr", "de-en", "en-fr"):
        moses(tmp_path, pair)
    corpus = read_corpus(tmp_path, source="de")
    assert [(task.name, task.source, task.target) for task in corpus.tasks] == [
        ("de-en", "de", "en"),
        ("de-fr", "de", "fr"),
    ]
    assert corpus.notices == ["en-fr: left out, de is not one of its languages"]
    assert [task.name for task in read_corpus(tmp_path).tasks] == ["de", "fr"]


def test_codes_with_hyphens_and_underscores(tmp_path):
    for code in ("zh-Hans", "pt_BR"):
        put(tmp_path / f"train.en-{code}.en", "a\n")
        put(tmp_path / f"train.en-{code}.{code}", "b\n")
    assert [task.target for task in read_corpus(tmp_path).tasks] == ["pt_BR", "zh-Hans"]


def test_a_code_with_a_hyphen_that_begins_with_the_other_code(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / f"{split}.pt-BR-pt.pt-BR", "a\n")
        put(tmp_path / f"{split}.pt-BR-pt.pt", "b\n")
    assert [task.target for task in read_corpus(tmp_path, source="pt-BR").tasks] == ["pt"]
    assert [task.target for task in read_corpus(tmp_path, source="pt").tasks] == ["pt-BR"]


def test_one_moses_pair(tmp_path):
    for split in ("train", "dev", "test"):
        put(tmp_path / f"{split}.en", f"{split} one\n{split} two\n")
        put(tmp_path / f"{split}.xx", f"{split} eins\n{split} zwei\n")
    put(tmp_path / "test.meta", "m\t1\nt\t2\n")
    (task,) = read_corpus(tmp_path).tasks
    assert (task.name, task.source, task.target) == ("xx", "en", "xx")
    assert task.train == Split(["train one", "train two"], ["train eins", "train zwei"])
    assert task.valid.source == ["dev one", "dev two"]
    assert task.test.meta == [("m", "1"), ("t", "2")]


def opus(root: Path) -> None:
    for pair, splits in {"af-en": "train dev test", "en-fr": "train dev test", "an-en": "train"}.items():
        for side in pair.split("-"):
            for split in splits.split():
                put(root / "supervised" / pair / f"opus.{pair}-{split}.{side}", f"{side} {split}\n")
    put(root / "zero-shot" / "de-fr" / "opus.de-fr-test.de", "de\n")
    put(root / "zero-shot" / "de-fr" / "opus.de-fr-test.fr", "fr\n")


@pytest.mark.parametrize("below, start", [("", ""), ("v1.0", ""), ("", "supervised")])
def test_opus_100(tmp_path, below, start):
    opus(tmp_path / below)
    corpus = read_corpus(tmp_path / start)
    assert [task.name for task in corpus.tasks] == ["af", "an", "fr"]
    french = corpus.tasks[2]
    assert french == Task(
        "fr",
        "en",
        "fr",
        Split(["en train"], ["fr train"]),
        Split(["en dev"], ["fr dev"]),
        Split(["en test"], ["fr test"]),
    )
    assert corpus.tasks[1].test == corpus.tasks[1].valid == EMPTY
    assert corpus.notices == [
        "1 pair of test text without en left out; with data.direction=many-to-many they are scored too",
        "an: no valid pairs, so it does not count when the best model is chosen",
        "an: no test pairs, so it is trained on and not scored",
    ]
    assert corpus.zero_shot == []


def test_a_corpus_without_valid_pairs_says_which_model_is_the_best(tmp_path):
    for side in ("en", "az"):
        put(tmp_path / f"train.en-az.{side}", "line\n")
    assert "no task has valid pairs, so the newest model counts as the best" in read_corpus(tmp_path).notices
    for side in ("en", "az"):
        put(tmp_path / f"valid.en-az.{side}", "line\n")
    assert not any("valid" in notice for notice in read_corpus(tmp_path).notices)


def test_zero_shot_directions(tmp_path):
    opus(tmp_path)
    corpus = read_corpus(tmp_path, direction="many-to-many")
    assert [task.name for task in corpus.tasks] == ["af", "af-en", "an", "an-en", "fr", "fr-en"]
    assert [(t.name, len(t.train), t.test) for t in corpus.zero_shot] == [
        ("de-fr", 0, Split(["de"], ["fr"])),
        ("fr-de", 0, Split(["fr"], ["de"])),
    ]
    alone = read_corpus(tmp_path, direction="many-to-many", tasks=["af", "de-fr"])
    assert [task.name for task in [*alone.tasks, *alone.zero_shot]] == ["af", "de-fr"]
    assert alone.digest() != read_corpus(tmp_path, direction="many-to-many", tasks=["af"]).digest()


def test_directions(tmp_path):
    moses(tmp_path, "en-az")
    moses(tmp_path, "az-tr")
    back = read_corpus(tmp_path, direction="many-to-one")
    assert [(t.name, t.source, t.target) for t in back.tasks] == [("az-en", "az", "en")]
    assert back.tasks[0].train == Split(["az train 0", "az train 1"], ["en train 0", "en train 1"])
    assert back.notices == ["az-tr: left out, en is not one of its languages"]
    every = read_corpus(tmp_path, direction="many-to-many")
    assert [t.name for t in every.tasks] == ["az", "az-en", "az-tr", "tr-az"]
    assert every.tasks[3].test == Split(["tr test 0"], ["az test 0"])


def test_some_tasks(tmp_path):
    for pair in ("en-az", "en-be", "en-tr"):
        moses(tmp_path, pair)
    put(tmp_path / "train.en-be.be", "one line\n")  # broken, and not asked for
    corpus = read_corpus(tmp_path, tasks=["tr", "az"])
    assert list(corpus.sizes) == ["az", "tr"] and corpus.notices == []
    fails(tmp_path, f"{tmp_path}: unknown task AZ (did you mean az?); known: az, be, tr", tasks=["AZ", "tr"])


def test_english_by_its_other_names(tmp_path):
    moses(tmp_path, "en_XX-az_AZ")
    (task,) = read_corpus(tmp_path).tasks
    assert (task.name, task.source, task.target) == ("az_AZ", "en_XX", "az_AZ")


def test_a_nul_byte_is_left_out(tmp_path):
    put(tmp_path / "train.en", "one\nt\0wo\nthree\n")
    put(tmp_path / "train.xx", "eins\nzwei\ndrei\n")
    corpus = read_corpus(tmp_path)
    assert corpus.tasks[0].train == Split(["one", "three"], ["eins", "drei"])
    assert corpus.notices[0] == "en-xx: 1 train pairs left out, a NUL byte is in them"


def test_long_training_text_is_read_on_each_pass(tmp_path, monkeypatch):
    moses(tmp_path / "corpus", "en-az", train=3)
    put(tmp_path / "corpus" / "train.en-az.az", "az train 0\n\naz train 2\n")
    put(tmp_path / "corpus" / "test.en-az.en", "en train 2\n")
    put(tmp_path / "corpus" / "test.en-az.az", "az train 2\n")
    held = read_corpus(tmp_path / "corpus")
    monkeypatch.setattr("cats.nmt.data.corpus_files.MOST_IN_MEMORY", 10)
    monkeypatch.setenv("CATS_CACHE", str(tmp_path / "cache"))
    text = read_corpus(tmp_path / "corpus").tasks[0].train
    assert isinstance(text, StreamedSplit)
    assert [*text] == [*text] == [*held.tasks[0].train] and len(text) == 2
    corpus = read_corpus(tmp_path / "corpus")
    assert corpus.notices == held.notices and len(held.notices) == 2
    assert corpus.digest() == read_corpus(tmp_path / "corpus").digest() == held.digest()
    # What was found is cached until a file changes.
    (memo,) = (tmp_path / "cache" / "scans").iterdir()
    write_checked_json(memo, {**read_checked_json(memo), "pairs": 7})
    assert read_corpus(tmp_path / "corpus").sizes == {"az": 7}
    put(tmp_path / "corpus" / "train.en-az.az", "az train 0\nother\naz train 2\n")
    changed = read_corpus(tmp_path / "corpus")
    assert changed.sizes == {"az": 3} and changed.digest() != corpus.digest()
    memo.write_text("{")
    put(tmp_path / "corpus" / "train.en-az.az", "az train 0\n\n")
    with pytest.raises(UserError, match=r"train\.en-az\.en has 3 lines, train\.en-az\.az has 2"):
        read_corpus(tmp_path / "corpus")


def test_one_pair_of_opus_100(tmp_path):
    opus(tmp_path)
    assert [task.name for task in read_corpus(tmp_path / "supervised" / "en-fr").tasks] == ["fr"]


def test_a_real_corpus(help8):
    corpus = read_corpus(help8)
    sizes = {"az": 436, "be": 2590, "cs": 8802, "gl": 8559, "pt": 14212, "ru": 12799, "sk": 3787, "tr": 4452}
    assert corpus.sizes == sizes  # its README's numbers
    assert corpus.groups["lores"] == ["az", "be", "sk", "tr"]
    assert len(corpus.tasks[0].test.source) == 54
    assert corpus.headline is None
    assert corpus.notices == []
    assert {stratum for task in corpus.tasks for stratum, _ in task.train.meta} == {"t", "g", "m"}


# Lines.


def test_only_newlines_end_a_line(tmp_path):
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    put(tmp_path / "train.en", f"{odd}\nplain\n")
    put(tmp_path / "train.xx", f"eins\n{odd}\n")
    assert read_corpus(tmp_path).tasks[0].train == Split([odd, "plain"], ["eins", odd])


def test_bom_crlf_and_a_missing_last_newline(tmp_path):
    put(tmp_path / "train.en", "\ufeffone\r\ntwo\r\n")
    put(tmp_path / "train.xx", "eins\nzw\ufeffei")
    assert read_corpus(tmp_path).tasks[0].train == Split(["one", "two"], ["eins", "zw\ufeffei"])


def test_outer_spaces_stay(tmp_path):
    put(tmp_path / "train.en", " one  two\t\n")
    put(tmp_path / "train.xx", "\u00a0eins\n")
    assert read_corpus(tmp_path).tasks[0].train == Split([" one  two\t"], ["\u00a0eins"])


def test_pairs_with_a_blank_side_are_left_out_with_their_meta(tmp_path):
    put(tmp_path / "train.en-xx.en", "one\n\nthree\n\u2028\nfive\n")
    put(tmp_path / "train.en-xx.xx", "eins\nzwei\n \t\nvier\nfünf\n")
    put(tmp_path / "train.en-xx.meta", "m\t1\nm\t2\nm\t3\nm\t4\nt\t5\n")
    corpus = read_corpus(tmp_path)
    assert corpus.tasks[0].train == Split(["one", "five"], ["eins", "fünf"], [("m", "1"), ("t", "5")])
    assert corpus.notices[0] == "en-xx: 3 train pairs left out, a side is blank"


# Notices.


def test_pairs_without_training_text_are_left_out(tmp_path):
    moses(tmp_path, "en-az")
    moses(tmp_path, "en-be", train=0)
    corpus = read_corpus(tmp_path)
    assert corpus.sizes == {"az": 2}
    assert corpus.notices == ["en-be: left out, it has no training text"]


def test_valid_and_dev(tmp_path):
    moses(tmp_path, "en-az")
    put(tmp_path / "dev.en-az.en", "a\nb\n")
    put(tmp_path / "dev.en-az.az", "a\nb\n")
    corpus = read_corpus(tmp_path)
    assert corpus.tasks[0].valid.source == ["en valid 0"]
    assert corpus.notices == ["en-az: its dev files are left out, its valid files are used"]


def test_test_pairs_in_the_training_text_are_reported(tmp_path):
    put(tmp_path / "train.en", "a\nb\nc\n")
    put(tmp_path / "train.xx", "A\nB\nC\n")
    put(tmp_path / "valid.en", "v\n")
    put(tmp_path / "valid.xx", "V\n")
    put(tmp_path / "test.en", "b\na\nc\n")
    put(tmp_path / "test.xx", "B\nX\nC\n")
    assert read_corpus(tmp_path).notices == ["xx: 2 test pairs are in the training text too"]


# Bad input.


def test_no_folder(tmp_path):
    fails(tmp_path / "none", f"{tmp_path / 'none'}: no such folder")
    put(tmp_path / "file", "text")
    fails(tmp_path / "file", f"{tmp_path / 'file'}: not a folder")


def test_no_known_layout(tmp_path):
    fails(tmp_path, f"{tmp_path}: the folder is empty; known layouts: train.en-xx.en with train.en-xx.xx (Moses")
    put(tmp_path / "corpus.txt", "text")
    start = f"{tmp_path}: no parallel text in this folder; found"
    rename = "; rename them to train.*, valid.* and test.*; known layouts: "
    fails(tmp_path, f"{start} corpus.txt{rename}")
    for name in "corpus.az-en.az", "corpus.az-en.en":
        put(tmp_path / name, "text")
    fails(tmp_path, f"{start} corpus.az-en.az, corpus.az-en.en, corpus.txt{rename}")
    put(tmp_path / "train.txt", "text")  # this name is right, and something else is wrong
    fails(tmp_path, f"{start} corpus.az-en.az, corpus.az-en.en, corpus.txt, train.txt; known layouts: ")


def test_either_order_of_a_pair(tmp_path):
    for side in "az", "en":
        put(tmp_path / f"train.az-en.{side}", f"{side}\n")
    assert [(task.name, list(task.train)) for task in read_corpus(tmp_path).tasks] == [("az", [("en", "az")])]


def test_unequal_line_counts(tmp_path):
    moses(tmp_path, "en-az")
    put(tmp_path / "test.en-az.az", "one\ntwo\nthree\n")
    fails(tmp_path, f"{tmp_path / 'test.en-az.en'} has 1 lines, test.en-az.az has 3; line i of one")


def test_unequal_meta(tmp_path):
    moses(tmp_path, "en-az")
    put(tmp_path / "train.en-az.meta", "m\t1\n")
    fails(tmp_path, f"{tmp_path / 'train.en-az.meta'} has 1 lines, train.en-az.en has 2")


@pytest.mark.parametrize("line, columns", [("m", 1), ("m\t1\t2", 3), ("", 1)])
def test_malformed_meta(tmp_path, line, columns):
    moses(tmp_path, "en-az")
    put(tmp_path / "train.en-az.meta", f"m\t1\n{line}\n")
    fails(tmp_path, f"{tmp_path / 'train.en-az.meta'}, line 2: {columns} columns; must be stratum, a tab, cluster")


@pytest.mark.parametrize("bad", [b"caf\xe9", b"\xff\xfea\0", b"\xed\xa0\x80", b"\xc3"])
def test_not_utf_8(tmp_path, bad):
    moses(tmp_path, "en-az")
    put(tmp_path / "train.en-az.az", "ə\n".encode() + bad)
    fails(tmp_path, f"{tmp_path / 'train.en-az.az'}, line 2: not UTF-8")


@pytest.mark.parametrize("missing, other", [("en", "az"), ("az", "en")])
def test_a_side_is_missing(tmp_path, missing, other):
    moses(tmp_path, "en-az")
    (tmp_path / f"test.en-az.{missing}").unlink()
    fails(
        tmp_path,
        f"{tmp_path / f'test.en-az.{missing}'}: no such file, but test.en-az.{other} is there; add it or remove",
    )


@pytest.mark.parametrize("content", ["", "\n\n", "  \n\t\n"])
def test_no_training_text(tmp_path, content):
    moses(tmp_path, "en-az")
    put(tmp_path / "train.en-az.en", content)
    put(tmp_path / "train.en-az.az", content)
    fails(tmp_path, f"{tmp_path}: the training text of en-az has no pair with text on both sides")


def test_one_of_several_without_training_text(tmp_path):
    moses(tmp_path, "en-az")
    moses(tmp_path, "en-be")
    put(tmp_path / "train.en-be.be", "\n\n")
    corpus = read_corpus(tmp_path)
    assert corpus.sizes == {"az": 2}
    assert corpus.notices == ["be: left out, the training text of en-be has no pair with text on both sides"]
    put(tmp_path / "train.en-az.az", "\n\n")
    fails(tmp_path, f"{tmp_path}: no training text has a pair with text on both sides")


def test_only_test_text(tmp_path):
    moses(tmp_path, "en-az", train=0)
    fails(tmp_path, f"{tmp_path}: no training text for en-az; known layouts: ")


def test_no_pair_has_the_source(tmp_path):
    moses(tmp_path, "en_XX-az_AZ")
    fails(tmp_path, f"{tmp_path}: no pair has the source language de", source="de")
    fails(tmp_path, "(did you mean en_XX?); found en_XX-az_AZ; set data.source", source="en_xx")


def test_one_pair_needs_two_sides(tmp_path):
    put(tmp_path / "train.en", "a\n")
    fails(tmp_path, f"{tmp_path}: train.en needs exactly one other side, found nothing")
    put(tmp_path / "train.xx", "a\n")
    put(tmp_path / "train.yy", "a\n")
    fails(tmp_path, "train.en needs exactly one other side, found train.xx, train.yy; name pairs train.en-xx.xx")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused(tmp_path, monkeypatch, make, large):
    """A pipe would be waited for, and /dev/zero never ends."""
    moses(tmp_path / "corpus", "en-az")
    if large:
        monkeypatch.setattr("cats.nmt.data.corpus_files.MOST_IN_MEMORY", 1)
        monkeypatch.setenv("CATS_CACHE", str(tmp_path / "cache"))
    for name in ("train.en-az.az", "train.en-az.en", "valid.en-az.az"):
        file = tmp_path / "corpus" / name
        before = file.read_bytes()
        file.unlink()
        make(file)
        fails(tmp_path / "corpus", f"{file} is not a regular file; put a regular file in its place")
        file.rmdir() if file.is_dir() else file.unlink()
        file.write_bytes(before)


# Writing.

WRITTEN = Corpus(
    "written",
    [
        Task(
            "az",
            "en",
            "az",
            Split(["a\u2028b", " c  d"], ["\u0259", "1\rx"], [("new-pair", "t1"), ("seen", "t2")]),
            Split(["v"], ["V"]),
            Split(["t", "u"], ["T", "U"], [("new-pair", "t3"), ("new-pair", "")]),
        ),
        Task("de-be", "de", "be", Split(["x"], ["y"]), EMPTY, Split([], [], [])),
    ],
)


def test_what_is_written_is_read_back(tmp_path):
    write_corpus(WRITTEN, tmp_path / "new" / "corpus")
    english = read_corpus(tmp_path / "new" / "corpus")
    assert english.tasks == [WRITTEN.tasks[0]]
    assert english.digest() == Corpus("c", [WRITTEN.tasks[0]]).digest()
    german = read_corpus(tmp_path / "new" / "corpus", source="de")
    assert german.digest() == Corpus("c", [WRITTEN.tasks[1]]).digest()
    assert sorted(file.name for file in (tmp_path / "new" / "corpus").iterdir()) == [
        "test.en-az.az",
        "test.en-az.en",
        "test.en-az.meta",
        "train.de-be.be",
        "train.de-be.de",
        "train.en-az.az",
        "train.en-az.en",
        "train.en-az.meta",
        "valid.en-az.az",
        "valid.en-az.en",
    ]
    assert (tmp_path / "new" / "corpus" / "train.en-az.az").read_bytes() == "ə\n1\rx\n".encode()


def test_an_empty_folder_may_be_written_to(tmp_path):
    write_corpus(WRITTEN, tmp_path)
    assert read_corpus(tmp_path).sizes == {"az": 2}


def test_nothing_is_written_over(tmp_path):
    put(tmp_path / "full" / "mine", "text")
    with pytest.raises(UserError, match="full: the folder is not empty; choose another"):
        write_corpus(WRITTEN, tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]
    with pytest.raises(UserError, match="mine: not a folder; choose another"):
        write_corpus(WRITTEN, tmp_path / "full" / "mine")
    with pytest.raises(UserError, match=r"below: cannot be created \(Not a directory\)"):
        write_corpus(WRITTEN, tmp_path / "full" / "mine" / "below")


def test_line_breaks_cannot_be_written(tmp_path):
    corpus = Corpus("c", [Task("az", "en", "az", Split(["a\nb"], ["c"]), EMPTY, EMPTY)])
    with pytest.raises(ValueError, match=r"train\.en-az\.en: a line contains a line break"):
        write_corpus(corpus, tmp_path)
