"""The files in hyp/ and the printed signatures are enough to compute every printed score again with sacreBLEU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.files import read_output
from cats.nmt.scoring import evaluate
from cats.nmt.scoring.report import markdown
from cats.nmt.scoring.scores import Cell, Scores, read_scores
from cats.nmt.training.trainer import train
from tests.nmt.cli.common import TINY

SOURCE = [
    "one two",
    "three\rfour",
    "five\u2028six",
    "seven eight nine",
    "ten",
    "one\x85three",
    "two\r\rfour",
    "six ten",
]
TARGET = [
    "Eins zwei.",
    "Drei\rvier!",
    "fünf\u2028sechs",
    "sieben acht neun",
    "zehn rote alte Boote am\rFluss",
    "eins\x85drei",
    "\rzwei vier",
    "a b",
]
STRATA = ["new-pair", "seen", "new-pair", "seen", "new-pair", "new-pair", "seen", "new-pair"]
# Some lines are right, some are empty, and some have other words, or whitespace that is no space.
FOUND = [
    "Eins zwei.",
    "drei  vier",
    "",
    "sieben acht  ",
    "Zehn rote alte Boote am Fluss",
    "eins\x85drei",
    "zwei vier",
    "sechs \u2028zehn",
]

# Several command lines in one process, to save the time to start more.
SACREBLEU = """
import json, sys
from sacrebleu.sacrebleu import main
streams = []
for words in json.load(open(sys.argv[1])):
    streams.append((sys.stdin, sys.stdout, sys.stderr))  # main() opens them anew, and the old ones must stay open
    sys.argv = ["sacrebleu", *words]
    main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose "model" translates as FOUND says. Language th has another tokenizer than xa."""
    folder = tmp_path_factory.mktemp("again")
    meta = [(stratum, str(i)) for i, stratum in enumerate(STRATA)]
    test = Split(SOURCE, TARGET, meta)
    tasks = [Task(name, "en", name, Split(SOURCE * 3, TARGET * 3), test, test) for name in ("xa", "th")]
    write_corpus(Corpus("toy", tasks), folder / "toy")
    # Most lines have more pieces than decode.max_length.
    settings = [f"data.path={folder / 'toy'}", *TINY, "train.steps=2", "train.validate_every=2", "decode.max_length=4"]
    train(apply_overrides(Config(), settings), folder / "run", quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.decode, "translate", lambda *_, limit, task: list(FOUND))
        evaluate.evaluate(folder / "run", quiet=True)
    markdown.write(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def scores(run: Path) -> Scores:
    return read_scores(run)


def test_every_file_has_the_lines_of_the_test_set(run: Path) -> None:
    for task in ("xa", "th"):
        for suffix in ("txt", "src", "ref", "nll", "stratum", "nearest"):
            path = run / "hyp" / f"test.{task}.{suffix}"
            with path.open(encoding="utf-8") as file:  # also for programs that take CR for the end of a line
                assert len(list(file)) == len(TARGET), path
        assert read_output(run / "hyp" / f"test.{task}.stratum") == STRATA
        assert read_output(run / "hyp" / f"test.{task}.ref") == [line.replace("\r", " ") for line in TARGET]


def test_every_score_can_be_computed_again(run: Path, scores: Scores, tmp_path: Path) -> None:
    systems = [
        (stratum, name, suffix, system.tasks[name])
        for stratum, both in scores.strata.items()
        for suffix, system in (("txt", both.model), ("nearest", both.nearest_neighbour))
        for name in ("xa", "th")
    ]
    assert {stratum for stratum, *_ in systems} == {"new-pair", "seen"} and scores.headline == "new-pair"
    for name in ("xa", "th"):
        assert scores.model.tasks[name].quality == scores.strata["new-pair"].model.tasks[name].quality
    commands, expected = [], []
    for stratum, name, suffix, cell in systems:
        for part in ("ref", suffix):
            lines = read_output(run / "hyp" / f"test.{name}.{part}")
            marked = zip(lines, read_output(run / "hyp" / f"test.{name}.stratum"), strict=True)
            text = "".join(f"{line}\n" for line, mark in marked if mark == stratum)
            (tmp_path / f"{stratum}.{name}.{part}").write_text(text, encoding="utf-8", newline="\n")
        for metric, by_task in scores.signatures.items():
            files = [str(tmp_path / f"{stratum}.{name}.{part}") for part in ("ref", suffix)]
            if signature := by_task.get(name):
                commands.append([files[0], "-i", files[1], "-w", "9", *options(signature)])
                expected.append((signature, cell.get(metric)))
    assert len(commands) >= 3 * 8
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    call = [sys.executable, "-c", SACREBLEU, str(tmp_path / "commands.json")]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    found = [json.loads(each) for each in re.findall(r"^\{.*?^\}", done.stdout, re.MULTILINE | re.DOTALL)]
    assert [each["signature"] for each in found] == [signature for signature, _ in expected]
    for each, (signature, score) in zip(found, expected, strict=True):
        assert each["score"] == pytest.approx(score, abs=1e-8), signature
    assert 0 < expected[0][1] < 100


def options(signature: str) -> list[str]:
    """The options of sacreBLEU's command line that give this signature."""
    facts = dict(part.split(":") for part in signature.split("|"))
    if "tok" in facts:
        return ["-m", "bleu", "--tokenize", facts["tok"]]
    return ["-m", "chrf", "--chrf-word-order", facts["nw"]]


@pytest.mark.skipif(sys.platform == "win32", reason="commands for bash")
def test_the_commands_of_the_report(run: Path, scores: Scores) -> None:
    text = (run / "report.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block.count("\n") == 3
    script = f'sacrebleu() {{ "{sys.executable}" -m sacrebleu "$@" -w 1; }}\n{block}'
    done = subprocess.run(["bash", "-c", script], cwd=run, capture_output=True, text=True, check=True)
    first = scores.model.tasks[scores.scored_tasks[0]]
    assert [each["score"] for each in json.loads(done.stdout)] == [shown(first, "bleu"), shown(first, "chrf")]
    assert f"| {shown(first, 'bleu')} | {shown(first, 'chrf')} |" in text


def shown(cell: Cell, metric: str) -> Any:
    value = cell.get(metric)
    assert value is not None
    return round(value, 1)
