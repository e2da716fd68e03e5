"""The command line: what each command does, and one line and status 2 for every kind of bad input."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

import torch

import cats
from cats import info
from cats.nmt.cli import main as cli
from cats.nmt.config.schema import FIELDS, Config, replace_settings
from cats.nmt.config.toml import read_config
from cats.nmt.data.corpus import Corpus, Split, Task, read_corpus, write_corpus
from cats.nmt.errors import UserError
from cats.nmt.scoring.evaluate import evaluate
from cats.nmt.training import checkpoint

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel"]
TINY = [
    "tokenizer.vocab_size=70",
    "model.d_model=16",
    "model.heads=2",
    "model.ffn=32",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "train.steps=20",
    "train.warmup=5",
    "train.validate_every=10",
    "train.threads=1",
    "sampling.batch_tokens=100",
    "decode.beam=2",
]
SET = [argument for setting in TINY for argument in ("--set", setting)]


def split(count: int, seed: int) -> Split:
    chooser = random.Random(seed)
    source = [" ".join(chooser.choices(WORDS, k=chooser.randint(1, 6))) for _ in range(count)]
    return Split(source, [line.upper() for line in source])


def write_toy(path: Path) -> Path:
    sizes = {"az": 60, "be": 20}
    tasks = [Task(name, "en", name, split(n, n), split(8, 5), split(10, 6)) for name, n in sizes.items()]
    write_corpus(Corpus("toy", tasks), path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus toy/ and the run run/, made by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    write_toy(folder / "toy")
    arguments = ["train", "--data", str(folder / "toy"), "--out", str(folder / "run"), "--seed", "3", "--quiet", *SET]
    assert cli.main(arguments) == 0
    return folder


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; the message, which must be all there is."""

    def run(*arguments: Any) -> str:
        capfd.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("cats: ") and err.count("\n") == 1 and err.endswith("\n"), (out, err)
        return err.removeprefix("cats: ").rstrip("\n")

    return run


# ---- help, versions, misuse


def test_help_imports_nothing_heavy_and_the_module_is_the_command(root: Path) -> None:
    code = (
        "import runpy, sys; from cats.nmt.cli.main import main; main(['-h']), main(['data', '-h']);"
        "print(*sys.modules, file=sys.stderr);"
        "sys.argv[1:] = ['--version']; runpy.run_module('cats', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "examples:" in done.stdout and "data inspect" in done.stdout
    heavy = {"sentencepiece", "sacrebleu", "matplotlib", "babel", "cats.nmt.training.run", "cats.nmt.training.trainer"}
    assert heavy.isdisjoint(done.stderr.split())
    for command in ("train", "evaluate", "translate", "average", "export", "significance", "compare", "data", "info"):
        assert f"\n  {command} " in done.stdout
    assert done.stdout.endswith(f"\ncats {cats.__version__}\n")


@pytest.mark.parametrize("command", [*cli.COMMANDS, *(f"data {name}" for name in cli.DATA_COMMANDS)])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f"usage: cats {command}")
    assert all(ord(character) < 128 for character in text)  # readable in every locale


