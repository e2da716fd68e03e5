"""`cats info`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import cats
from cats import info
from cats.nmt.cli.main import main
from cats.ops import check_all
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
    assert "missing no-such-package; install with: pip install '.[nmt]'" in info.describe()


def test_info_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pending = [check_all.Check("cuda", "cuda:0", operator, "float32", 8, True) for operator in ("dots", "dots", "gram")]
    monkeypatch.setattr(check_all, "checks", lambda: pending)
    monkeypatch.setattr(check_all, "run", lambda checks: (dataclasses.replace(c, seconds=0.002) for c in checks))
    assert main(["info", "--check"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.partition("against float64: 3")[2].splitlines()]
    assert lines[2:] == [["cuda", "cuda:0", "dots", "2", "2.0", "2.0"], ["cuda", "cuda:0", "gram", "1", "2.0", "2.0"]]
    pending[2] = dataclasses.replace(pending[2], unsuited="this GPU has 7.5")
    assert main(["info", "--check"]) == 0
    out = capsys.readouterr().out
    assert " ".join(out.split()).endswith("cuda cuda:0 gram not usable: this GPU has 7.5") and "wrong" not in out
    pending[1] = dataclasses.replace(pending[1], reason="the dots: 2 of 6 numbers are wrong")
    assert main(["info", "--check"]) == 2
    out, err = capsys.readouterr()
    assert "wrong: float32, 8 tasks: the dots: 2 of 6 numbers are wrong" in out
    assert err == "cats: 1 checks failed, see above; calls that name no backend do not use these kernels\n"


def test_extras_are_those_of_the_package(root: Path) -> None:
    import tomllib

    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, modules in info.EXTRAS.items():
        assert {requirement.split(">")[0].split("=")[0] for requirement in extras[name]} == set(modules.values())
