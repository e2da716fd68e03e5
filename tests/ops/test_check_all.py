"""`cats info --check`: which checks there are, and what becomes of the others when a process ends."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from cats import ops
from cats.ops import check_all, dispatch
from tests.ops.common import reasons


def test_a_process_that_ends_takes_only_one_check_with_it() -> None:
    if reason := reasons()["native"]:
        pytest.skip(reason)
    right = check_all.Check("native", "cpu", "gram", "float32", 2, True)
    ends = dataclasses.replace(right, backend="nothing")  # the child does not expect this
    found = list(check_all.run([right, ends, dataclasses.replace(right, operator="dots")]))
    assert [check.operator for check in found] == ["gram", "gram", "dots"]
    assert [check.reason for check in found] == [
        None,
        "the process ended with exit status 1: KeyError: 'nothing'",
        None,
    ]
    assert all(check.seconds > 0 for check in found)


def test_an_interruption_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is left that Python would wait for."""

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(check_all.json, "dumps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(check_all.run([check_all.Check("native", "cpu", "gram", "float32", 2, True)]))
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.skipif(os.name != "posix", reason="groups of processes")
def test_what_a_child_has_started_is_killed_with_it() -> None:
    # Far longer than the limit of communicate() below: only if it is killed can the test pass.
    sleep = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    code = f"import subprocess, sys; subprocess.Popen({sleep}); print(1, flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None and child.stdout.readline() == "1\n"
    check_all._kill(child)
    out, _ = child.communicate(timeout=60)  # until all of them have closed their end
    assert (out, child.returncode) == ("", -9)


def test_the_child_searches_modules_where_this_process_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if reason := reasons()["native"]:
        pytest.skip(reason)
    (tmp_path / "json.py").write_text("raise ImportError('not the json of the standard library')\n")
    monkeypatch.chdir(tmp_path)
    assert [
        check.reason for check in check_all.run([check_all.Check("native", "cpu", "gram", "float32", 2, True)])
    ] == [None]


def test_an_unsuited_backend_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := reasons()["native"]:
        pytest.skip(reason)
    check = check_all.Check("native", "meta", "gram", "float32", 2, True)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(dataclasses.asdict(check))))
    check_all.main()
    result = json.loads(capsys.readouterr().out)
    assert result["reason"] is None and result["unsuited"] == "it works only on cpu" and not result["lost"]


def test_signals_have_names() -> None:
    assert check_all._end(-11, []) == "the process ended with signal SIGSEGV"


def test_every_kernel_of_a_usable_backend_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := reasons()["native"]:
        pytest.skip(reason)
    found = [check for check in check_all.checks() if check.backend == "native"]
    assert {check.operator for check in found} == set(dispatch.OPERATORS)
    assert len(found) == len(set(found)) == len(dispatch.OPERATORS) * 4 * len(check_all.TASKS)
    assert not any(check.backend == "reference" for check in check_all.checks())
    nothing = dict.fromkeys(ops.backends(), "not here")
    monkeypatch.setattr(dispatch, "backends", lambda: nothing)
    assert check_all.checks() == []


def test_dtypes_are_those_of_the_operators_tensors() -> None:
    check = check_all.Check("native", "cpu", "gram", "bfloat16", 2, True)
    assert check.dtypes == (torch.bfloat16,)
    assert dataclasses.replace(check, operator="combine").dtypes == (torch.bfloat16,) * 2
    update = dataclasses.replace(check, operator="combine_adamw_")
    assert update.dtypes == (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)
