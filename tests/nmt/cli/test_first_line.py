"""Every command says what it does before it imports anything slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cats.nmt.cli.main import COMMANDS, DATA_COMMANDS
from cats.nmt.cli.parser import Parser

SLOW = ("torch", "babel", "matplotlib", "sacrebleu", "sentencepiece", "scipy")
# Runs each command until it imports something slow, and prints what it has printed by then and what it imported.
SCRIPT = f"""
import builtins, contextlib, io, json, sys

class Slow(BaseException):
    pass

def importing(name, *others, imports=builtins.__import__):
    if name.partition(".")[0] in {SLOW}:
        raise Slow(name)
    return imports(name, *others)

class Terminal(io.StringIO):
    def isatty(self):
        return True

builtins.__import__ = importing
from cats.nmt.cli.main import main

for arguments in json.load(sys.stdin):
    imported = ""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(Terminal()) as err:
        try:
            main(arguments)
        except Slow as slow:
            imported = str(slow)
    print(json.dumps([out.getvalue(), err.getvalue(), imported]))
"""


def least(name: str, command: object) -> list[str]:
    """The command with the arguments that it cannot do without."""
    parser = Parser(name, "")
    command.add_arguments(parser)  # type: ignore[attr-defined]
    given = []
    for action in parser._actions:
        if action.required:
            given += [*action.option_strings[:1], "absent"]
    return [*name.split(), *given]


def test_the_first_line_comes_before_slow_imports(root: Path, tmp_path: Path) -> None:
    commands = {**COMMANDS, **{f"data {name}": command for name, command in DATA_COMMANDS.items()}}
    asked = [*(least(name, command) for name, command in commands.items()), ["methods", "mgda"], ["train", "--quiet"]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    for arguments, line in zip(asked, done.stdout.splitlines(), strict=True):
        out, err, imported = json.loads(line)
        if "--quiet" in arguments:
            assert imported and (out, err) == ("", "")
        elif arguments == ["methods"]:
            assert out and not err and not imported
        else:
            assert imported, f"{arguments}: it imports nothing slow, and needs no line"
            assert out == "" and err.count("\n") == 1, f"{arguments}: call doing(..) before importing {imported}"
    assert list(tmp_path.iterdir()) == []


def test_a_log_gets_no_such_line(run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cats.nmt.cli.main import main

    assert main(["average", str(run), "--checkpoints", str(run / "checkpoints" / "best.pt")]) == 0
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("RANK", "1")
    assert main(["average", str(run), "--checkpoints", str(run / "checkpoints" / "best.pt")]) == 0
    assert capfd.readouterr().err == ""
