"""The parser, the list of commands, and how errors reach the user."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

import cats
from cats.nmt.cli import info
from cats.nmt.cli.main import COMMANDS, DATA_COMMANDS, main
from cats.nmt.config.sections.method import METHODS
from cats.nmt.errors import Stopped


def test_help_imports_nothing_heavy_and_the_module_is_the_command(root: Path) -> None:
    code = (
        "import runpy, sys; from cats.nmt.cli.main import main; main(['-h']), main(['data', '-h']);"
        "print(*sys.modules, file=sys.stderr);"
        "sys.argv[1:] = ['--version']; runpy.run_module('cats', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "examples:" in done.stdout and "data inspect" in done.stdout
    modules = done.stderr.split()
    assert {"sentencepiece", "sacrebleu", "matplotlib", "babel"}.isdisjoint(modules)
    rooms = ("cats.nmt.training", "cats.nmt.model", "cats.nmt.scoring")  # they import torch's optimizers, numpy, ...
    assert not [name for name in modules if name.startswith(rooms)]
    for command in ("train", "evaluate", "translate", "average", "export", "significance", "compare", "data", "info"):
        assert f"\n  {command} " in done.stdout
    assert done.stdout.endswith(f"\ncats {cats.__version__}\n")


@pytest.mark.parametrize("command", [*COMMANDS, *(f"data {name}" for name in DATA_COMMANDS)])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f"usage: cats {command}")
    assert all(ord(character) < 128 for character in text)  # readable in every locale


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_without_a_command_the_commands_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
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
        (
            ["compare", "--steps", "20"],
            "unknown option '--steps' (write --set train.steps=..); see cats compare --help",
        ),
        (["compare", "--seed", "2"], "unknown option '--seed' (did you mean --seeds?); see cats compare --help"),
        (
            ["pareto", "--temperature=3"],
            "unknown option '--temperature' (write --set tokenizer.temperature=.. or --set sampling.temperature=.. or "
            "--set decode.temperature=..); see cats pareto --help",
        ),
        (["train", "--lr=1e-3"], "unknown option '--lr' (write --set train.lr=..); see cats train --help"),
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
        (["train", "--steps", "many"], "--steps: train.steps needs a whole number, not 'many'"),
        (
            ["train", "--evaluate", "beem"],
            "--evaluate: evaluate.search must be one of beam, greedy, none, not 'beem' (did you mean beam?)",
        ),
        (["train", "--seed", "-1"], "--seed: train.seed must be between 0 and 2**32 - 1, not -1"),
        (
            ["train", "--temperature", "0"],
            "--temperature: sampling.temperature must be above 0 (inf is allowed), not 0.0",
        ),
        (
            ["train", "--method", "Cats"],
            f"--method: method.name must be one of {', '.join(METHODS)}, not 'Cats' (did you mean cats?)",
        ),
        (["train", "--set", "lr=3"], "unknown setting 'lr' (did you mean train.lr?)"),
        (["train", "--config", "absent.toml"], "cannot read the configuration absent.toml: No such file or directory"),
        (["train", "--resume", "absent"], "absent: no such folder; give a run directory, as printed by cats train"),
        (["evaluate", "absent"], "absent: no such folder; give a run directory, as printed by cats train"),
        (
            ["data", "cldr", "--out", "x", "--sizes", "tde"],
            "--sizes: data.sizes must be one of ted, wmt, noisy, opus100, not 'tde' (did you mean ted?)",
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


def test_a_closed_pipe_ends_the_command_quietly(run: Path, root: Path) -> None:
    """As in "cats translate .. | head": no message, no traceback at exit."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cats", "translate", str(run), "--to", "az"]
    done = subprocess.run(command, cwd=root, input=b"alpha\n" * 100, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(os.name != "posix", reason="streams as POSIX has them")
@pytest.mark.parametrize(
    ("redirection", "status", "says"),
    [
        ("1</dev/null", 2, b"standard output or a file: Bad"),
        ("2>/dev/full", 2, b""),
        ("1>/dev/full", 2, b"disk is full"),
    ],
)
def test_streams_that_cannot_be_written(root: Path, redirection: str, status: int, says: bytes) -> None:
    command = "--version" if redirection[0] == "1" else "trian"
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "cats", command]
    done = subprocess.run(shell, cwd=root, capture_output=True, check=False)
    assert done.returncode == status and says in done.stderr and done.stderr.count(b"\n") == bool(says)


@pytest.mark.parametrize("closed", ["0", "1", "2"])
def test_closed_standard_streams(run: Path, root: Path, closed: str) -> None:
    """As in "cats translate .. <&-": a closed input is empty, and output to a closed stream is dropped."""
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-m", "cats", "translate", str(run)]
    done = subprocess.run([*command, "--to", "az"], cwd=root, input=b"alpha\n", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == (1 if closed == "2" else 0)


def test_output_in_an_ascii_locale_is_escaped(run: Path, root: Path, tmp_path: Path) -> None:
    run = run.rename(tmp_path / "läuft")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "cats", "evaluate", str(run)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"l\xe4uft: report.md" in done.stdout


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
        (FileNotFoundError(errno.ENOENT, "No such file or directory", ""), "'': No such file or directory"),
        (OSError(errno.EBADF, "Bad file descriptor"), "standard output or a file: Bad file descriptor"),
        (
            ModuleNotFoundError("no babel", name="babel"),
            "this needs babel; install it with: pip install '.[nmt]'  # in a clone of CATS",
        ),
    ],
)
def test_system_errors_are_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(info, "run", raising(error))
    assert refused("info") == message


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("a bug"), ModuleNotFoundError("no x", name="x"), OSError("no errno")):
        monkeypatch.setattr(info, "run", raising(error))
        with pytest.raises(type(error)):
            main(["info"])


def test_ctrl_c_exits_with_130_and_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for error, said in (KeyboardInterrupt("a text"), "cats: stopped\n"), (Stopped(), ""):
        monkeypatch.setattr(info, "run", raising(error))
        assert main(["info"]) == 130
        assert capfd.readouterr() == ("", said)


def test_control_characters_are_escaped(tmp_path: Path, refused: Callable[..., str]) -> None:
    """They would break the line of an error, or move the cursor of a terminal."""
    assert "a\\nb\\x1b[2J\\u2028ə" in refused("evaluate", f"{tmp_path}/a\nb\x1b[2J\u2028ə")
