"""`cats info`."""

from __future__ import annotations

from pathlib import Path

import pytest

import cats
from cats import info
from cats.nmt.cli.main import main
from cats.ops.dispatch import explain_default


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in (cats.__version__, "torch", "numpy", "triton", "cpu", "[nmt]"):
        assert word in text
    section = text.partition("Backends")[2].partition("Extras")[0].splitlines()
    for backend, reason in cats.ops.backends().items():
        line = next(line for line in section if line.split()[:1] == [backend])
        assert " usable" in line and "not usable" not in line if reason is None else f"not usable: {reason}" in line
    choices = text.partition("Choice")[2].partition("Extras")[0].splitlines()
    default = explain_default("cpu").partition(";")[0]
    assert f"cpu {default}" in [" ".join(line.split()[:2]).rstrip(";") for line in choices]
    monkeypatch.setenv("CATS_BACKEND", "reference")
    assert "reference, from the environment variable CATS_BACKEND" in info.describe()
    monkeypatch.setitem(info.EXTRAS["nmt"], "no_such_module", "no-such-package")
    assert "missing no-such-package; install with: pip install 'cats-optim[nmt]'" in info.describe()


def test_extras_are_those_of_the_package(root: Path) -> None:
    import tomllib

    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, modules in info.EXTRAS.items():
        assert {requirement.split(">")[0].split("=")[0] for requirement in extras[name]} == set(modules.values())
