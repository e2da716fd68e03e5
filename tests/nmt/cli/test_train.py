"""`cats train`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

import torch

from cats import info
from cats.extras import install
from cats.nmt.cli import train
from cats.nmt.cli.main import main
from cats.nmt.cli.parser import Parser
from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import FIELDS, Config
from cats.nmt.config.toml import read_config
from cats.nmt.training import checkpoint
from tests.nmt.cli.common import SET, TINY, write_toy


def test_train_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in FIELDS)
    assert "cats train --resume runs/NAME" in text


def test_a_run_directory_is_complete(trained: Path) -> None:
    run = trained / "run"
    assert {path.name for path in run.iterdir()} - {"tensorboard"} == {  # only where TensorBoard is installed
        "alpha.png",
        "alpha.svg",
        "checkpoints",
        "config.toml",
        "hyp",
        "loss.png",
        "loss.svg",
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
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    lines = (
        r"runs/toy-static-Tinf-seed1: 2 tasks, 80 training pairs; a model with [\d,]+ parameters; 10 updates",
        r"update 10 of 10: loss \d\.\d{3}, [\d,]+ tokens/s, validation NLL \d\.\d{3}, 0 s left",
    )
    assert re.fullmatch("".join(f"{line}\n" for line in lines), err), err  # no progress bar where nobody watches
    assert "| **LoRes** |" in out and "nearest neighbour" in out and "runs/toy-static-Tinf-seed1: report.md" in out
    assert "cats translate runs/toy-static-Tinf-seed1 --to az" in out
    kept = read_config(tmp_path / "runs" / "toy-static-Tinf-seed1" / "config.toml")
    assert (kept.method.name, kept.sampling.temperature, kept.train.steps) == ("static", float("inf"), 10)

    assert train.new_run(None, kept) == Path("runs/toy-static-Tinf-seed1-2")
    Path("runs/toy-static-Tinf-seed1-2").mkdir()
    assert train.new_run(None, kept) == Path("runs/toy-static-Tinf-seed1-3")
    assert train.new_run(None, Config()) == Path("runs/cldr-related-ted-cats-seed1")


def test_text_without_test_lines_is_trained_on_and_not_scored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    """No command of the way from there names another one that cannot work."""
    toy, run = write_toy(tmp_path / "toy"), tmp_path / "run"
    for file in toy.glob("test.*"):
        file.unlink()
    arguments = ["train", "--data", str(toy), "--out", str(run), *SET, "--steps", "2"]
    assert main(arguments) == 0
    advice = f"; to score its validation lines: cats evaluate {run} --split valid"
    message = f"{run}: trained, and nothing is scored: the corpus toy has no test lines to evaluate on{advice}"
    assert capfd.readouterr().out == f"\n{message}\nTry it: cats translate {run} --to az\n"
    assert refused("evaluate", run) == f"the corpus toy has no test lines to evaluate on{advice}"
    assert main(["evaluate", str(run), "--split", "valid"]) == 0
    lacking = "its corpus has no test lines, so it cannot be scored; to see its losses: cats plot"
    assert refused("report", run) == f"{run} holds no scores.json; {lacking} {run}"
    assert main(["plot", str(run), "--out", str(tmp_path / "plots"), "--pictures", "loss"]) == 0
    for file in toy.glob("valid.*"):
        file.unlink()
    assert main([*arguments[:4], str(tmp_path / "other"), *arguments[5:], "--quiet"]) == 0
    assert "evaluate on; " not in refused("evaluate", tmp_path / "other")
    assert "no valid lines" in refused("evaluate", tmp_path / "other", "--split", "valid")


def test_presets(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "unknown preset 'opus-100' (did you mean opus100?); known: base" in refused("train", "--preset", "opus-100")
    message = refused("train", "--resume", tmp_path, "--preset", "ted")
    assert message.endswith("leave out --preset, or start a new run")
    (tmp_path / "mine.toml").write_text("[train]\nlr = 1e-3\nsteps = 7\n")
    parser = Parser("cats train", "")
    train.add_arguments(parser)
    given = ["--preset", "ted", "--config", str(tmp_path / "mine.toml"), "--steps", "9", "--set", "model.heads=8"]
    found = train.configured(parser.parse(given))
    assert (found.model.ffn, found.train.lr, found.train.steps, found.model.heads) == (1024, 1e-3, 9, 8)


def test_an_existing_directory_is_not_overwritten(trained: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    toy, run = trained / "toy", trained / "run"
    before = sorted(path.name for path in run.rglob("*"))
    message = f"{run} exists already; choose another --out"
    further = f"raise train.steps in {run}/config.toml, then cats train --resume {run}"
    done = f"{message}; all 20 updates of that run are done: to train it further, {further}"
    assert refused("train", "--data", toy, "--out", run) == done
    stopped, config = tmp_path / "stopped", (run / "config.toml").read_text(encoding="utf-8")
    shutil.copytree(run, stopped)
    (stopped / "config.toml").write_text(config.replace("steps = 20", "steps = 30"), encoding="utf-8")
    go_on = f"{stopped} exists already; choose another --out, or resume it with: cats train --resume {stopped}"
    assert refused("train", "--data", toy, "--out", stopped) == go_on
    (stopped / "config.toml").write_text("[build]", encoding="utf-8")
    assert refused("train", "--data", toy, "--out", stopped) == f"{stopped} exists already; choose another --out"
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
    run = trained / "run"
    for option, change in {
        ("--steps", "3"): f" and change train.steps in {run}/config.toml",
        ("--set", "train.lr=1"): f" and change settings that may change, such as train.steps, in {run}/config.toml",
        ("--out", "x"): "",
    }.items():
        message = f"--resume keeps the settings of the run: leave out {option[0]}{change}, or start a new run"
        assert refused("train", "--resume", run, *option) == message


def test_a_corpus_that_was_moved(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--data tells both commands where it is, and --resume remembers it. The digest guards against another corpus."""
    toy, run, moved = tmp_path / "toy", tmp_path / "run", tmp_path / "moved"
    shutil.copytree(trained / "toy", toy)
    arguments = ["train", "--data", str(toy), "--out", str(run), "--quiet", *SET, "--set", "train.steps=2"]
    assert main(arguments) == 0
    toy.rename(moved)
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("steps = 2\n", "steps = 3\n"))
    expected = f"{toy}: no such folder; if the corpus of {run} was moved, give its new folder with --data"
    for command in (
        ["evaluate", str(run)],
        ["train", "--resume", str(run)],
        ["train", "--resume", str(run), "--quiet"],
    ):
        assert main(command) == 2
        *notices, error = capfd.readouterr().err.splitlines()
        assert error == f"cats: {expected}"
        assert len(notices) == (command == ["train", "--resume", str(run)])  # the only command that it matters to
        assert all(notice.endswith("last.pt was written: train.steps = 3 (was 2)") for notice in notices)
    assert main(["evaluate", str(run), "--data", str(moved)]) == 0
    assert f'path = "{toy}"' in (run / "config.toml").read_text()
    assert main(["train", "--resume", str(run), "--data", str(moved), "--quiet"]) == 0
    assert read_config(run / "config.toml").data.path == str(moved)
    assert main(["evaluate", str(run)]) == 0
    (moved / "train.en-be.be").write_text("X\n" * 20)
    shutil.copytree(trained / "toy", toy)
    assert main(["evaluate", str(run), "--data", str(toy)]) == 0
    capfd.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert "the corpus is not the one this run was started on" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--resume", "--data", "--init-from", "--preset", "--config", "--steps"])