def test_train_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in FIELDS)
    assert "cats train --resume runs/NAME" in text


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_no_command_prints_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian' (did you mean train?); see cats --help"),
        (["dtaa"], "unknown command 'dtaa' (did you mean data?); see cats --help"),
        (["data", "clrd"], "unknown command 'clrd' (did you mean cldr?); see cats data --help"),
        (["--versoin"], "unknown option '--versoin'; see cats --help"),
        (["train", "--stesp=3"], "unknown option '--stesp' (did you mean --steps?); see cats train --help"),
        (["train", "--step", "3"], "unknown option '--step' (did you mean --steps?); see cats train --help"),
        (["train", "here"], "unexpected argument 'here'; see cats train --help"),
        (["train", "--seed"], "argument --seed: expected one argument; see cats train --help"),
        (
            ["evaluate", "--spilt", "valid", "run"],
            "unknown option '--spilt' (did you mean --split?); see cats evaluate --help",
        ),
        (["translate", "run", "--too", "az"], "unknown option '--too' (did you mean --to?); see cats translate --help"),
        (["compare", "--data", "absent"], "{folder}/absent: no such folder; give a folder of parallel text"),
        (["train", "--out", "a\udcff"], "'a\\udcff' is not valid UTF-8; choose another --out"),
        (["translate", "run"], "the following arguments are required: --to; see cats translate --help"),
        (["train", "--steps", "many"], "train.steps needs a whole number, not 'many'"),
        (["train", "--seed", "-1"], "train.seed must be between 0 and 2**32 - 1, not -1"),
        (["train", "--temperature", "0"], "sampling.temperature must be above 0 (inf is allowed), not 0.0"),
        (["train", "--method", "Cats"], "method.name must be one of cats, static, not 'Cats' (did you mean cats?)"),
        (["train", "--set", "lr=3"], "unknown setting 'lr' (did you mean train.lr?)"),
        (["train", "--config", "absent.toml"], "cannot read the configuration absent.toml: No such file or directory"),
        (["train", "--resume", "absent"], "absent is no run directory: it holds no config.toml"),
        (["evaluate", "absent"], "absent is no run directory: it holds no config.toml"),
        (
            ["data", "cldr", "--out", "x", "--sizes", "tde"],
            "data.sizes must be one of ted, wmt, not 'tde' (did you mean ted?)",
        ),
        (["data", "inspect", "absent"], "{folder}/absent: no such folder; give a folder of parallel text"),
    ],
)
def test_misuse(
    arguments: list[str], message: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(*arguments) == message.replace("{folder}", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# ---- train


def test_a_run_directory_is_complete(trained: Path) -> None:
    run = trained / "run"
    assert {path.name for path in run.iterdir()} == {
        "alpha.png",
        "checkpoints",
        "config.toml",
        "hyp",
        "loss.png",
        "metrics.jsonl",
        "report.md",
        "scores.csv",
        "scores.json",
        "tokenizer.model",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.pt", "last.pt", "previous.pt"}
    kept = read_config(run / "config.toml")
    assert (kept.train.seed, kept.train.steps, kept.data.path) == (3, 20, str(trained / "toy"))
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    assert {"bleu", "chrf", "nll", "pairs"} <= scores["languages"]["az"].keys()
    assert list(scores["groups"]) == ["all", "lores", "hires"] and "groups" in scores["lookup"]


def test_names_under_runs_and_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_toy(tmp_path / "toy")
    others = [argument for setting in TINY if "steps" not in setting for argument in ("--set", setting)]
    arguments = ["train", "--data", "toy", "--method", "static", "--temperature", "inf", "--steps", "10", *others]
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    line = r"update 10 of 10: loss \d\.\d{3}, [\d,]+ tokens/s, validation NLL \d\.\d{3}, 0 s left\n"
    assert re.fullmatch(line, err), err  # no progress bar where nobody watches
    assert "| **LoRes** |" in out and "lookup" in out and "runs/toy-static-Tinf-seed1: report.md" in out
    assert "cats translate runs/toy-static-Tinf-seed1 --to az" in out
    kept = read_config(tmp_path / "runs" / "toy-static-Tinf-seed1" / "config.toml")
    assert (kept.method.name, kept.sampling.temperature, kept.train.steps) == ("static", float("inf"), 10)

    assert cli._new_run(None, kept) == Path("runs/toy-static-Tinf-seed1-2")
    Path("runs/toy-static-Tinf-seed1-2").mkdir()
    assert cli._new_run(None, kept) == Path("runs/toy-static-Tinf-seed1-3")
    assert cli._new_run(None, Config()) == Path("runs/cldr-related-ted-cats-seed1")


def test_presets(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "unknown preset 'opus-100' (did you mean opus100?); there are base" in refused(
        "train", "--preset", "opus-100"
    )
    message = refused("train", "--resume", tmp_path, "--preset", "ted")
    assert message.endswith("leave out --preset, or start a new run")
    (tmp_path / "mine.toml").write_text("[train]\nlr = 1e-3\nsteps = 7\n")
    parser = cli.Parser("cats train", "")
    cli._train_arguments(parser)
    given = ["--preset", "ted", "--config", str(tmp_path / "mine.toml"), "--steps", "9", "--set", "model.heads=8"]
    found = cli._configured(parser.parse(given))
    assert (found.model.ffn, found.train.lr, found.train.steps, found.model.heads) == (1024, 1e-3, 9, 8)


def test_prepared_with_the_settings_of_a_file(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The line that it prints is a command that works."""
    (tmp_path / "mine.toml").write_text("[tokenizer]\nvocab_size = 70\nper_language = true\n")
    given = ["--preset", "tiny", "--config", str(tmp_path / "mine.toml"), "--set", "model.max_length=50"]
    out = tmp_path / "prepared"
    assert cli.main(["data", "prepare", str(trained / "toy"), "--out", str(out), "--processes", "1", *given]) == 0
    line = capfd.readouterr().out.splitlines()[-1]
    assert line == f"Train on it: cats train --data {out} {' '.join(given)}"
    small = ["--quiet", "--steps", "2", "--set", "model.d_model=32", "--out", str(tmp_path / "run")]
    assert cli.main([*line.partition("cats ")[2].split(), *small]) == 0
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["steps"] == 2


def test_an_existing_directory_is_left_alone(trained: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    toy, run = trained / "toy", trained / "run"
    before = sorted(path.name for path in run.rglob("*"))
    go_on = f"; choose another --out, or go on with: cats train --resume {run}"
    assert refused("train", "--data", toy, "--out", run) == f"{run} exists already{go_on}"
    assert refused("train", "--data", toy, "--out", toy) == f"{toy} exists already; choose another --out"
    assert refused("data", "cldr", "--out", toy) == f"{toy} is not empty; choose another --out"
    (tmp_path / "file").touch()
    assert refused("train", "--data", toy, "--out", tmp_path / "file").startswith(f"{tmp_path / 'file'} exists already")
    assert sorted(path.name for path in run.rglob("*")) == before


def test_bad_corpora_leave_no_run_directory(tmp_path: Path, refused: Callable[..., str]) -> None:
    toy, run = write_toy(tmp_path / "toy"), tmp_path / "run"
    with (toy / "train.en-az.az").open("ab") as file:
        file.write(b"one more\n")
    message = refused("train", "--data", toy, "--out", run)
    assert "train.en-az.en" in message and "60 lines" in message and "61" in message
    (toy / "train.en-az.az").write_bytes(b"fine\n\xff\n")
    assert "train.en-az.az, line 2: not UTF-8" in refused("train", "--data", toy, "--out", run)
    assert "no such folder" in refused("train", "--data", tmp_path / "tyo", "--out", run)
    (toy / "train.en-az.az").write_bytes((toy / "train.en-az.en").read_bytes())
    message = "evaluate: unknown task azz (did you mean az?); known: az, be"
    assert refused("train", "--data", toy, "--out", run, "--set", "evaluate.lores=azz") == message
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refused("train", "--data", tmp_path / "empty", "--out", run)
    assert not run.exists()


def test_resume_keeps_the_settings(trained: Path, refused: Callable[..., str]) -> None:
    for option in (["--steps", "3"], ["--data", "x"], ["--set", "train.lr=1"], ["--out", "x"]):
        expected = f"--resume keeps the settings of the run: leave out {option[0]}, or start a new run"
        assert refused("train", "--resume", trained / "run", *option) == expected


def test_a_config_file_with_options_beside_it(trained: Path) -> None:
    parser = cli.Parser("cats train", "")
    cli._train_arguments(parser)
    file = str(trained / "run" / "config.toml")
    chosen = cli._configured(
        parser.parse(["--config", file, "--seed", "9", "--set", "train.seed=10", "--method", "static"])
    )
    kept = read_config(trained / "run" / "config.toml")
    assert chosen == replace_settings(kept, {"train.seed": 10, "method.name": "static"})


def test_a_run_starts_from_another_with_its_shape(
    trained: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--init-from", trained / "run", "--data", trained / "toy", "--out", run, "--quiet"]
    few = ["--steps", "2", "--set", "sampling.batch_tokens=100"]
    assert cli.main([str(argument) for argument in [*arguments, *few]]) == 0
    kept = read_config(run / "config.toml")
    assert kept.train.init_from == str(trained / "run") and kept.train.steps == 2
    assert kept.model == read_config(trained / "run" / "config.toml").model != Config().model
    assert "has model.ffn = 32, not 64" in refused(*arguments[:-3], "--out", run / "x", "--set", "model.ffn=64")
    assert "is no run directory" in refused("train", "--init-from", tmp_path / "absent")
    assert "leave out --init-from" in refused("train", "--resume", run, "--init-from", run)


def test_interrupt_then_resume(tmp_path: Path, root: Path) -> None:
    write_toy(tmp_path / "toy")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "cats",
        "train",
        "--data",
        "toy",
        "--out",
        "run",
        *SET,
        "--set",
        "train.steps=100000",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "checkpoints" / "best.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "to go on: cats train --resume run" in err and "Traceback" not in err
    text = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]
    (tmp_path / "run" / "config.toml").write_text(
        text.replace("steps = 100000", f"steps = {last + 30}"), encoding="utf-8"
    )
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert (tmp_path / "run" / "report.md").exists()


# ---- evaluate, translate


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def test_evaluate_again_gives_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    (run / "scores.json").unlink(), (run / "report.md").unlink()
    assert cli.main(["evaluate", str(run)]) == 0
    assert json.loads((run / "scores.json").read_text(encoding="utf-8")) == before
    assert (run / "report.md").exists() and "| **All**" in capsys.readouterr().out
    assert cli.main(["evaluate", str(run), "--split", "valid"]) == 0
    assert (run / "scores.valid.json").exists()


def test_average_of_the_newest_models(
    trained: Path, tmp_path: Path, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    run, more = tmp_path / "run", ["--set", "train.steps=30", "--set", "train.keep=2"]
    assert cli.main(["train", "--data", str(trained / "toy"), "--out", str(run), "--quiet", *SET, *more]) == 0
    folder = run / "checkpoints"
    assert cli.main(["average", str(run)]) == 0
    assert capfd.readouterr().out == f"{folder / 'average.pt'}: the mean of step-20.pt, step-30.pt\n"
    one, other, mean = (checkpoint.load(folder / f"{n}.pt")["model"] for n in ("step-20", "step-30", "average"))
    for name, tensor in mean.items():
        expected = ((one[name].double() + other[name].double()) / 2).to(tensor.dtype)
        assert tensor.dtype == one[name].dtype and torch.equal(tensor, expected), name

    assert cli.main(["evaluate", str(run), "--checkpoint", "average"]) == 0
    names = ("average", "step-30", "last")
    scores = {name: evaluate(run, checkpoint=name, quiet=True) for name in names}
    assert [scores[name]["checkpoint"] for name in names] == list(names)
    assert scores["step-30"]["languages"] == scores["last"]["languages"] != scores["average"]["languages"]

    capfd.readouterr()
    assert cli.main(["evaluate", str(run), "--checkpoint", "best", "last"]) == 0
    assert "| BLEU best | BLEU last |" in capfd.readouterr().out
    assert "| BLEU best | BLEU average | BLEU last |" in (run / "report.md").read_text(encoding="utf-8")

    assert cli.main(["average", str(run), "--last", "1"]) == 0
    assert all(torch.equal(t, other[n]) for n, t in checkpoint.load(folder / "average.pt")["model"].items())
    files = [str(folder / "best.pt"), str(folder / "step-20.pt")]
    assert cli.main(["average", str(run), "--checkpoints", *files]) == 0

    assert refused("average", run, "--last", "3") == f"--last 3: {run} has kept 2 models"
    assert "leave it out" in refused("average", run, "--last", "1", "--checkpoints", files[0])
    strange = trained / "run" / "checkpoints" / "best.pt"
    state = checkpoint.load(strange)
    checkpoint.save(tmp_path / "other.pt", {**state, "model": {n: t[:1] for n, t in state["model"].items()}})
    assert "is of another model or corpus" in refused("average", run, "--checkpoints", files[0], tmp_path / "other.pt")
    assert "cannot read the checkpoint" in refused("average", run, "--checkpoints", tmp_path / "absent.pt")
    checkpoint.save(tmp_path / "empty.pt", {})
    assert "holds no model" in refused("average", run, "--checkpoints", tmp_path / "empty.pt")
    assert "train.keep=5" in refused("average", trained / "run")
    assert "is no run directory" in refused("average", tmp_path / "absent")
    message = refused("translate", run, "--to", "az", "--checkpoint", "lst")
    there = "average, best, last, previous, step-20, step-30"
    assert message == f"{run} holds no checkpoint 'lst' (did you mean last?); there are {there}"


class Input:
    """Standard input as a terminal or a slow pipe gives it: some bytes at a time."""

    def __init__(self, *chunks: bytes) -> None:
        self.buffer, self.chunks = self, list(chunks)

    def read1(self, _size: int) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""


def test_translate_gives_the_test_translations(
    run: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((trained / "toy" / "test.en-az.en").read_bytes())))
    assert cli.main(["translate", str(run), "--to", "az"]) == 0
    assert capfdbinary.readouterr().out == (run / "hyp" / "test.az.txt").read_bytes()
    assert capfdbinary.readouterr().err == b""


def test_translate_files(run: Path, trained: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    source, target = trained / "toy" / "test.en-az.en", tmp_path / "out.txt"
    assert cli.main(["translate", str(run), "--to", "az", "--input", str(source), "--output", str(target)]) == 0
    assert target.read_bytes() == (run / "hyp" / "test.az.txt").read_bytes()
    assert capfdbinary.readouterr() == (b"", b"")
    source = tmp_path / "in.txt"
    source.write_bytes(b"alpha\n\xff\n")
    assert cli.main(["translate", str(run), "--to", "az", "--input", str(source), "--output", str(target)]) == 2
    assert b"in.txt, line 2, byte 1: not UTF-8" in capfdbinary.readouterr().err
    assert target.read_bytes() == (run / "hyp" / "test.az.txt").read_bytes()  # the old file, not half a new one
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "out.txt", "run"}


def test_translate_nbest_and_sample(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("alpha bravo\n\n" + "golf hotel\n" * 70)

    def translated(*options: str, lines: str = source.read_text()) -> list[list[str]]:
        source.write_text(lines)
        assert cli.main(["translate", str(run), "--to", "az", "--input", str(source), *options]) == 0
        return [line.split("\t") for line in capfd.readouterr().out.split("\n")[:-1]]

    rows = translated("--nbest", "2", "--penalty", "fairseq")
    assert [row[0] for row in rows] == [*"112", *(str(i) for i in range(3, 73) for _ in range(2))]
    assert rows[2] == ["2", "0.0000", ""] and float(rows[0][1]) >= float(rows[1][1])
    assert [row[2] for row in rows[::2]][:1] == translated("--nbest", "1", "--penalty", "fairseq")[0][2:]
    drawn = translated("--sample", "--temperature", "5", "--seed", "3")
    assert drawn == translated("--sample", "--temperature", "5", "--seed", "3")
    assert drawn != translated("--sample", "--temperature", "5", "--seed", "4")
    assert len({text for (text,) in drawn[2:]}) > 35  # also behind the first block every line has draws of its own
    assert translated("--sample", "--top-k", "1") == translated("--beam", "1")


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal as Unix has it")
def test_translate_what_is_typed(run: Path, root: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cats", "translate", str(run), "--to", "az", "--interactive"]
    process = subprocess.Popen(command, cwd=root, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(ours, b"alpha bravo\n\nalpha bravo\n\x04")
    out, err = process.communicate(timeout=300)
    os.close(ours), os.close(theirs)
    first, blank, second = out.decode().replace("az> ", "").split("\n")[:3]
    assert process.returncode == 0 and err == b"" and out.count(b"az> ") == 4
    assert first == second != "" and blank == ""


def test_languages_of_a_task_with_hyphens() -> None:
    targets = ["az", "zh-cn", "en", "zh-Hans"]
    for task, languages in {
        "az": ("en", "az"),
        "zh-cn": ("en", "zh-cn"),
        "zh-cn-en": ("zh-cn", "en"),
        "pt-br-zh-cn": ("pt-br", "zh-cn"),
        "az-zh-Hans": ("az", "zh-Hans"),
    }.items():
        assert cli._languages(task, targets) == languages


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> NoReturn:
        raise UserError("the disk is full")

    from cats.nmt.training import export

    with monkeypatch.context() as patch:
        patch.setattr(export, "to_toml", full)
        assert cli.main(["export", str(run), str(tmp_path / "out")]) == 2
    assert list((tmp_path / "out").iterdir()) == []
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0


def test_translate_from(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    message = f"{run} does not translate from 'ru': en"
    assert refused("translate", run, "--to", "az", "--from", "ru") == message
    for tasks, warned in ((["az", "be"], False), (["az-be", "be-az", "be"], True)):
        alpha = dict.fromkeys(tasks, 1.0)
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "alpha": alpha}) + "\n")
        monkeypatch.setattr(sys, "stdin", Input(b"alpha\n"))
        assert cli.main(["translate", str(run), "--to", "az", "--from", "eng"]) == 0
        out, err = capfd.readouterr()
        assert out.count("\n") == 1
        assert err == (f"cats: {run} was not trained to translate from en to az: zero-shot\n" if warned else "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nbest", "0"], "--nbest must be at least 1, not 0"),
        (["--nbest", "3"], "a beam of 2 has no 3 best; set decode.beam (--beam) to 3"),
        (["--top-p", "0.5"], "--top-p is for translations drawn at random: add --sample"),
        (["--sample", "--top-p", "0"], "decode.top_p must be above 0 and at most 1, not 0.0"),
        (["--penalty", "googel"], "decode.penalty must be one of google, fairseq, not 'googel' (did you mean google?)"),
        (["--interactive"], "--interactive is for a terminal, without --input and --output"),
        (["--input", "{folder}/absent"], "{folder}/absent: No such file or directory"),
        (
            ["--output", "{folder}/absent/out"],
            "{folder}/absent/out: its folder is not there; make it, or choose another --output",
        ),
    ],
)
def test_translate_misuse(
    options: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"alpha\n")))
    options = [option.format(folder=tmp_path) for option in options]
    assert refused("translate", run, "--to", "az", *options) == message.format(folder=tmp_path)


def test_export(
    run: Path, trained: Path, tmp_path: Path, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    from cats.nmt.scoring import evaluate
    from cats.nmt.training.run import RunDirectory

    out = tmp_path / "model"
    assert cli.main(["export", str(run), str(out)]) == 0
    assert "config.toml, model.safetensors, tokenizer.model\nTry it: cats translate" in capfd.readouterr().out
    source = str(trained / "toy" / "test.en-az.en")
    assert cli.main(["translate", str(out), "--to", "az", "--from", "en", "--input", source]) == 0
    assert capfd.readouterr() == ((run / "hyp" / "test.az.txt").read_text(encoding="utf-8"), "")
    assert RunDirectory(out).task_names() == ["az", "be"]
    assert refused("train", "--resume", out).startswith(f"{out} is an exported model, which cannot be trained further")
    shutil.rmtree(run)  # the folder stands alone; with the corpus it can be scored too
    assert evaluate.evaluate(out)["languages"].keys() == {"az", "be"}

    assert refused("export", out, out) == f"{out} exists already; choose another folder"
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:1000])
    damaged = f"{out}/model.safetensors is damaged or no safetensors file; export it again"
    assert refused("translate", out, "--to", "az") == damaged
    (out / "model.safetensors").write_bytes(weights)
    text = (out / "config.toml").read_text(encoding="utf-8")
    (out / "config.toml").write_text(text.replace("ffn = 32", "ffn = 64"), encoding="utf-8")
    assert "model.safetensors does not fit" in refused("translate", out, "--to", "az")


def test_tied_weights_are_exported_once(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    from cats.nmt.data.tokenizer import Tokenizer
    from cats.nmt.model.transformer import Transformer
    from cats.nmt.training import export
    from cats.nmt.training.run import RunDirectory, TrainedModel

    tokenizer = Tokenizer.train(WORDS, ["az"], 40)

    def tied() -> Transformer:
        model = Transformer(tokenizer.vocab_size, 16, 2, 16, 1, 1, 0.0)
        model.decoder_embedding = model.embedding
        return model

    model, other = tied(), tied()
    export.write(tmp_path / "model", TrainedModel(Config(), tokenizer, model, "d"), ["az"])
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) == len(model.state_dict()) - 1
    assert RunDirectory(tmp_path / "model").read_weights(other)["digest"] == "d"
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_translate_keeps_blank_lines_and_takes_options(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(b"alpha\r\n", b"\n", b"echo"))
    assert cli.main(["translate", str(run), "--to", "be", "--beam", "1", "--length-penalty", "0"]) == 0
    lines = capfd.readouterr().out.split("\n")
    assert len(lines) == 4 and lines[1] == "" and lines[3] == ""


def test_lines_come_as_they_arrive() -> None:
    many = "".join(f"{i}\n" for i in range(70)).encode()
    blocks = list(cli._blocks(Input(b"\xef\xbb\xbfone\ntw", b"o\n\xe6\xbc", b"\xa2\r\n", many, b"a\xe2\x80\xa8b")))
    assert blocks[:3] == [["one"], ["two"], ["漢"]]
    assert [len(block) for block in blocks[3:]] == [32, 32, 6, 1]
    assert blocks[-1] == ["a\u2028b"]
    assert list(cli._blocks(Input())) == [] and list(cli._blocks(Input(b"\n"))) == [[""]]


def test_what_cannot_be_translated(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused("translate", run, "--to", "aze") == f"{run} does not translate to 'aze' (did you mean az?): az, be"
    assert refused("translate", run, "--to", "az", "--beam", "0") == "decode.beam must be at least 1, not 0"
    monkeypatch.setattr(sys, "stdin", Input(b"alpha\nal\xffpha\necho\n"))
    assert cli.main(["translate", str(run), "--to", "az"]) == 2
    out, err = capfd.readouterr()
    assert out.count("\n") == 1  # what came before the bad line is translated
    assert err == "cats: standard input, line 2, byte 3: not UTF-8; convert it, for example with iconv\n"


def test_nobody_reads_on(run: Path, root: Path) -> None:
    """As in "cats translate .. | head": quiet, and no traceback at exit."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cats", "translate", str(run), "--to", "az"]
    done = subprocess.run(command, cwd=root, input=b"alpha\n" * 100, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("closed", ["0", "1", "2"])
def test_closed_streams_are_empty(run: Path, root: Path, closed: str) -> None:
    """As "cats translate .. <&-" leaves it: nothing to read, or nobody to tell."""
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-m", "cats", "translate", str(run)]
    done = subprocess.run([*command, "--to", "az"], cwd=root, input=b"alpha\n", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == (1 if closed == "2" else 0)


def test_a_locale_without_the_letters_is_no_trouble(run: Path, root: Path, tmp_path: Path) -> None:
    run = run.rename(tmp_path / "läuft")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "cats", "evaluate", str(run)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"l\xe4uft: report.md" in done.stdout


# ---- data, info


def test_data_inspect(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "inspect", str(trained / "toy")]) == 0
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:5] == ["task", "group", "train", "valid", "test"]
    assert [row[:5] for row in rows[2:4]] == [["be", "LoRes", "20", "8", "10"], ["az", "HiRes", "60", "8", "10"]]


def test_data_inspect_of_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lengths, the entropy of 2 and 6 pairs in nats, zero-shot directions, what is left out."""
    for pair, lines in (("en-xa", 2), ("en-xb", 6)):
        for side in pair.split("-"):
            text = "".join(f"{'four' if side == 'en' else side * (1 + i)}\n" for i in range(lines)) + "\n"
            (tmp_path / f"train.{pair}.{side}").write_text(text)
    for side in "xa", "xb":
        (tmp_path / f"test.xa-xb.{side}").write_text("x\n")
    assert cli.main(["data", "inspect", str(tmp_path), "--direction", "many-to-many"]) == 0
    lines_ = capsys.readouterr().out.splitlines()
    rows = {(cells := [c.strip() for c in line.strip("|").split("|")])[0]: cells[1:] for line in lines_}
    assert rows["xa"] == ["LoRes", "2", "0", "0", "3.0", "4"] and rows["xb"] == ["HiRes", "6", "0", "0", "7.0", "12"]
    assert rows["xa-xb"] == ["zero-shot", "", "", "1", "", ""]
    entropy = -2 * (2 / 16 * math.log(2 / 16) + 6 / 16 * math.log(6 / 16))
    assert f"16 training pairs; entropy of their distribution {entropy:.2f} nats, of an even one 1.39" in lines_
    assert "en-xa: 1 train pairs left out, a side is blank" in lines_


def test_data_cldr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("babel")
    assert (
        cli.main(["data", "cldr", "--out", str(tmp_path / "corpus"), "--sizes", "ted", "--languages", "diverse"]) == 0
    )
    said = capsys.readouterr().out
    assert f"Train on it: cats train --data {tmp_path / 'corpus'}" in said
    corpus = read_corpus(tmp_path / "corpus")
    assert all(f"{name} {size:,}" in said for name, size in corpus.sizes.items()) and len(corpus.tasks) == 8


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for word in (cats.__version__, "torch", "numpy", "triton", "cpu", "[nmt]"):
        assert word in text
    section = text.partition("Backends")[2].partition("Extras")[0].splitlines()
    for backend, reason in cats.ops.backends().items():
        line = next(line for line in section if line.split()[:1] == [backend])
        assert " usable" in line and "not usable" not in line if reason is None else f"not usable: {reason}" in line
    choices = text.partition("Choice")[2].partition("Extras")[0].splitlines()
    assert f"cpu {cats.ops.chosen('cpu')}" in [" ".join(line.split()[:2]).rstrip(";") for line in choices]
    monkeypatch.setenv("CATS_BACKEND", "reference")
    assert "reference, from the environment variable CATS_BACKEND" in info.describe()
    monkeypatch.setitem(info.EXTRAS["nmt"], "no_such_module", "no-such-package")
    assert "missing no-such-package; install with: pip install 'cats-optim[nmt]'" in info.describe()


def test_extras_are_those_of_the_package(root: Path) -> None:
    import tomllib

    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, modules in info.EXTRAS.items():
        assert {requirement.split(">")[0].split("=")[0] for requirement in extras[name]} == set(modules.values())


# ---- trouble from outside


def raising(error: BaseException) -> Callable[..., None]:
    def run(_args: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space and start again"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), "/x/y: the disk is full; free some space and start again"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (
            ModuleNotFoundError("no babel", name="babel"),
            "this needs babel; install it with: pip install 'cats-optim[nmt]'",
        ),
    ],
)
def test_trouble_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "info", ("", lambda parser: None, raising(error)))
    assert refused("info") == message


def test_full_disk_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    write_toy(tmp_path / "toy")
    real = os.fsync

    def full(descriptor: int) -> None:
        if (tmp_path / "run" / "config.toml").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    message = refused("train", "--data", tmp_path / "toy", "--out", tmp_path / "run", "--quiet", *SET)
    assert "the disk is full" in message and str(tmp_path / "run") in message
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_missing_packages_are_found_before_training(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(info, "missing", lambda extra: ["babel", "tqdm"])
    assert refused("train") == "training needs babel, tqdm; install with: pip install 'cats-optim[nmt]'"


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("a bug"), ModuleNotFoundError("no x", name="x"), OSError("no errno")):
        monkeypatch.setitem(cli.COMMANDS, "info", ("", lambda parser: None, raising(error)))
        with pytest.raises(type(error)):
            cli.main(["info"])


def test_interrupted_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "info", ("", lambda parser: None, raising(KeyboardInterrupt())))
    assert cli.main(["info"]) == 130
