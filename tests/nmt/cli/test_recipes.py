"""docs/data.md: its commands are valid, and the folders that they read have the layouts and languages that it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.cli import compare, data_inspect, data_prepare, train
from cats.nmt.cli.main import COMMANDS, DATA_COMMANDS, main
from cats.nmt.cli.options import base_config
from cats.nmt.cli.parser import Parser
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.corpus_files import read_corpus
from tests.conftest import ROOT
from tests.processes import run_command

LANGUAGES = {
    "related": ["aze", "bel", "glg", "slk", "tur", "rus", "por", "ces"],
    "diverse": ["bos", "mar", "hin", "mkd", "ell", "bul", "fra", "kor"],
}
COLUMNS = [
    "az",
    "be",
    "gl",
    "sk",
    "tr",
    "ru",
    "pt-br",
    "cs",
    "bs",
    "mr",
    "hi",
    "mk",
    "el",
    "bg",
    "fr",
    "ko",
    "pt",
    "de",
]
ML50 = ["kk_KZ", "vi_VN", "tr_TR", "ja_XX", "nl_XX", "it_IT", "ar_AR", "ro_RO", "hi_IN", "de_DE", "fr_XX"]


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def ted(data: Path) -> None:
    """The archive of MultiDDS: a folder for each language, and dev for valid."""
    for language in LANGUAGES["related"] + LANGUAGES["diverse"]:
        for split in ("train", "dev", "test"):
            for side in (language, "eng"):
                put(data / f"ted/{language}_eng/ted-{split}.orig.{side}", f"{side} {split}")


def ted_table(data: Path) -> None:
    """The tables of Qi et al.: a column for each language; some have no text in a line."""
    for split in ("train", "dev", "test"):
        lines = ["\t".join(["talk_name", "en", *COLUMNS, "calv"])]
        lines.append("\t".join(["a_talk", "en text", *(f"{name} {split}" for name in COLUMNS), "__NULL__"]))
        put(data / f"ted-table/all_talks_{split}.tsv", "\n".join(lines))


def ml50(data: Path) -> None:
    """What fairseq's scripts leave: English is the second language, or the first one. Some pairs are there twice."""
    twice = [f"{split}.en_XX-kk_KZ" for split in ("train", "valid", "test")]
    for kind in ("raw", "dedup", "clean"):
        for language in ML50:
            pair = f"en_XX-{language}" if language == "ar_AR" else f"{language}-en_XX"
            for split in ("train", "valid", "test"):
                for side in (language, "en_XX"):
                    put(data / f"ML50/{kind}/{split}.{pair}.{side}", f"{side} {split}")
        for name in [*twice, "valid.en_XX-de_DE", "test.en_XX-de_DE"]:
            for side in name.partition(".")[2].split("-"):
                put(data / f"ML50/{kind}/{name}.{side}", f"{side} of the other order")


def opus(data: Path) -> None:
    """The archive of OPUS-100: pairs in alphabetical order, some without dev and test."""
    for pair, splits in {"af-en": "train dev test", "en-fr": "train dev test", "an-en": "train"}.items():
        for split in splits.split():
            for side in pair.split("-"):
                put(data / f"opus-100-corpus/v1.0/supervised/{pair}/opus.{pair}-{split}.{side}", f"{side} {split}")
    for side in ("de", "fr"):
        put(data / f"opus-100-corpus/v1.0/zero-shot/de-fr/opus.de-fr-test.{side}", side)


FOLDERS: dict[str, Callable[[Path], None]] = {
    "data/ted": ted,
    "data/ted-table": ted_table,
    "data/ML50": ml50,
    "data/opus-100-corpus": opus,
}


def commands() -> list[list[str]]:
    """The words of every command of cats in docs/data.md."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("cats ")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small copy of every corpus."""
    for make in FOLDERS.values():
        make(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_valid_and_names_tasks_of_its_corpus(here: Path) -> None:
    found, read = [], set()
    for words in commands():
        module = DATA_COMMANDS[words[1]] if words[0] == "data" else COMMANDS[words[0]]
        parser = Parser("cats", "")
        module.add_arguments(parser)
        args = parser.parse(words[2 if words[0] == "data" else 1 :])
        found.append(module)
        if module is data_inspect:
            read.add(args.dir)
            continue
        if module is compare:
            runs = compare.planned(args)
            assert len({run.seed for run in runs}) == 3 and len({run.method for run in runs}) >= 3
            config = runs[0].config
        elif module is train:
            config = train.configured(args)
        else:
            assert module is data_prepare
            config = apply_overrides(base_config(args), [f"data.path={args.dir}", *(args.overrides or [])])
        path = Path(config.data.path).absolute().relative_to(here).as_posix()
        if path.startswith("prepared/"):
            continue
        read.add(path)
        corpus = read_corpus(path, direction=config.data.direction, tasks=list(config.data.tasks))
        if config.data.tasks:
            assert {task.name for task in corpus.tasks} == {*config.data.tasks}
            assert all(len(task.valid) and len(task.test) for task in corpus.tasks)
    assert {*found} == {data_inspect, data_prepare, train, compare} and read == FOLDERS.keys()


def test_every_corpus_can_be_inspected(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands():
        if words[:2] == ["data", "inspect"]:
            assert main(words) == 0
            assert "training pairs; entropy" in capsys.readouterr().out


def test_links_to_the_corpora_of_the_papers(here: Path) -> None:
    """docs/papers.md links the languages of each set, and leaves out what else is in the folders of docs/data.md."""
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "ln -s" in b)
    *links, last = block.splitlines()
    assert last.startswith("python -m bench.papers")
    done = run_command(["bash", "-ec", "\n".join(links)], 60, cwd=here)
    assert done.returncode == 0, done.stderr
    for name, languages in {**LANGUAGES, "wmt10": ML50[:10], "opus100": ["af", "an", "fr"]}.items():
        folder = name if name in ("wmt10", "opus100") else f"ted-{name}"
        corpus = read_corpus(f"corpora/{folder}", direction="one-to-many", tasks=[])
        assert sorted(task.name for task in corpus.tasks) == sorted(languages)