def test_empty_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], option: str
) -> None:
    """As the name of a folder, an empty one would be the current folder."""
    monkeypatch.chdir(tmp_path)
    expected = f"{option} is empty: give a value, or leave the option out; see cats train --help"
    for arguments in ([f"{option}="], [option, ""], ["--quiet", f"{option}=", "--out=x"]):
        assert refused("train", *arguments) == expected
    assert refused("evaluate", "") == "an argument is empty: give a value; see cats evaluate --help"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CATS_BACKEND": "bogus"}, "the environment variable CATS_BACKEND is 'bogus': there is no backend 'bogus'"),
        ({"CATS_BACKEND": "cuda"}, "the environment variable CATS_BACKEND is 'cuda': backend 'cuda' cannot be used"),
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two', not a number; start the processes with"),
        ({"RANK": "2"}, "RANK = 2 is not below WORLD_SIZE = 2; use torchrun"),
        ({"LOCAL_RANK": "-1"}, "the environment variable LOCAL_RANK is '-1', not a number"),
        ({"MASTER_PORT": "9" * 5000}, "the environment variable MASTER_PORT is"),
    ],
)
def test_environment_variables_with_wrong_values(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    variables: dict[str, str],
    message: str,
) -> None:
    if "CATS_BACKEND" not in variables:
        usual = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
        variables = usual | variables
    elif torch.cuda.is_available() and variables["CATS_BACKEND"] == "cuda":
        pytest.skip("CUDA can be used here")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert refused("train", "--data", trained / "toy", "--out", tmp_path / "run", *SET).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_config_file_with_options_beside_it(trained: Path) -> None:
    parser = Parser("cats train", "")
    train.add_arguments(parser)
    file = str(trained / "run" / "config.toml")
    chosen = train.configured(
        parser.parse(["--config", file, "--seed", "9", "--set", "train.seed=10", "--method", "static"])
    )
    kept = read_config(trained / "run" / "config.toml")
    assert chosen == replace_settings(kept, {"train.seed": 10, "method.name": "static"})


