"""A trained run and a check of refused commands, for the tests of the commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cats.nmt.cli.main import main
from tests.nmt.cli.common import SET, write_toy


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus toy/ and the run run/, made by `cats train`. Tests must not change it."""
    folder = tmp_path_factory.mktemp("cli")
    write_toy(folder / "toy")
    arguments = ["train", "--data", str(folder / "toy"), "--out", str(folder / "run"), "--seed", "3", "--quiet", *SET]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, which a test may change."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with status 2, and return its message: one line, and no other output."""

    def run(*arguments: Any) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("cats: ") and err.count("\n") == 1 and err.endswith("\n"), (out, err)
        return err.removeprefix("cats: ").rstrip("\n")

    return run
