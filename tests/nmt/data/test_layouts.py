"""Layouts of public corpora, each as a small folder."""

import json
import re
from pathlib import Path

import pytest

from cats.nmt.data.corpus_files import read_corpus
from cats.nmt.errors import UserError


def put(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def texts(folder: Path, **options: str) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """{task: {split: [(source, target), ..]}} of a folder, without empty splits."""
    return {
        task.name: {s: list(getattr(task, s)) for s in ("train", "valid", "test") if len(getattr(task, s))}
        for task in read_corpus(folder, **options).tasks
    }


def fails(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_corpus(folder)
    assert "\n" not in str(error.value)


def test_unread_files_are_reported(tmp_path):
    for name in "train.en-az.en", "train.en-az.az", "README.md":
        put(tmp_path / name, "a")
    known = read_corpus(tmp_path).notices
    put(tmp_path / "notes.txt", "b")
    assert set(read_corpus(tmp_path).notices) - set(known) == {"1 file not read: notes.txt"}
    for name in "train.tsv", "train.ru", "b.gz", "c.gz", "d.gz":
        put(tmp_path / name, "b")
    assert "6 files not read: b.gz, c.gz, d.gz, notes.txt, train.ru, .." in read_corpus(tmp_path).notices


@pytest.mark.parametrize("middle", [".orig", ""])
@pytest.mark.parametrize("below", ["", "ted"])
def test_ted_8(tmp_path, middle, below):
    for language in ("aze", "bel"):
        for split in ("train", "dev", "test"):
            for side in (language, "eng"):
                put(tmp_path / below / f"{language}_eng" / f"ted-{split}{middle}.{side}", f"{side} {split}")
    found = texts(tmp_path)
    assert list(found) == ["aze", "bel"]
    assert found["bel"] == {
        "train": [("eng train", "bel train")],
        "valid": [("eng dev", "bel dev")],
        "test": [("eng test", "bel test")],
    }
    (back, _) = read_corpus(tmp_path, direction="many-to-one").tasks
    assert (back.name, list(back.test)) == ("aze-eng", [("aze test", "eng test")])


def test_ted_8_under_plain_names(tmp_path):
    for side in ("aze", "eng"):
        put(tmp_path / "aze_eng" / f"train.{side}", side)
        put(tmp_path / "aze_eng" / f"dev.{side}", side)
    assert texts(tmp_path) == {"aze": {"train": [("eng", "aze")], "valid": [("eng", "aze")]}}


def test_ted_8_cut_into_pieces(tmp_path):
    folder = tmp_path / "aze_eng"
    put(folder / "ted-train.orig.spm8000.aze", "\u2581sal am \u2581dünya")
    put(folder / "ted-train.orig.spm8000.eng", "\u2581hel lo \u2581world")
    put(folder / "ted-test.orig.aze", "salam")
    put(folder / "ted-test.orig.eng", "hello")
    put(folder / "ted-test.orig.spm8000.aze", "never read")
    put(folder / "ted-test.orig.spm8000.eng", "never read")
    put(folder / "spm8000.orig.aze.model", "no text")
    assert texts(tmp_path) == {"aze": {"train": [("hello world", "salam dünya")], "test": [("hello", "salam")]}}


def test_ml50_takes_the_cleanest(tmp_path):
    for kind in ("raw", "dedup", "clean"):
        for side in ("en_XX", "de_DE"):
            put(tmp_path / "ML50" / kind / f"train.en_XX-de_DE.{side}", f"{kind} {side}")
    assert texts(tmp_path) == texts(tmp_path / "ML50") == {"de_DE": {"train": [("clean en_XX", "clean de_DE")]}}
    assert read_corpus(tmp_path).notices[0] == "read from ML50/clean"
    assert texts(tmp_path / "ML50" / "raw") == {"de_DE": {"train": [("raw en_XX", "raw de_DE")]}}


def test_a_table_with_a_column_per_language(tmp_path):
    put(
        tmp_path / "all_talks_train.tsv",
        "talk_name\ten\taz\tcal\tpt-br",
        'one\t"quoted\tNA\t__NULL__\t__NULL__',
        "one\tb\t__NULL__\t__NULL__\tB",
        "two\tc\tC\t__NULL__\tC'",
    )
    put(tmp_path / "all_talks_dev.tsv", "talk_name\ten\tpt-br", "three\td\tD")
    found = texts(tmp_path)
    assert found == {
        "az": {"train": [('"quoted', "NA"), ("c", "C")]},
        "pt-br": {"train": [("b", "B"), ("c", "C'")], "valid": [("d", "D")]},
    }
    assert texts(tmp_path, source="az", direction="many-to-one")["pt-br-az"] == {"train": [("C'", "C")]}
    left_out = "cal: left out, the training text of cal-en has no pair with text on both sides"
    assert left_out in read_corpus(tmp_path).notices


def test_a_table_of_pairs(tmp_path):
    header = "tgt_lang\tsrc_lang\tid\tsrc\ttgt"
    put(tmp_path / "train.tsv", header, "az\ten\t1\ta\tA", "en\taz\t2\tB\tb", "tr\ten\t3\tc\tC")
    put(tmp_path / "dev.tsv", header, "tr\ten\t4\td\tD")
    assert texts(tmp_path) == {
        "az": {"train": [("a", "A"), ("b", "B")]},
        "tr": {"train": [("c", "C")], "valid": [("d", "D")]},
    }


def test_a_table_a_pair(tmp_path):
    put(tmp_path / "train.en-az.tsv", "a\tA", "b\tB")
    put(tmp_path / "train.en-zh-Hans.tsv", "c\tC")
    put(tmp_path / "test.en-az.tsv", "c\tC")
    assert texts(tmp_path) == {
        "az": {"train": [("a", "A"), ("b", "B")], "test": [("c", "C")]},
        "zh-Hans": {"train": [("c", "C")]},
    }


def test_json_lines(tmp_path):
    put(
        tmp_path / "train.jsonl",
        json.dumps({"src": "a", "tgt": "A", "src_lang": "en", "tgt_lang": "az"}),
        json.dumps({"src_lang": "az", "tgt_lang": "en", "src": "B", "tgt": "b\nb"}),
        json.dumps({"translation": {"en": "c\u2028", "tr": "C"}}),
    )
    put(tmp_path / "test.jsonl", json.dumps({"id": 1, "translation": {"tr": "D", "en": "d"}}))
    assert texts(tmp_path) == {
        "az": {"train": [("a", "A"), ("b b", "B")]},
        "tr": {"train": [("c\u2028", "C")], "test": [("d", "D")]},
    }


def test_json_lines_a_folder_a_pair(tmp_path):
    for pair in ("az-en", "en-tr"):
        first, second = pair.split("-")
        put(tmp_path / pair / "train.jsonl", json.dumps({"translation": {first: "x", second: "y"}}))
    assert texts(tmp_path) == {"az": {"train": [("y", "x")]}, "tr": {"train": [("x", "y")]}}


@pytest.mark.parametrize(
    "name, lines, message",
    [
        ("train.tsv", ["en\taz", "a\tA", "b"], "train.tsv, line 3: 1 columns instead of 2, separated by tabs"),
        ("train.tsv", ["hello world", "a"], "train.tsv: its first line must name the columns: languages, such as en"),
        ("train.tsv", [], "train.tsv: its first line must name the columns"),
        ("train.en-az.tsv", ["a\tA\t1"], "train.en-az.tsv, line 1: 3 columns instead of 2"),
        ("train.jsonl", ["{}"], 'train.jsonl, line 1: must be {"src": .., "tgt": ..'),
        ("train.jsonl", ['{"translation": {"en": "a", "az": 1}}'], "train.jsonl, line 1: must be"),
        ("train.jsonl", ['{"translation": {"en": "a"}}'], "train.jsonl, line 1: must be"),
        ("train.jsonl", ["a b"], "train.jsonl, line 1: not JSON"),
        ("train.jsonl", ["[" * 100_000], "train.jsonl, line 1: not JSON"),
    ],
)
def test_malformed_tables(tmp_path, name, lines, message):
    put(tmp_path / name, *lines)
    fails(tmp_path, f"{tmp_path}/{message}")


def test_half_of_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"translation": {"en": "a \\ud83d\\r\\n b", "az": "A"}}\n')
    assert texts(tmp_path) == {"az": {"train": [("a ?  b", "A")]}}


@pytest.mark.parametrize("code", ["../../x", "/tmp/x", "a b", "zh/Hans", "a\\u0000", "{", ""])
def test_invalid_language_codes_are_refused(tmp_path, code):
    (tmp_path / "train.jsonl").write_text(f'{{"src": "a", "tgt": "b", "src_lang": "en", "tgt_lang": "{code}"}}\n')
    fails(tmp_path, f"{tmp_path / 'train.jsonl'}: ")


def test_text_that_exists_twice_is_reported(tmp_path):
    for pair in ("az-en", "en-az"):
        put(tmp_path / pair / "train.jsonl", json.dumps({"translation": {"en": pair, "az": "A"}}))
    put(tmp_path / "az-en" / "validation.jsonl", json.dumps({"translation": {"en": "v", "az": "V"}}))
    assert texts(tmp_path) == {"az": {"train": [("az-en", "A")], "valid": [("v", "V")]}}
    left, kept = tmp_path / "en-az" / "train.jsonl", tmp_path / "az-en" / "train.jsonl"
    assert read_corpus(tmp_path).notices[0] == f"az-en: {left} is left out, {kept} is used"


def test_utf_16_is_reported(tmp_path):
    put(tmp_path / "train.en", "a")
    (tmp_path / "train.xx").write_bytes("a\n".encode("utf-16"))
    fails(tmp_path, f"{tmp_path / 'train.xx'}, line 1: UTF-16; convert the file")
