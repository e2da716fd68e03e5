"""The command `python -m bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench import show
from bench.common import roofline
from bench.operators import cases
from bench.operators.cases import flat
from bench.operators.contender import BACKEND, COMPILED, EAGER
from cats import ops


def test_a_wrong_backend_gets_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cases, "quick", lambda: [flat(3, 1000, operators=("dots",))])
    right = ops.dots
    monkeypatch.setattr(ops, "dots", lambda *args, **options: right(*args, **options) + 1e-7)
    assert command.main(["--quick", "--only", "dots"]) == 1
    printed = capsys.readouterr()
    assert "backend reference: dots is wrong by" in printed.err
    assert "| dots K=3 P=1e3 float32 flat | reference |" not in printed.out
    assert "| dots K=3 P=1e3 float32 flat | loop of dot |" in printed.out


def test_a_run_from_end_to_end(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = [
        flat(3, 20_000, compiled=cases.OPERATORS, operators=(*cases.OPERATORS, cases.TWO_PASSES)),
        flat(9, 100, operators=("dots",)),
    ]
    monkeypatch.setattr(cases, "quick", lambda: suite)
    monkeypatch.setattr(roofline, "MATMUL", {"cpu": 128})
    assert command.main(["--quick", "--only", "K=3", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| gram, combine K=3 P=2e4 float32 flat | reference |" in printed.out
    assert "K=9" not in printed.out
    (path,) = tmp_path.glob("*-quick-part.json")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    results = json.loads(path.read_text())
    assert {"machine", "versions", "commit", "modified", "command", "date", "peaks", "targets"} <= results.keys()
    assert results["command"].startswith("python -m bench --quick --only K=3 --out ")
    assert results["machine"]["cores"] >= 1 and results["versions"]["torch"] == torch.__version__
    assert [c["operator"] for c in results["cases"]] == [*cases.OPERATORS, cases.TWO_PASSES]
    for case in results["cases"]:
        kinds = {c["kind"] for c in case["contenders"]}
        assert kinds >= {BACKEND, EAGER}
        assert (COMPILED in kinds) == (case["operator"] in cases.OPERATORS)
        assert all(c["seconds"]["low"] <= c["seconds"]["median"] <= c["seconds"]["high"] for c in case["contenders"])
    assert show.markdown(path) in printed.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-such"], "unrecognized arguments: --no-such"),
        (["--quick", "--gpu"], "not allowed with"),
        (["--only", "K=77"], "no case has 'K=77' in its name"),
        (["--out", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["--step", "--only", "K=8"], "--only chooses cases"),
        (["--gpu"], "needs a CUDA device"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, refusal: Callable[..., str]) -> None:
    assert said in refusal(command.main, arguments)