def test_init_from_takes_the_model_settings_of_the_run(
    trained: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--init-from", trained / "run", "--data", trained / "toy", "--out", run, "--quiet"]
    few = ["--steps", "2", "--set", "sampling.batch_tokens=100"]
    assert main([str(argument) for argument in [*arguments, *few]]) == 0
    kept = read_config(run / "config.toml")
    assert kept.train.init_from == str(trained / "run") and kept.train.steps == 2
    assert kept.model == read_config(trained / "run" / "config.toml").model != Config().model
    assert "has model.ffn = 32, not 64" in refused(*arguments[:-3], "--out", run / "x", "--set", "model.ffn=64")
    assert "absent: no such folder" in refused("train", "--init-from", tmp_path / "absent")

    # An exported model is the same start.
    assert main(["export", str(trained / "run"), str(tmp_path / "model")]) == 0
    arguments[2], arguments[6] = tmp_path / "model", tmp_path / "other"
    assert main([str(argument) for argument in [*arguments, *few]]) == 0
    one, other = (checkpoint.load(folder / "checkpoints" / "last.pt")["model"] for folder in (run, tmp_path / "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
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
            assert process.poll() is None
            time.sleep(0.05)  # polls: the signal must arrive after training has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "to resume: cats train --resume run" in err and "Traceback" not in err
    text = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]
    (tmp_path / "run" / "config.toml").write_text(
        text.replace("steps = 100000", f"steps = {last + 30}"), encoding="utf-8"
    )
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert (tmp_path / "run" / "report.md").exists()


def test_an_interruption_before_the_run_exists_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cats.nmt.training.load_corpus.read_corpus", interrupted)
    toy = write_toy(tmp_path / "toy")
    assert main(["train", "--data", str(toy), "--out", str(tmp_path / "run"), "--quiet"]) == 130
    assert capfd.readouterr() == ("", "cats: stopped; no run was made yet\n")
    monkeypatch.setattr("cats.nmt.scoring.evaluate.evaluate", interrupted)
    monkeypatch.setattr("cats.nmt.training.trainer.train", lambda *_, **__: None)
    assert main(["train", "--data", str(toy), "--out", str(tmp_path / "run"), "--quiet"]) == 130
    assert capfd.readouterr().err == f"cats: trained but not scored; to score it: cats evaluate {tmp_path / 'run'}\n"


def test_a_finished_run_says_that_nothing_is_left_to_train(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run)]) == 0
    further = f"to train further, raise train.steps in {run}/config.toml"
    assert capfd.readouterr().err == f"{run}: all 20 updates are done, so nothing is trained; {further}\n"


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
    assert refused("train") == f"training needs babel, tqdm; install with: {install('nmt')}"
